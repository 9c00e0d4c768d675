"""Bring a registry that an older edgeseal wrote to this version's tables: one transaction, after a copy was set aside.

Whoever changes a table in schema.py adds one to SCHEMA_VERSION and the statements that lead there to `STEPS`. There is
no way back but the copy: an older edgeseal refuses a newer registry.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from edgeseal.durable import fsync_directory
from edgeseal.errors import EdgesealError, IncompatibleError, IntegrityError, RefusedError
from edgeseal_host.fleet import schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STEPS: Final[Mapping[int, Sequence[str]]] = {
    1: (
        """CREATE TABLE station (
          id VARCHAR NOT NULL, name VARCHAR NOT NULL, public BLOB NOT NULL, group_names VARCHAR NOT NULL,
          trusted_at BIGINT NOT NULL, distrusted_at BIGINT, reason VARCHAR, PRIMARY KEY (id))""",
        "ALTER TABLE device ADD COLUMN station VARCHAR REFERENCES station (id)",
        "ALTER TABLE device ADD COLUMN record BLOB",
        "CREATE INDEX ix_device_serial ON device (serial)",
    ),
}
"""Version -> SQL statements that make the next version of it."""


def upgrade(path: Path) -> tuple[int, Path | None]:
    """Return (the version found, the copy set aside); without a copy if the registry was this version's already.

    The caller holds the serve lock. Raises IncompatibleError for a newer registry or one too old, RefusedError if a
    copy is there already, IntegrityError if the registry is damaged; it is then as it was.
    """
    found = schema.version_of(path)
    if not (steps := _steps(found, path.name)):
        return found, None
    copy = path.with_name(f"{path.name}.schema-{found}")
    _set_aside(path, copy)
    with closing(sqlite3.connect(path, timeout=schema.BUSY_MS / 1000)) as connection:
        schema.set_up(connection)
        connection.execute("PRAGMA foreign_keys=OFF")  # tables may be rebuilt; checked at the end
        try:
            connection.execute("BEGIN EXCLUSIVE")
            for statement in steps:
                connection.execute(statement)
            _check(connection, copy)
            connection.execute("UPDATE setting SET value = ? WHERE name = 'schema'", [str(schema.SCHEMA_VERSION)])
            connection.execute("COMMIT")
        except sqlite3.Error as e:
            raise EdgesealError(
                f"{path.name} could not be upgraded: {e}", hint=f"nothing was changed; {copy.name} may be removed"
            ) from e
    return found, copy


def _steps(found: int, name: str) -> list[str]:
    if found > schema.SCHEMA_VERSION:
        raise schema.other_version(name, found)
    versions = range(found, schema.SCHEMA_VERSION)
    if missing := [v for v in versions if v not in STEPS]:
        raise IncompatibleError(
            f"{name} has schema version {found}; this edgeseal cannot upgrade from version {missing[0]}",
            hint="upgrade with an edgeseal between the two first",
        )
    return [statement for v in versions for statement in STEPS[v]]


def _set_aside(path: Path, copy: Path) -> None:
    """Copy through SQLite's own backup, so that what is in the write-ahead log goes along."""
    try:
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise RefusedError(
            f"{copy.name} is there already", hint="an earlier upgrade was cut short: compare, then move that copy away"
        ) from None
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    with copy.open("rb") as f:
        os.fsync(f.fileno())
    fsync_directory(copy.parent)


def _check(connection: sqlite3.Connection, copy: Path) -> None:
    broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    answer = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if broken or answer != "ok":
        raise IntegrityError(
            f"the registry is damaged: {answer if answer != 'ok' else 'rows point nowhere'}; it was not upgraded",
            hint=f"restore it from backup; {copy.name} is as it was",
        )

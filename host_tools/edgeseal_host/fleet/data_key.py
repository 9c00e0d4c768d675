"""Which key seals the registry's secrets, and how it is replaced.

The registry names its key by an id, so a database and a secrets directory that do not belong together are noticed when
they are opened. Replacing is one transaction that seals every value anew and changes the id; the new key's file is on
disk before it and becomes the only one after it. Cut short in between, the id says which of the two files is right.

Not here: sealing (vault.py). A registry without an id was made before there were any; it has the one key.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.errors import IntegrityError
from edgeseal_host.fleet.schema import Database, generation, release, setting
from edgeseal_host.fleet.vault import KEY_LENGTH, Vault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal_host.fleet.registry import SqlRegistry

SETTING: Final = "data key"
_BATCH: Final = 1_000  # rows in memory


def create(secrets: Path, database: Database) -> None:
    """Make a new server's key and have its registry name it."""
    write_atomic(_current(secrets), os.urandom(KEY_LENGTH), mode=0o600)
    with database.engine.begin() as connection:
        _name(connection, Vault.load(_current(secrets)))


def open_vault(secrets: Path, database: Database) -> Vault:
    """Load the key that the registry names, and finish a replacement that was cut short after its commit.

    Raises IntegrityError if no file here is that key, OSError.
    """
    with database.engine.connect() as connection:
        wanted = connection.execute(sa.select(setting.c.value).where(setting.c.name == SETTING)).scalar()
    vault = Vault.load(_current(secrets))
    if wanted in {None, vault.key_id}:
        return vault
    if _next(secrets).exists() and Vault.load(_next(secrets)).key_id == wanted:
        _settle(secrets)
        return Vault.load(_current(secrets))
    raise IntegrityError(
        f"the registry's secrets are sealed with another key than {_current(secrets).name}",
        hint="database and secrets directory belong together: restore both from the same backup",
    )


def rotate(secrets: Path, database: Database, registry: SqlRegistry, old: Vault) -> int:
    """Seal every secret of the registry with a new key and destroy the old one; returns how many there were.

    The caller holds the serve lock and opens the fleet anew afterwards. Raises IntegrityError if a value does not open:
    nothing was changed then.
    """
    write_atomic(_next(secrets), os.urandom(KEY_LENGTH), mode=0o600)
    new = Vault.load(_next(secrets))
    with registry.durably() as connection:
        count = _reseal(connection, generation, generation.c.kid, generation.c.psk, (b"psk", old, new))
        count += _reseal(connection, release, release.c.path, release.c.ck, (b"content key", old, new))
        _name(connection, new)
    _settle(secrets)
    _forget_old_pages(database)
    return count


def _reseal(
    connection: sa.Connection,
    table: sa.Table,
    owner: sa.Column[Any],
    value: sa.Column[Any],
    how: tuple[bytes, Vault, Vault],
) -> int:
    purpose, old, new = how
    count = 0
    for name, sealed in _rows(connection, owner, value):
        place = name if isinstance(name, bytes) else str(name).encode()
        again = new.seal(purpose, place, old.open(purpose, place, sealed))
        connection.execute(sa.update(table).where(owner == name).values({value: again}))
        count += 1
    return count


def _rows(connection: sa.Connection, owner: sa.Column[Any], value: sa.Column[Any]) -> Iterator[tuple[Any, bytes]]:
    """Yield every row that has a value, some at a time: a fleet may have a million devices."""
    query = sa.select(owner, value).where(value.is_not(None)).order_by(owner).limit(_BATCH)
    rows = connection.execute(query).all()
    while rows:
        yield from ((row[0], row[1]) for row in rows)
        rows = connection.execute(query.where(owner > rows[-1][0])).all()


def _name(connection: sa.Connection, vault: Vault) -> None:
    connection.execute(sa.delete(setting).where(setting.c.name == SETTING))
    connection.execute(sa.insert(setting).values(name=SETTING, value=vault.key_id))


def _forget_old_pages(database: Database) -> None:
    """Rewrite the file: what the old key sealed lies in free pages and in the log until then."""
    connection = database.writer()
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _settle(secrets: Path) -> None:
    _next(secrets).replace(_current(secrets))
    fsync_directory(secrets)


def _current(secrets: Path) -> Path:
    return secrets / "data.key"


def _next(secrets: Path) -> Path:
    return secrets / "data.next.key"

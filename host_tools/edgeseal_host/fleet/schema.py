"""The registry's tables (SQLAlchemy Core) and how a database file is opened.

One SQLite file in WAL mode, flushed at every commit: what a publisher, an operator or a device was told survives a
power cut. X1 exchanges share commits (exchanges.py).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from edgeseal.errors import EdgesealError, IncompatibleError, TemporaryError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION: Final = 2
BUSY_MS: Final = 10_000  # another process (`edgeseal fleet token …`) may hold the write lock for a moment
SYNCHRONOUS: Final = "FULL"  # in WAL mode: flush at every commit (https://sqlite.org/pragma.html#pragma_synchronous)
READER_CACHE_KIB: Final = 256  # each session thread has a reader; 2 MiB, the default, times 32 would be much
READ: Final = "edgeseal_read"  # execution option: no transaction around a single SELECT

tables = sa.MetaData()

setting = sa.Table(
    "setting", tables, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False)
)
station = sa.Table(
    "station",
    tables,
    sa.Column("id", sa.String, primary_key=True),  # first 16 bytes of the pin, hex
    sa.Column("name", sa.String, nullable=False),
    sa.Column("public", sa.LargeBinary, nullable=False),
    sa.Column("group_names", sa.String, nullable=False),  # its devices may join; one per line; empty means any
    sa.Column("trusted_at", sa.BigInteger, nullable=False),
    sa.Column("distrusted_at", sa.BigInteger),  # kept: whose records were taken must stay known
    sa.Column("reason", sa.String),
)
device = sa.Table(
    "device",
    tables,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("serial", sa.String, nullable=False, index=True),
    sa.Column("hardware", sa.String, nullable=False),
    sa.Column("group_name", sa.String, nullable=False, index=True),
    sa.Column("ctr", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("tag", sa.LargeBinary, nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("revoked_reason", sa.String),
    sa.Column("needs_qkd", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("alarms", sa.Integer, nullable=False, server_default="0"),
    sa.Column("enrolled_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger),
    sa.Column("report", sa.LargeBinary),
    sa.Column("station", sa.ForeignKey("station.id")),  # who signed its record; none: brought by hand
    sa.Column("record", sa.LargeBinary),  # digest of it: the same one again is known, also after a re-key
)
generation = sa.Table(
    "generation",
    tables,
    sa.Column("kid", sa.LargeBinary, primary_key=True),
    sa.Column("device", sa.ForeignKey("device.name", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("suite", sa.Integer, nullable=False),
    sa.Column("public", sa.LargeBinary, nullable=False, unique=True),  # a known key again: somebody's RNG is dead
    sa.Column("psk", sa.LargeBinary, nullable=False),  # sealed by the vault
    sa.Column("pending", sa.Boolean, nullable=False),
)
release = sa.Table(
    "release",
    tables,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("path", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("hardware", sa.String, nullable=False),  # one name per line; empty means any
    sa.Column("floor", sa.BigInteger, nullable=False),  # lowest release of this model that may still be handed out
    sa.Column("listed", sa.Boolean, nullable=False),
    sa.Column("ck", sa.LargeBinary),  # sealed by the vault
)
assignment = sa.Table(
    "assignment",
    tables,
    sa.Column("kind", sa.String, primary_key=True),  # device or group
    sa.Column("target", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("not_after", sa.BigInteger),
    sa.Column("made_at", sa.BigInteger, nullable=False),
)
token = sa.Table(
    "token",
    tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("scopes", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
    sa.Column("made_at", sa.BigInteger, nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False, server_default=sa.false()),
)
metadata_file = sa.Table(
    "metadata_file",
    tables,
    sa.Column("role", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),  # roots keep all; others their latest
    sa.Column("data", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Database:
    """An open database: an engine for what happens now and then, driver connections for X1."""

    path: Path
    engine: sa.Engine
    _kept: list[sqlite3.Connection] = field(default_factory=list)

    def writer(self) -> sqlite3.Connection:
        """Return a driver connection in autocommit mode; `close` closes it."""
        connection = sqlite3.connect(self.path, timeout=BUSY_MS / 1000, check_same_thread=False)
        set_up(connection)
        self._kept.append(connection)
        return connection

    def reader(self) -> sqlite3.Connection:
        """Return a driver connection for one thread's SELECTs."""
        connection = self.writer()
        connection.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
        connection.execute("PRAGMA query_only=ON")
        return connection

    def close(self) -> None:
        """Close all connections."""
        while self._kept:
            self._kept.pop().close()
        self.engine.dispose()


def create(path: Path) -> None:
    """Make a new, empty database file, readable by its owner only."""
    path.touch(mode=0o600)
    engine = _engine(path)
    with engine.begin() as connection:
        tables.create_all(connection)
        connection.execute(sa.insert(setting).values(name="schema", value=str(SCHEMA_VERSION)))
    engine.dispose()


def open_database(path: Path) -> Database:
    """Open an existing database file.

    Raises IncompatibleError for another schema version, EdgesealError for a file that is not a registry.
    """
    version, found = _opened(path)
    if version != SCHEMA_VERSION:
        found.close()
        raise other_version(path.name, version)
    return found


def version_of(path: Path) -> int:
    """Return the schema version of a database file.

    Raises EdgesealError for a file that is not a registry.
    """
    version, found = _opened(path)
    found.close()
    return version


def _opened(path: Path) -> tuple[int, Database]:
    if not path.is_file():
        raise EdgesealError(f"{path.name} is not there", hint="edgeseal fleet init makes it; or restore it from backup")
    found = Database(path, _engine(path))
    try:
        with found.engine.connect() as connection:
            value = connection.execute(sa.select(setting.c.value).where(setting.c.name == "schema")).scalar()
    except sa.exc.OperationalError as e:
        found.close()
        if "locked" in str(e.orig):
            raise TemporaryError(f"{path.name} is locked by another process") from e
        raise EdgesealError(f"{path.name} cannot be read: {e.orig}") from e
    except sa.exc.DatabaseError as e:
        found.close()
        raise EdgesealError(f"{path.name} is not a fleet registry: {e.orig}", hint="restore it from backup") from e
    if value is None or not value.isdigit():
        found.close()
        raise EdgesealError(f"{path.name} does not say which registry it is", hint="restore it from backup")
    return int(value), found


def other_version(name: str, found: int) -> IncompatibleError:
    """Return the error for a registry of another schema version."""
    older = found < SCHEMA_VERSION
    return IncompatibleError(
        f"{name} has schema version {found}; this edgeseal works with {SCHEMA_VERSION}",
        hint="stop the server, then: edgeseal fleet upgrade --data DIR" if older else "use the edgeseal that wrote it",
    )


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_MS / 1000, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        set_up(connection)

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get(READ):
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # a later upgrade from reader to writer could fail

    return engine


def set_up(connection: sqlite3.Connection) -> None:
    """Make a driver connection one of this registry's: autocommit, WAL, flushed, foreign keys kept."""
    connection.isolation_level = None  # we say BEGIN ourselves
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
    connection.execute("PRAGMA foreign_keys=ON")

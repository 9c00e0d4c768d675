"""Devices and their key generations in SQL, behind the interface of `edgeseal.session.server`.

One transaction writes at a time: a lock within the process, BEGIN IMMEDIATE between processes. COMMIT flushes to disk,
which is costly; X1 exchanges that wait at the same time share one (`group`). PSKs are sealed by the vault. Not here:
what devices are told (checkin.py).
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from edgeseal.errors import EdgesealError, NotAuthorisedError
from edgeseal.session.server import Row
from edgeseal.suite import PublicKey
from edgeseal_host.fleet import enrolling
from edgeseal_host.fleet.prepared import Prepared
from edgeseal_host.fleet.schema import READ, Database, assignment, device, generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.enrolment import Record
    from edgeseal_host.fleet.vault import Vault

RESTORE_STEP: Final = 65_536  # session.md §12: beyond any counter used since the backup

_FIND: Final = Prepared(
    sa.select(
        generation.c.device,
        generation.c.kid,
        generation.c.suite,
        generation.c.public,
        generation.c.psk,
        generation.c.pending,
        device.c.needs_qkd,
    )
    .join(device, device.c.name == generation.c.device)
    .where(generation.c.kid == sa.bindparam("kid"))
)
_REVOKED: Final = Prepared(sa.select(device.c.revoked).where(device.c.name == sa.bindparam("d")))
_COUNTER: Final = Prepared(sa.select(device.c.ctr, device.c.tag).where(device.c.name == sa.bindparam("d")))
# Every condition of session.md §7 step 4b in one statement: of parallel duplicates exactly one succeeds.
_ADVANCE: Final = Prepared(
    sa.update(device)
    .where(
        device.c.name == sa.bindparam("d"),
        device.c.ctr < sa.bindparam("c"),
        device.c.ctr >= sa.bindparam("lowest"),
        sa.not_(device.c.revoked),
        sa.exists().where(generation.c.kid == sa.bindparam("k"), generation.c.device == device.c.name),
    )
    .values(ctr=sa.bindparam("c"), tag=sa.bindparam("t"), alarms=device.c.alarms + sa.bindparam("a"))
)


_PROMOTE_DROP: Final = Prepared(
    sa.delete(generation).where(generation.c.device == sa.bindparam("d"), generation.c.kid != sa.bindparam("k"))
)
_PROMOTE: Final = Prepared(
    sa.update(generation).where(generation.c.kid == sa.bindparam("k")).values(pending=sa.bindparam("p"))
)
_HOLDER: Final = Prepared(
    sa.select(generation.c.device, generation.c.pending).where(generation.c.public == sa.bindparam("pk"))
)
_DROP_PENDING: Final = Prepared(
    sa.delete(generation).where(generation.c.device == sa.bindparam("d"), generation.c.pending)
)
_ADD: Final = Prepared(sa.insert(generation))
_CURRENT: Final = Prepared(
    sa.select(generation.c.kid).where(generation.c.device == sa.bindparam("d"), sa.not_(generation.c.pending))
)


class SqlTransaction:
    """One write transaction on the driver's connection."""

    def __init__(self, connection: sqlite3.Connection, vault: Vault) -> None:
        """Work on a connection that is inside a transaction."""
        self._connection = connection
        self.vault = vault
        self.outcome = "ok"  # for the metrics; the answer itself is sealed

    def run(self, statement: Prepared, values: dict[str, Any]) -> sqlite3.Cursor:
        """Execute a statement inside this transaction."""
        return statement.run(self._connection, values)

    def revoked(self, row: Row) -> bool:
        """Whether the device is revoked; a device that is gone counts as such."""
        found = self.run(_REVOKED, {"d": row.device}).fetchone()
        if found is None or found[0]:
            self.outcome = "revoked"
            return True
        return False

    def advance(self, row: Row, *, ctr: int, tag: bytes, lowest: int, resynced: bool) -> bool:
        """Conditional update of counter and tag."""
        values = {"d": row.device, "k": row.kid, "c": ctr, "t": tag, "lowest": lowest, "a": int(resynced)}
        done = self.run(_ADVANCE, values).rowcount == 1
        if not done:
            self.outcome = "stale"
        return done

    def counter(self, row: Row) -> tuple[int, bytes]:
        """Return stored counter and tag."""
        ctr, tag = self.run(_COUNTER, {"d": row.device}).fetchone()
        return ctr, tag

    def promote(self, row: Row) -> None:
        """Make a pending generation the only one."""
        self.run(_PROMOTE_DROP, {"d": row.device, "k": row.kid})
        self.run(_PROMOTE, {"k": row.kid, "p": False})

    def add_pending(self, row: Row, *, suite: int, public: bytes, psk: bytes) -> bool:
        """Store a pending generation, replacing this device's earlier pending one."""
        known = self.run(_HOLDER, {"pk": public}).fetchone()
        if known is not None and not (known[1] and known[0] == row.device):
            self.outcome = "denied"
            return False
        self.run(_DROP_PENDING, {"d": row.device})
        self.run(_ADD, enrolling.generation_values(self.vault, row.device, PublicKey(suite, public), psk, pending=True))
        self.outcome = "rekey"
        return True


class Group:
    """Exchanges that share one commit."""

    def __init__(self, connection: sqlite3.Connection, vault: Vault) -> None:
        """Work on a connection that is inside a transaction."""
        self._connection, self._vault = connection, vault

    @contextmanager
    def step(self) -> Iterator[SqlTransaction]:
        """Run one exchange's part: an exception undoes this part alone and passes through.

        Raises GroupLostError if the database has undone the whole group, as it does when a disk is full.
        """
        connection = self._connection
        connection.execute("SAVEPOINT step")
        try:
            yield SqlTransaction(connection, self._vault)
            connection.execute("RELEASE step")
        except BaseException as e:
            if not connection.in_transaction:
                raise GroupLostError from e
            connection.execute("ROLLBACK TO step")
            connection.execute("RELEASE step")
            raise


class GroupLostError(EdgesealError):
    """No step of a group was kept."""

    def __init__(self) -> None:
        """There is one thing to say."""
        super().__init__(
            "the registry could not write to disk: nothing of these exchanges was kept",
            hint="look at the server's disk: is it full, read-only or failing? Devices try again by themselves",
        )


class SqlRegistry:
    """All devices."""

    def __init__(self, database: Database, vault: Vault) -> None:
        """Use an open database and the key that seals its secrets."""
        self._database = database
        self._vault = vault
        self._reader = database.engine.execution_options(**{READ: True})
        self._write = threading.Lock()  # SQLite has one writer; waiting here is fair and needs no polling
        self._writer = database.writer()
        self._local = threading.local()

    def find(self, kid_d: bytes) -> Row | None:
        """Return the generation with that key id."""
        found = self.run(_FIND, {"kid": kid_d}).fetchone()
        if found is None:
            return None
        name, kid, suite, public, psk, pending, needs_qkd = found
        opened = self._vault.open(b"psk", kid, psk)
        return Row(name, kid, suite, public, opened, bool(pending), bool(needs_qkd))

    @contextmanager
    def transaction(self) -> Iterator[SqlTransaction]:
        """Begin a serializable transaction of an X1 exchange; once it is left, it survives a power cut.

        Raises EdgesealError if it could not be written.
        """
        with self.group() as group, group.step() as tx:
            yield tx

    @contextmanager
    def group(self) -> Iterator[Group]:
        """Begin a transaction of several exchanges; once it is left, all of them survive a power cut.

        Raises EdgesealError if it could not be written: then nothing of it is kept.
        """
        with self._write:
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Group(connection, self._vault)
                _commit(connection)
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def run(self, statement: Prepared, values: dict[str, Any]) -> sqlite3.Cursor:
        """Execute a single SELECT outside of any transaction."""
        return statement.run(self._connection(), values)

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's own reader."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._database.reader()
        return found

    @contextmanager
    def durably(self) -> Iterator[sa.Connection]:
        """Begin a transaction that survives a power cut once it is left."""
        with self._write, self._database.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Connect for SELECTs."""
        with self._reader.connect() as connection:
            yield connection

    def knows(self, record: Record) -> bool:
        """Whether exactly this record was taken before."""
        with self.read() as connection:
            return enrolling.known(connection, record)

    def enrol(self, record: Record, psk: bytes, *, now: int, station: str | None = None) -> bool:
        """Add a device; False if exactly this one is there already. `station`: id of who signed the record.

        Raises RefusedError for a name, key or serial number that is taken, NotAuthorisedError for a station that is
        not trusted.
        """
        with self.durably() as connection:
            return enrolling.enrol(connection, self._vault, record, psk, station_id=station, now=now)

    def revoke(self, name: str, reason: str) -> None:
        """Refuse a device from now on.

        Raises NotAuthorisedError for an unknown device.
        """
        with self.durably() as connection:
            update = sa.update(device).where(device.c.name == name).values(revoked=True, revoked_reason=reason)
            if connection.execute(update).rowcount != 1:
                raise unknown_device(name)

    def forget(self, name: str) -> None:
        """Delete a device with its keys and its own assignments; its name and key may be enrolled again.

        Raises NotAuthorisedError for an unknown device.
        """
        with self.durably() as connection:
            own = assignment.c.kind == "device", assignment.c.target == name
            connection.execute(sa.delete(assignment).where(*own))
            if connection.execute(sa.delete(device).where(device.c.name == name)).rowcount != 1:
                raise unknown_device(name)

    def after_restore(self) -> int:
        """Apply the rule for a registry that came from a backup; returns the number of devices."""
        with self.durably() as connection:
            return connection.execute(sa.update(device).values(ctr=device.c.ctr + RESTORE_STEP, tag=b"")).rowcount

    def current_generation(self, name: str) -> Row:
        """Return a device's accepted generation.

        Raises NotAuthorisedError for an unknown or revoked device.
        """
        state = self.run(_REVOKED, {"d": name}).fetchone()
        current = self.run(_CURRENT, {"d": name}).fetchone()
        row = None if current is None else self.find(current[0])
        if state is None or row is None:
            raise unknown_device(name)
        if state[0]:
            raise NotAuthorisedError(f"device {name} is revoked", hint="it gets no content key any more")
        return row


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as e:
        raise GroupLostError from e


def unknown_device(name: str) -> NotAuthorisedError:
    """Return the error for a name nobody has."""
    return NotAuthorisedError(f"no device is called {name[:80]!r}", hint="edgeseal device list shows all names")

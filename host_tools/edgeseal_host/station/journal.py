"""A station's journal: one SQLite file that only grows, and a small file beside it that knows where it ends.

Every entry is flushed to disk before the call that wrote it returns. Triggers refuse to change or remove entries; the
chain (chain.py) shows it if somebody does so all the same, `journal.head` if the newest ones were cut off. One process
writes at a time; the caller holds the station's lock.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Final

from edgeseal.durable import write_atomic
from edgeseal.errors import EdgesealError, IntegrityError, NoSpaceError, TemporaryError
from edgeseal.provisioning import Offer
from edgeseal_host.station import chain
from edgeseal_host.station.chain import COLUMNS, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUSY_MS: Final = 10_000
_SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)  # the second from a message that quotes a damaged schema
_NAMES: Final = ", ".join(COLUMNS)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (
  n INTEGER PRIMARY KEY, kind TEXT NOT NULL, provision_ts INTEGER NOT NULL, operator TEXT NOT NULL,
  fixture TEXT NOT NULL,
  batch TEXT NOT NULL, device TEXT NOT NULL, serial TEXT NOT NULL, eth_mac TEXT NOT NULL, mmc_cid TEXT NOT NULL,
  rpi_duid TEXT NOT NULL, board_revision TEXT NOT NULL, kid BLOB NOT NULL, offer BLOB NOT NULL, timings TEXT NOT NULL,
  detail TEXT NOT NULL, previous BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS entry_by_kid ON entry (kid, kind);
CREATE INDEX IF NOT EXISTS entry_by_serial ON entry (serial, kind);
CREATE INDEX IF NOT EXISTS entry_by_kind ON entry (kind, device);
CREATE TRIGGER IF NOT EXISTS entry_stays BEFORE UPDATE ON entry
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entry_is_kept BEFORE DELETE ON entry
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entry_follows BEFORE INSERT ON entry
  WHEN NEW.n != (SELECT COALESCE(MAX(n), 0) + 1 FROM entry)
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


class Journal:
    """An open journal. `now` in Unix seconds stamps every entry."""

    def __init__(self, path: Path, *, now: Callable[[], int]) -> None:
        """Open the file, making it if there is none.

        Raises EdgesealError if it is no journal, TemporaryError, NoSpaceError.
        """
        self.path = path
        self._head_file = path.with_suffix(".head")
        self._now = now
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None)
        self._connection.text_factory = _text
        try:
            self._set_up()
            self._last = self._one("ORDER BY n DESC LIMIT 1")
        except BaseException as e:
            self._connection.close()
            if isinstance(e, _SQLITE_ERRORS):
                raise _as_ours(e, path.name) from e
            raise

    def _set_up(self) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "recursive_triggers=ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # Writing -----------------------------------------------------------------------------------------------------

    def append(self, kind: str, *, detail: dict[str, Any] | None = None, **values: Any) -> Entry:  # noqa: ANN401 - an Entry's fields
        """Add an entry; once this returns it survives a power cut.

        Raises NoSpaceError, TemporaryError, EdgesealError: then it is not there.
        """
        detail_text = json.dumps(detail or {}, sort_keys=True, ensure_ascii=False)
        fresh = Entry(n=0, kind=kind, provision_ts=self._now(), detail=detail_text, **values)
        entry = chain.linked(fresh, self._last)
        self._insert(entry)
        self._last = entry
        write_atomic(self._head_file, f"{entry.n} {entry.hash.hex()}\n".encode())
        return entry

    def _insert(self, entry: Entry) -> None:
        marks = ", ".join("?" * len(COLUMNS))
        try:
            self._connection.execute(f"INSERT INTO entry ({_NAMES}) VALUES ({marks})", astuple(entry))  # noqa: S608 - our own names
        except sqlite3.Error as e:
            raise _as_ours(e, self.path.name) from e

    def end(self, sign: Callable[[bytes], bytes], *, detail: dict[str, Any], **values: Any) -> Entry:  # noqa: ANN401
        """Add the entry that ends a run: `sign` signs everything before it under `chain.CONTEXT`."""
        head = self._last.hash if self._last else chain.START
        return self.append(chain.ENDED, detail={**detail, "signature": sign(head).hex()}, **values)

    # Reading -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        """All entries, oldest first."""
        yield from self._many("ORDER BY n")

    def of_kind(self, kind: str, *, after: int = 0) -> Iterator[Entry]:
        """Entries of one kind that follow entry `after`, oldest first."""
        yield from self._many("WHERE kind = ? AND n > ? ORDER BY n", kind, after)

    def last(self, kind: str, **where: object) -> Entry | None:
        """Return the newest entry of a kind with these values."""
        conditions = "".join(f" AND {name} = ?" for name in where)
        return self._one(f"WHERE kind = ?{conditions} ORDER BY n DESC LIMIT 1", kind, *where.values())

    @property
    def head(self) -> Entry | None:
        """The newest entry."""
        return self._last

    def count(self, kind: str, **where: object) -> int:
        """How many entries of a kind with these values there are."""
        conditions = "".join(f" AND {name} = ?" for name in where)
        rows = self._execute(f"SELECT COUNT(*) FROM entry WHERE kind = ?{conditions}", kind, *where.values())  # noqa: S608
        return int(rows.fetchone()[0])

    def verify(self, check: Callable[[bytes, bytes], bool]) -> tuple[int, int]:
        """Check the chain, its signatures and that nothing is missing at its end; see `chain.check`.

        Raises IntegrityError.
        """
        result = chain.check(self, check)
        self._check_head()
        self._check_indexes()
        return result

    def _check_indexes(self) -> None:
        """Check what the chain does not read: whether a device is known is looked up in indexes, which could lie."""
        found = self._execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise IntegrityError(
                f"{self.path.name} is damaged: {found}",
                hint="stop the line and restore the journal from its last backup",
            )

    def _check_head(self) -> None:
        if self._last is None:
            if self._head_file.exists():
                raise self._shortened(0)
            return
        try:
            number, _, digest = self._head_file.read_text("ascii").strip().partition(" ")
            known = int(number)
        except FileNotFoundError:
            if self._last.n > 1:  # the very first may have been cut off from its head by a power cut
                raise IntegrityError(
                    f"{self._head_file.name} is missing: nobody can tell whether the newest entries are there",
                    hint="restore both files from the same backup",
                ) from None
            return
        except ValueError:
            raise IntegrityError(f"{self._head_file.name} is damaged", hint="restore it from backup") from None
        found = self._one("WHERE n = ?", known)
        if found is None:
            raise self._shortened(known)
        if found.hash.hex() != digest:
            raise IntegrityError(
                f"the journal is not what was written: entry {known} is another one than its head says"
            )

    def _shortened(self, known: int) -> IntegrityError:
        last = self._last.n if self._last else 0
        return IntegrityError(
            f"the journal ends with entry {last}, but had {known or 'some'}: the newest were removed",
            hint="stop the line and restore the journal from its last backup",
        )

    def _one(self, rest: str, *values: object) -> Entry | None:
        return next(self._many(rest, *values), None)

    def _many(self, rest: str, *values: object) -> Iterator[Entry]:
        with closing(self._execute(f"SELECT {_NAMES} FROM entry {rest}", *values)) as rows:  # noqa: S608 - our own text
            while True:
                try:
                    row = rows.fetchone()
                except _SQLITE_ERRORS as e:
                    raise _as_ours(e, self.path.name) from e
                if row is None:
                    return
                yield Entry(*row)

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except _SQLITE_ERRORS as e:
            raise _as_ours(e, self.path.name) from e


def offer_of(entry: Entry) -> Offer:
    """Return the offer an entry keeps.

    Raises FormatError for an entry without one.
    """
    return Offer.from_bytes(entry.offer)


def _text(data: bytes) -> str:
    """Decode any bytes: those that are no text were not written by us, and the chain says which entry they are in."""
    return data.decode("utf-8", "replace")


def _as_ours(e: sqlite3.Error | UnicodeDecodeError, name: str) -> EdgesealError:
    """Say what SQLite found, in our classes."""
    code = getattr(e, "sqlite_errorname", "SQLITE_ERROR")
    if code == "SQLITE_FULL":
        return NoSpaceError(f"there is no space left to write {name}", hint="free some space on the station")
    if isinstance(e, sqlite3.OperationalError) and code != "SQLITE_ERROR":  # that one: its own tables are not there
        return TemporaryError(f"{name}: {e}", hint="is the disk there, writable and not full?")
    return EdgesealError(f"{name} is not a station's journal, or damaged: {e}", hint="restore it from backup")

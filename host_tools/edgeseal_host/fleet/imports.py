"""Taking over enrolment records that a station has signed: one that was sent, or a file's, each line for itself."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import sqlalchemy as sa

from edgeseal.enrolment import Record
from edgeseal.errors import EdgesealError, NotAuthorisedError, RefusedError
from edgeseal_host.fleet import operations
from edgeseal_host.fleet.stations import short
from edgeseal_host.station import enrolments, receipts
from edgeseal_host.station.enrolments import Bad, Header, SignedRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal_host.fleet.data import Fleet

Outcome: TypeAlias = Literal["registered", "known", "refused"]


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one line; `number` as an editor counts them, `station` its id, `digest` of a record that is in."""

    number: int
    station: str
    device: str
    outcome: Outcome
    reason: str = ""
    digest: bytes = b""


def take(fleet: Fleet, signed: SignedRecord, *, now: int) -> tuple[Record, dict[str, Any]]:
    """Register the device of one record; returns what was registered, and the API's answer.

    Raises NotAuthorisedError for a station that is not trusted, IntegrityError for a signature that is not its,
    FormatError, RefusedError for what is taken. Nothing is changed then.
    """
    station = fleet.stations.find(signed.pin)
    signed.check(station.public)
    record = Record.from_bytes(signed.record)
    return record, operations.enrol(fleet, record, now=now, station=station.id)


def import_enrolments(fleet: Fleet, file: BinaryIO, *, now: int) -> Iterator[Line]:
    """Register every device of a file; a line that is refused changes nothing and stops no other.

    Raises FormatError or IncompatibleError at the first line for what is no such file, NoSpaceError or TemporaryError
    if the registry fails: what was registered before stays.
    """
    try:
        yield from _import(fleet, file, now=now)
    except (sa.exc.DBAPIError, sqlite3.Error) as e:
        raise operations.database_error(e) from e


def _import(fleet: Fleet, file: BinaryIO, *, now: int) -> Iterator[Line]:
    part: _Part | None = None
    seen: dict[bytes, int] = {}
    number = 0
    for number, item in enrolments.read(file):
        if isinstance(item, Header):
            if part is not None and (missing := part.missing(number)):
                yield missing
            part = _Part(fleet, item, seen)
            if refused := part.refused(number):
                yield refused
        else:
            assert part is not None  # noqa: S101 - `read` begins with a header
            yield part.line(number, item, now=now)
    if part is not None and (missing := part.missing(number)):
        yield missing


@dataclass
class _Part:
    """One station's lines of a file."""

    fleet: Fleet
    header: Header
    seen: dict[bytes, int]  # of the whole file, by digest
    count: int = 0
    refused_at: int | None = None

    @property
    def id(self) -> str:
        return short(self.header.pin)

    def refused(self, number: int) -> Line | None:
        """Say once that nothing of this station can be taken."""
        try:
            self.fleet.stations.find(self.header.pin)
        except NotAuthorisedError as e:
            self.refused_at = number
            return Line(number, self.id, "", "refused", str(e))
        return None

    def line(self, number: int, item: SignedRecord | Bad, *, now: int) -> Line:
        self.count += 1
        device, digest = "", b""
        try:
            if isinstance(item, Bad):
                raise item.error
            device, digest = _claimed(item.record), receipts.digest(item.record)
            if self.refused_at is not None:
                raise NotAuthorisedError(f"its station is refused, see line {self.refused_at}")
            if (before := self.seen.setdefault(digest, number)) != number:
                raise RefusedError(f"the record of line {before} once more")
            _, result = take(self.fleet, item, now=now)
        except EdgesealError as e:
            return Line(number, self.id, device, "refused", str(e))
        if result["new"]:
            return Line(number, self.id, device, "registered", digest=digest)
        return Line(number, self.id, device, "known", "it was registered before", digest)

    def missing(self, number: int) -> Line | None:
        """Notice that lines are missing, as when a file was cut off between two."""
        if self.count == self.header.count:
            return None
        reason = f"of {self.header.count} records {self.count} came: carry the file again"
        return Line(number, self.id, "", "refused", reason)


def _claimed(data: bytes) -> str:
    """Return the name in a record that nobody has verified, to say which line is meant; it is checked text."""
    try:
        return Record.from_bytes(data).device
    except EdgesealError:
        return ""

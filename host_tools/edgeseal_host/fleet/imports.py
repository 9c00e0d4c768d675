"""Taking over enrolment records that a station has signed and somebody has carried here: each line for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeseal.enrolment import Record
from edgeseal.errors import EdgesealError, RefusedError
from edgeseal_host.fleet import operations
from edgeseal_host.station import enrolments

if TYPE_CHECKING:
    from edgeseal_host.fleet.data import Fleet
    from edgeseal_host.fleet.stations import TrustedStation, TrustedStations


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one line; `number` as an editor counts them."""

    number: int
    device: str
    outcome: Literal["registered", "known", "refused"]
    reason: str = ""


def import_enrolments(
    fleet: Fleet, stations: TrustedStations, data: bytes, *, now: int
) -> tuple[TrustedStation, list[Line]]:
    """Register every device of a file; a line that is refused changes nothing and stops no other.

    Raises NotAuthorisedError for an unknown station, FormatError or IncompatibleError for what is no such file.
    """
    pin, _, lines = enrolments.read_header(data)
    station = stations.find(pin)
    seen: dict[bytes, int] = {}
    return station, [_one(fleet, station, n, line, seen, now=now) for n, line in enumerate(lines, 2)]


def _one(fleet: Fleet, station: TrustedStation, number: int, line: bytes, seen: dict[bytes, int], *, now: int) -> Line:
    device = ""
    try:
        signed = enrolments.read_line(number, line)
        signed.check(station.public)
        record = Record.from_bytes(signed.record)
        device = record.device
        if (before := seen.setdefault(record.public, number)) != number:
            raise RefusedError(f"the device of line {before} once more")
        new = operations.enrol(fleet, record, now=now)["new"]
    except EdgesealError as e:
        return Line(number, device, "refused", str(e))
    return Line(number, device, "registered" if new else "known", "" if new else "it was registered before")

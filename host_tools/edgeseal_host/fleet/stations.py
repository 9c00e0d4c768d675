"""The manufacturing stations whose enrolment records this fleet takes: their public keys, one file each.

    stations/<station id, 16 bytes hex>.json    name and ML-DSA-65 public key

Trusting a station means: whatever device it signs for becomes a member of this fleet.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.errors import FormatError, NotAuthorisedError, UsageError
from edgeseal.provisioning import pin

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1
_ID_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class TrustedStation:
    """A station; `public` is FIPS 204's encoding of its ML-DSA-65 key."""

    name: str
    public: bytes

    @property
    def pin(self) -> bytes:
        """48 bytes that its files name it by."""
        return pin(self.public)

    @property
    def id(self) -> str:
        """What a person types: the first 16 bytes of the pin."""
        return self.pin[:_ID_LENGTH].hex()


class TrustedStations:
    """All of a fleet."""

    def __init__(self, directory: Path) -> None:
        """Name the directory; it need not exist."""
        self._directory = directory

    def trust(self, station: TrustedStation) -> bool:
        """Add a station; False if it is there already."""
        file = self._directory / f"{station.id}.json"
        if file.exists():
            return False
        self._directory.mkdir(mode=0o755, exist_ok=True)
        body = {"format": FORMAT, "name": station.name, "public": base64.b64encode(station.public).decode()}
        write_atomic(file, json.dumps(body).encode() + b"\n", mode=0o644)
        fsync_directory(self._directory.parent)
        return True

    def distrust(self, id_: str) -> TrustedStation:
        """Remove a station; devices it has brought stay.

        Raises UsageError if there is none of that id.
        """
        for station in self.list():
            if station.id == id_:
                (self._directory / f"{id_}.json").unlink()
                fsync_directory(self._directory)
                return station
        raise UsageError(f"no station {id_[:64]!r} is trusted", hint="edgeseal fleet stations lists them")

    def list(self) -> list[TrustedStation]:
        """Return all, by id."""
        return [_load(file) for file in sorted(self._directory.glob("*.json"))]

    def find(self, station_pin: bytes) -> TrustedStation:
        """Return the station with this pin.

        Raises NotAuthorisedError if it is not trusted.
        """
        for station in self.list():
            if station.pin == station_pin:
                return station
        raise NotAuthorisedError(
            f"these records are from station {station_pin[:_ID_LENGTH].hex()}, which this fleet does not trust",
            hint="compare the id with the station's (edgeseal station status), then: edgeseal fleet trust-station",
        )


def _load(file: Path) -> TrustedStation:
    try:
        body = json.loads(file.read_bytes())
        station = TrustedStation(str(body["name"]), base64.b64decode(body["public"], validate=True))
    except (ValueError, KeyError, TypeError) as e:
        raise FormatError(f"{file.name} is damaged", hint="remove it and trust the station again") from e
    if f"{station.id}.json" != file.name:
        raise FormatError(f"{file.name} holds the key of station {station.id}", hint="somebody has changed the file")
    return station

"""A station with devices, and the fleet it works for: records made, signed, carried, sent; for tests of that way."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from tests.unit.station_world import World

from edgeseal.provisioning import pin
from edgeseal_host.fleet import imports
from edgeseal_host.fleet.stations import TrustedStation
from edgeseal_host.station import enrolments
from edgeseal_host.station.devices import newest, offer_for
from edgeseal_host.station.directory import StationKey
from edgeseal_host.station.enrolments import Signer
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgeseal_host.fleet.imports import Line

NOW = 1_790_000_000


@dataclass
class Records:
    """A station world whose devices left the line."""

    world: World
    homes: list[MemoryHome]
    records: list[bytes]

    @classmethod
    def make(cls, place: Path, count: int = 3) -> Records:
        made = cls(World.make(place), [], [])
        for _ in range(count):
            made.provision()
        return made

    def copied(self, place: Path) -> Records:
        return Records(self.world.copied(place), list(self.homes), list(self.records))

    def provision(self, serial: str | None = None) -> MemoryHome:
        home = MemoryHome(serial=serial or f"1000{len(self.homes) + 1:04}")
        with self.world.journal() as journal:
            assert self.world.provision(self.world.book(journal), home).passed
            self.records = [offer_for(journal, m.entry.kid).record for m in newest(journal)]
        self.homes.append(home)
        return home

    @property
    def station(self) -> StationKey:
        return self.world.directory.public()

    @property
    def signer(self) -> Signer:
        return Signer.of(self.station, self.world.key)

    def carried(self, records: Sequence[bytes] | None = None, signer: Signer | None = None) -> bytes:
        """Return a carried file."""
        return b"".join(enrolments.write(self.records if records is None else records, signer or self.signer))

    def trust(self, signer: Signer | None = None, *, name: str = "line 1") -> str:
        """Let the fleet trust a station; returns its id."""
        public = self.station.raw if signer is None else PUBLIC[signer.pin]
        station = TrustedStation(name, public)
        with self.world.data.open() as fleet:
            fleet.stations.trust(station, now=NOW)
        return station.id

    def take(self, data: bytes) -> list[Line]:
        """Import a carried file."""
        with self.world.data.open() as fleet:
            return list(imports.import_enrolments(fleet, io.BytesIO(data), now=NOW))

    def devices(self) -> dict[str, dict[str, Any]]:
        """Return what the registry has, by name."""
        from edgeseal_host.fleet import operations

        with self.world.data.open() as fleet:
            return {d["name"]: d for d in operations.devices(fleet)}

    @property
    def keys(self) -> tuple[str, ...]:
        """Options with which a command works on this station."""
        place = self.world.place
        directory, keys, passphrase = (str(place / name) for name in ("station", "keys", "passphrase"))
        return "--station", directory, "--keys", keys, "--passphrase-file", passphrase

    @property
    def data(self) -> tuple[str, ...]:
        """Options with which a command works on this fleet."""
        return "--data", str(self.world.data.path)


PUBLIC: dict[bytes, bytes] = {}


def other_signer(name: str = "line 2") -> Signer:
    """Return another station's signer."""
    key = MLDSA65PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    PUBLIC[pin(public)] = public
    return Signer.of(StationKey(name, public), key)


def outcomes(lines: Sequence[Line]) -> list[str]:
    return [line.outcome for line in lines]


def now() -> int:
    return int(time.time())

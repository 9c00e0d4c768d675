"""A manufacturing station for tests: its directory and key, a fleet's public files, a batch, devices in memory."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tests.unit.fleet_world import Publisher

from edgeseal.provisioning import Order, Station, Verdict
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.station import batch as batches
from edgeseal_host.station import chain
from edgeseal_host.station.book import PortBook
from edgeseal_host.station.directory import StationDirectory
from edgeseal_host.testing.provisioning import Link, MemoryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    from edgeseal.provisioning import Book
    from edgeseal_host.station.batch import Batch
    from edgeseal_host.station.journal import Journal

PASSPHRASE = b"correct horse"
BATCH = """
[batch]
name = "2026-11-a"
entropy = "mix"
group = "presses"
[fleet]
public = "public.json"
root = "root.json"
[names]
pattern = "press-{number:04}"
"""


@dataclass
class World:
    """One station and the fleet it works for."""

    place: Path
    directory: StationDirectory
    data: DataDirectory
    publisher: Publisher
    batch: Batch
    key: MLDSA65PrivateKey = field(repr=False)

    @classmethod
    def make(cls, place: Path, *, text: str = BATCH) -> World:
        """Make everything; the passphrase is PASSPHRASE."""
        place.mkdir(exist_ok=True, parents=True)
        data = DataDirectory(place / "fleet")
        public = data.create("http://127.0.0.1:8443", now=int(time.time()))
        publisher = Publisher(public)
        (place / "root.json").write_bytes(publisher.root_bytes())
        public.save(place / "public.json")
        (place / "batch.toml").write_text(text)
        (place / "passphrase").write_bytes(PASSPHRASE + b"\n")
        directory = StationDirectory(place / "station", KeyDirectory(place / "keys"))
        directory.create("line 1", "line-1", PASSPHRASE)
        key = directory.keys.mldsa65("line-1", PASSPHRASE)
        return cls(place, directory, data, publisher, batches.load(place / "batch.toml"), key)

    def copied(self, place: Path) -> World:
        """Return the same station with files of its own."""
        shutil.copytree(self.place, place)
        directory = StationDirectory(place / "station", KeyDirectory(place / "keys"))
        return replace(self, place=place, directory=directory, data=DataDirectory(place / "fleet"))

    def sign(self, head: bytes) -> bytes:
        return self.key.sign(head, chain.CONTEXT)

    def order(self) -> Order:
        return self.batch.order(station="line 1", pin=self.directory.public().pin, now=int(time.time()))

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        with self.directory.journal() as journal:
            yield journal

    def book(self, journal: Journal, **changes: Any) -> PortBook:
        values = {"batch": "2026-11-a", "operator": "anna", "fixture": "port-1", "seconds": lambda: 1.0}
        return PortBook(journal, self.batch.naming, **{**values, **changes})

    def provision(self, book: Book, home: MemoryHome, order: Order | None = None) -> Verdict:
        """Hold one dialogue in memory."""
        link = Link()
        station = Station(order or self.order(), book, random=os.urandom, clock=link.clock)
        link.run(station, home.device(link.clock), until=lambda: station.verdict is not None)
        assert station.verdict is not None, station.state
        return station.verdict


def everything_below(place: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file())

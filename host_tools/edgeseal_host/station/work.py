"""What all ports of one run share: order, journal, names, what was scanned, who is being worked on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeseal.provisioning import BYTES_PER_SECOND, Station
from edgeseal.provisioning.conversation import PATIENCE
from edgeseal_host.station.book import PortBook

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.provisioning import Order
    from edgeseal_host.station.journal import Journal
    from edgeseal_host.station.names import Naming


@dataclass
class Work:
    """One run. `rate` in bytes per second of the lines, `patience` in seconds without any answer.

    `scan`: a device waits until its serial number was scanned. `once`: every port serves one device. `fixture` names
    the jig, and stands before the port in every entry.
    """

    order: Order
    journal: Journal
    naming: Naming
    operator: str
    fixture: str = ""
    rate: float = BYTES_PER_SECOND
    patience: float = PATIENCE
    scan: bool = False
    once: bool = False
    clock: Callable[[], float] = time.monotonic
    scanned: set[str] = field(default_factory=set)
    at_work: set[str] = field(default_factory=set)

    def book(self, port: str, seconds: Callable[[], float]) -> PortBook:
        """Return the journal as a port sees it."""
        return PortBook(
            self.journal,
            self.naming,
            batch=self.order.batch,
            operator=self.operator,
            fixture=" ".join(part for part in (self.fixture, port) if part),
            seconds=seconds,
        )

    def station(self, book: PortBook) -> Station:
        """Begin a dialogue."""
        return Station(self.order, book, random=os.urandom, clock=self.clock, rate=self.rate, patience=self.patience)

    def may_begin(self, serial: str) -> bool:
        """Whether the device was scanned, where that is asked for."""
        return not self.scan or serial.casefold() in self.scanned

"""Both ends of the manufacturing line in memory, so that a station or a device can be tested without the other.

`MemoryHome` is a device whose disk is this object, `MemoryBook` a station whose journal is; `Link` carries bytes
between two ends on a clock of its own, as fast as a line of `rate` would.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from edgeseal.errors import NotAuthorisedError
from edgeseal.provisioning import (
    Board,
    Code,
    Destroyed,
    Device,
    Dialogue,
    EntropyReport,
    Identity,
    Offer,
    Origin,
    Package,
    Place,
    Provisioned,
    RefusalError,
    Stage,
)
from edgeseal.smp import OsGroup
from edgeseal.suite import PrivateKey, suite

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.enrolment import Grant

OS_GROUP = OsGroup("Linux", "device", "6.12", "edgeseal", "-", "aarch64", "aarch64", "test-board", "edgeseal")


class End(Protocol):
    """What a link connects: a Station, a FactoryReset, a Device."""

    def feed(self, data: bytes) -> None:
        """Take bytes."""

    def outgoing(self) -> bytes:
        """Give bytes."""


@dataclass
class MemoryHome:
    """A device's durable side in memory."""

    serial: str = "0001"
    hardware: str = "test-board"
    agent: str = "0.1.0"
    board: Board = field(default_factory=lambda: Board("b8:27:eb:00:00:01", "cid", "duid", "c03115"))
    random: Callable[[int], bytes] = field(default=os.urandom, repr=False)
    healthy: bool = False
    pending: tuple[PrivateKey, EntropyReport] | None = field(default=None, repr=False)
    identity: tuple[PrivateKey, Grant, bytes] | None = field(default=None, repr=False)
    kept: Origin | None = field(default=None, repr=False)
    locked: bool = False
    last: Destroyed | None = None
    identities: int = 0

    def stage(self) -> Stage:
        """Return how far this device is."""
        if self.identity is None:
            return Stage.FRESH
        return Stage.LOCKED if self.locked else Stage.PROVISIONED

    def new_key(
        self, suite_number: int, policy: Literal["mix", "require"], host: bytes
    ) -> tuple[PrivateKey, EntropyReport]:
        """Make a key pair once."""
        if policy == "require" and not self.healthy:
            raise RefusalError(
                Code.ENTROPY, "entropy policy 'require' needs a healthy hardware source: none is attached"
            )
        if self.pending is None or self.pending[0].suite.number != suite_number:
            length = suite(suite_number).seed_length
            seed = hashlib.shake_256(self.random(64) + host).digest(length)
            sources = ["os: getrandom", *(["stick: quantum, evidence vendor"] if self.healthy else [])]
            self.pending = PrivateKey(suite_number, seed), EntropyReport(policy, int(self.healthy), sources)
        return self.pending

    def own_key(self) -> tuple[PrivateKey, EntropyReport]:
        """Return the provisioned key pair."""
        if self.identity is None:
            raise NotAuthorisedError("this device has no identity")
        return self.identity[0], EntropyReport("mix", int(self.healthy), [])

    def origin(self) -> Origin | None:
        """Return where the identity came from."""
        return self.kept

    def become(self, key: PrivateKey, grant: Grant, root: bytes, _package: Package, origin: Origin) -> None:
        """Become a member of a fleet."""
        self.identity, self.kept, self.pending, self.last = (key, grant, root), origin, None, None
        self.identities += 1

    def lock(self) -> None:
        """Answer no station any more."""
        self.locked = True

    def destroy(self, last: Destroyed) -> None:
        """Forget everything but what was destroyed."""
        self.identity = self.kept = self.pending = None
        self.locked = False
        self.last = last

    def destroyed(self) -> Destroyed | None:
        """Return what the last factory reset destroyed."""
        return self.last

    def device(self, clock: Callable[[], float], say: Callable[[str], None] = lambda _: None) -> Device:
        """Boot: what was said before is forgotten, what was kept is there."""
        return Device(Dialogue(self, random=self.random, clock=clock, say=say), OS_GROUP)


@dataclass
class MemoryBook:
    """A station's journal in memory; names devices `prefix-1`, `prefix-2` and so on."""

    prefix: str = "press"
    group: str = ""
    offers: dict[bytes, Offer] = field(default_factory=dict)
    done: dict[bytes, Provisioned] = field(default_factory=dict)
    locks: set[bytes] = field(default_factory=set)

    def admit(self, identity: Identity) -> Place | Offer:
        """Name a new device; a known key gets what it was offered."""
        return self.offers.get(identity.key.kid) or Place(f"{self.prefix}-{len(self.offers) + 1}", self.group)

    def granted(self, offer: Offer, _identity: Identity) -> None:
        """Keep the offer."""
        self.offers[offer.kid] = offer

    def provisioned(self, result: Provisioned) -> None:
        """Keep the result."""
        self.done[result.offer.kid] = result

    def locked(self, result: Provisioned) -> None:
        """Note the lock."""
        self.locks.add(result.offer.kid)

    def finished(self, serial: str) -> bool:
        """Whether a device with this serial number was provisioned here."""
        return any(r.offer.serial == serial for r in self.done.values())


class Link:
    """Two ends and a line between them; `mangle` does to each transfer what lines do. Time passes only in here."""

    def __init__(self, *, mangle: Callable[[bytes, str], bytes] = lambda data, _: data, rate: float = 11_520) -> None:
        """`mangle(data, "up" or "down")`: up is to the station."""
        self.now = 0.0
        self.bytes = {"up": 0, "down": 0}
        self._mangle = mangle
        self._rate = rate

    def clock(self) -> float:
        """Seconds on this link."""
        return self.now

    def run(self, station: End, device: End, *, until: Callable[[], bool], limit: float = 600.0) -> None:
        """Carry bytes until `until()`; stops after `limit` seconds of link time."""
        ends = self.now + limit
        while not until() and self.now < ends:
            down = station.outgoing()
            self._carry(down, "down", device)
            up = device.outgoing()
            self._carry(up, "up", station)
            if not down and not up:
                self.now += 0.05

    def _carry(self, data: bytes, direction: str, to: End) -> None:
        self.bytes[direction] += len(data)
        self.now += len(data) / self._rate
        arrived = self._mangle(data, direction) if data else b""
        if arrived:
            to.feed(arrived)

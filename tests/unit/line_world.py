"""A manufacturing line for tests: an order, a station, devices in memory, and what lines do to bytes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from edgeseal.provisioning import CONTEXT, FactoryReset, Order, RefusalError, Station, Verdict, pin
from edgeseal.provisioning.verdict import Code
from edgeseal.suite import PrivateKey
from edgeseal_host.testing.provisioning import Link, MemoryBook, MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.provisioning import Book, Device

SIGNER = MLDSA65PrivateKey.from_seed_bytes(bytes(range(32)))
STRANGER = MLDSA65PrivateKey.from_seed_bytes(bytes(32))
ENROL = PrivateKey(1, b"e" * 32)
ROOT = json.dumps({"signed": {"_type": "root", "version": 1}, "signatures": [{"sig": "ab" * 99}]}).encode()
PROMPT = b"\r\nDebian GNU/Linux 12 raspberrypi ttyS0\r\n\r\nraspberrypi login: "


def public(signer: MLDSA65PrivateKey) -> bytes:
    return signer.public_key().public_bytes_raw()


def order(**changes: Any) -> Order:
    made = Order(
        batch="2026-11-a",
        suite=1,
        policy="mix",
        hardware=(),
        station="line 1",
        pin=pin(public(SIGNER)),
        fleet_url="https://fleet.example",
        root=ROOT,
        enrol=ENROL.public,
        time_floor=1_790_000_000,
    )
    return replace(made, **changes)


def damage(seed: int, *, flip: float = 0.0, drop: float = 0.0, double: float = 0.0, noise: float = 0.0) -> Any:
    """Return a mangler: per byte the chances to flip a bit, be lost, come twice; per transfer that of a prompt."""
    rng = random.Random(seed)

    def mangle(data: bytes, _direction: str) -> bytes:
        out = bytearray()
        for byte in data:
            x = rng.random()
            if x < flip:
                out.append(byte ^ 1 << rng.randrange(8))
            elif x < flip + drop:
                continue
            elif x < flip + drop + double:
                out += bytes([byte, byte])
            else:
                out.append(byte)
        if rng.random() < noise:
            out += PROMPT
        return bytes(out)

    return mangle


@dataclass
class Line:
    """One device on one cable, and the station's journal."""

    home: MemoryHome = field(default_factory=MemoryHome)
    book: MemoryBook = field(default_factory=MemoryBook)
    link: Link = field(default_factory=Link)
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def boot(self) -> Device:
        return self.home.device(self.link.clock)

    def station(self, order_: Order | None = None, *, book: Book | None = None, **changes: Any) -> Station:
        return Station(
            order_ or order(), book or self.book, random=self.rng.randbytes, clock=self.link.clock, **changes
        )

    def reset(self, signer: MLDSA65PrivateKey = SIGNER, **changes: Any) -> FactoryReset:
        def expect(kid: bytes, _serial: str) -> bytes:
            if kid not in self.book.offers:
                raise RefusalError(Code.AUTHORISATION, "this station does not know that identity")
            return self.book.offers[kid].commitment

        return FactoryReset(
            public=public(signer),
            sign=lambda message: signer.sign(message, CONTEXT),
            expect=expect,
            random=self.rng.randbytes,
            clock=self.link.clock,
            **changes,
        )

    def provision(self, order_: Order | None = None, *, device: Device | None = None, **changes: Any) -> Verdict:
        """Run one station against the device until there is a verdict."""
        station = self.station(order_, **changes)
        self.link.run(station, device or self.boot(), until=lambda: station.verdict is not None)
        assert station.verdict is not None, station.state
        return station.verdict

    def factory_reset(self, signer: MLDSA65PrivateKey = SIGNER, *, device: Device | None = None) -> Verdict:
        station = self.reset(signer)
        self.link.run(station, device or self.boot(), until=lambda: station.verdict is not None)
        assert station.verdict is not None
        return station.verdict


def agree(line: Line) -> None:
    """Assert that device and journal have the same one identity, or neither has any."""
    held = line.home.identity
    if held is None:
        assert not line.book.done, "the journal has a device that is none"
        return
    kid = held[0].public.kid
    assert list(line.book.offers) == [kid], "another identity than the one offered"
    assert line.book.offers[kid].device == held[1].device
    assert line.home.identities == 1, "two identities on one device"


def cut_after(
    count: int, mangle: Callable[[bytes, str], bytes] = lambda data, _: data
) -> Callable[[bytes, str], bytes]:
    """Return a mangler that loses everything after `count` bytes in both directions together: a pulled cable."""
    left = count

    def pulled(data: bytes, direction: str) -> bytes:
        nonlocal left
        passed, left = data[:left], max(0, left - len(data))
        return mangle(passed, direction)

    return pulled

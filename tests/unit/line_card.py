"""The agent's own side of the manufacturing line on a real directory, and what must hold once a line was completed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.unit.line_world import Line, order

from edgeseal.device import config
from edgeseal.device.agent import Agent
from edgeseal.device.line_home import DeviceHome
from edgeseal.enrolment import Record
from edgeseal.provisioning import Device, Dialogue, Stage
from edgeseal_host.testing.provisioning import OS_GROUP, MemoryBook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.provisioning import Order, Verdict


@dataclass
class Card:
    """A device's directory, and the agent's own home on it."""

    directory: Path

    def agent(self, more: str = "") -> Agent:
        text = (
            f'[device]\nhardware = "test-board"\nserial = "0001"\n'
            f'[paths]\nstate = "{self.directory}/state"\nmodels = "{self.directory}/models"\n{more}'
        )
        return Agent(config.parse(text.encode(), name="test"))

    def home(self) -> DeviceHome:
        return DeviceHome(self.agent())

    def provision(self, line: Line, order_: Order | None = None) -> Verdict:
        station = line.station(order_ or order())
        line.link.run(station, self.boot(line.link.clock), until=lambda: station.verdict is not None)
        assert station.verdict is not None
        return station.verdict

    def reset(self, line: Line) -> Verdict:
        station = line.reset()
        line.link.run(station, self.boot(line.link.clock), until=lambda: station.verdict is not None)
        assert station.verdict is not None
        return station.verdict

    def boot(self, clock: Callable[[], float]) -> Device:
        return Device(Dialogue(self.home(), random=os.urandom, clock=clock), OS_GROUP)

    def look(self) -> tuple[int, ...]:
        """Return what changes with every file that is written: all are renamed into place."""
        state = self.directory / "state"
        return tuple(d.stat().st_mtime_ns for d in (state, state / "keys") if d.exists())


def check(card: Card, book: MemoryBook) -> str:
    """Complete what a copy of a card and a journal began; return the device's kid."""
    verdict = card.provision(Line(book=book))
    assert verdict.passed, verdict
    home, (offer,) = card.home(), book.offers.values()
    assert home.stage() is Stage.LOCKED
    identity, origin = home._agent.keys.identity(), home.origin()
    assert origin is not None
    assert (identity.device, origin.kid) == (offer.device, offer.kid)
    assert Record.from_bytes(offer.record).public == home.own_key()[0].public.raw
    assert home._agent.keys.pending() is None
    assert home._agent.profile.device == offer.device
    return offer.kid.hex()


def copied(book: MemoryBook) -> MemoryBook:
    return replace(book, offers=dict(book.offers), done=dict(book.done), locks=set(book.locks))

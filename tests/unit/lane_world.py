"""One port of a station in memory, and the time on it; devices are put on it and taken away."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgeseal_host.station import chain
from edgeseal_host.station.lane import Lane, Phase
from edgeseal_host.station.work import Work
from edgeseal_host.testing.provisioning import Link, MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit import station_world

    from edgeseal.provisioning import Code, Device
    from edgeseal_host.station.journal import Journal

KINDS = [chain.GRANTED, chain.PROVISIONED, chain.LOCKED]


class Nobody:
    """An open port without a device."""

    def feed(self, _data: bytes) -> None:
        pass

    def outgoing(self) -> bytes:
        return b""


@dataclass
class Bench:
    """A station with one port, and the time on it."""

    journal: Journal
    work: Work
    link: Link
    lane: Lane = field(init=False)

    def __post_init__(self) -> None:
        self.lane = Lane("port-1", self.work)
        self.lane.plugged()

    def serve(
        self, device: MemoryHome | Device | Nobody, *, seconds: float = 60.0, until: Callable[[], bool] | None = None
    ) -> Phase:
        """Keep a device on the port until it has a verdict, or that long if there is one already."""
        end = device.device(self.link.clock) if isinstance(device, MemoryHome) else device
        over = until or (lambda: self.lane.phase in {Phase.PASSED, Phase.FAILED, Phase.DONE})
        self.link.run(self.lane, end, until=over, limit=seconds)
        return self.lane.phase

    def leave(self, device: MemoryHome | Nobody, seconds: float) -> Phase:
        """Let time pass."""
        return self.serve(device, seconds=seconds, until=lambda: False)

    def take_away(self) -> None:
        self.leave(Nobody(), 4.0)

    def kinds(self) -> list[str]:
        return [e.kind for e in self.journal][1:]

    @property
    def why(self) -> tuple[Code | None, str, str]:
        view = self.lane.view()
        return view.code, view.reason, view.remedy


def make(world: station_world.World, journal: Journal, link: Link | None = None, **changes: Any) -> Bench:
    link = link or Link()
    order = replace(world.order(), **{k: changes.pop(k) for k in ("policy", "hardware") if k in changes})
    return Bench(journal, Work(order, journal, world.batch.naming, "anna", clock=link.clock, **changes), link)


def home(number: int = 1, **changes: Any) -> MemoryHome:
    return MemoryHome(serial=f"1000{number:04}", **changes)

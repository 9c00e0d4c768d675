"""Anything that can happen on a bench, in any order: in the end every device has one identity, the journal's.

Cables pulled and put back, devices swapped and restarted, stations killed, bytes damaged; drawn by hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit import station_world
from tests.unit.line_world import damage

from edgeseal.provisioning import Stage
from edgeseal_host.station import chain
from edgeseal_host.station.lane import Lane, Phase
from edgeseal_host.station.standing import standing
from edgeseal_host.station.work import Work
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.provisioning import Device
    from edgeseal_host.station.journal import Journal

pytestmark = pytest.mark.unit
PORTS, DEVICES = 2, 3
ROUND = 0.01  # seconds: 115 bytes at 115,200 baud
CHUNK = 115
KINDS = [chain.GRANTED, chain.PROVISIONED, chain.LOCKED]


@dataclass
class Board:
    """A device; `device` is what its last start has made of it."""

    home: MemoryHome
    device: Device
    out: bytes = b""


@dataclass
class Wire:
    """One port: what is on its way, who is at the other end."""

    lane: Lane
    plugged: bool = True
    board: Board | None = None
    down: bytes = b""
    up: bytes = b""


@dataclass
class Shop:
    """Two ports, three devices, one journal, one clock."""

    world: station_world.World
    journal: Journal
    mangle: Callable[[bytes, str], bytes]
    now: float = 0.0
    boards: list[Board] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)

    def __post_init__(self) -> None:
        for n in range(DEVICES):
            home = MemoryHome(serial=f"1000{n:04}")
            self.boards.append(Board(home, home.device(self.clock)))
        self.kill()

    def clock(self) -> float:
        return self.now

    # What may happen -------------------------------------------------------------------------------------------------

    def kill(self, _: int = 0) -> None:
        """The station is killed and started again: nothing but the journal is left."""
        boards = [w.board for w in self.wires] or [None] * PORTS
        work = Work(self.world.order(), self.journal, self.world.batch.naming, "anna", clock=self.clock)
        self.wires = [Wire(Lane(f"port-{n}", work), board=board) for n, board in enumerate(boards)]
        for wire in self.wires:
            wire.lane.plugged()

    def cable(self, n: int) -> None:
        wire = self.wires[n % PORTS]
        wire.plugged = not wire.plugged
        wire.up = wire.down = b""
        (wire.lane.plugged if wire.plugged else wire.lane.unplugged)()

    def put(self, n: int) -> None:
        """Device n is put on port n, from wherever it was."""
        board = self.boards[n % DEVICES]
        for wire in self.wires:
            if wire.board is board:
                wire.board = None
        self.wires[n % PORTS].board = board

    def restart(self, n: int) -> None:
        board = self.boards[n % DEVICES]
        board.device = board.home.device(self.clock)

    def work(self, rounds: int) -> None:
        for _ in range(rounds * 10):
            self.round()

    def round(self) -> None:
        self.now += ROUND
        for wire in self.wires:
            if not wire.plugged:
                continue
            wire.down += wire.lane.outgoing()
            carried, wire.down = wire.down[:CHUNK], wire.down[CHUNK:]
            if wire.board is not None:
                wire.board.device.feed(self.mangle(carried, "down") if carried else b"")
                wire.up += wire.board.device.outgoing()
            carried, wire.up = wire.up[:CHUNK], wire.up[CHUNK:]
            if carried:
                wire.lane.feed(self.mangle(carried, "up"))

    # In the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Serve every device on one good line."""
        self.mangle = lambda data, _: data
        self.kill()
        for wire in self.wires:
            wire.board = None
        wire = self.wires[0]
        for n, board in enumerate(self.boards):
            wire.board = board
            ends = self.now + 120
            while not (wire.lane.serial == board.home.serial and wire.lane.phase in {Phase.PASSED, Phase.DONE}):
                self.round()
                assert self.now < ends, (n, wire.lane.view())

    def check(self) -> None:
        kids = set()
        for board in self.boards:
            home = board.home
            assert home.identity is not None
            assert (home.identities, home.stage()) == (1, Stage.LOCKED)
            kid = home.identity[0].public.kid
            kids.add(kid)
            mine = [e for e in self.journal if e.serial == home.serial and e.kind in KINDS]
            assert [e.kind for e in mine] == KINDS, "each step once, in order"
            assert {(e.kid, e.device) for e in mine} == {(kid, home.identity[1].device)}
        assert len(kids) == DEVICES
        assert standing(self.journal).unfinished == ()
        self.journal.verify(lambda *_: True)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["cable", "put", "restart", "kill", "work", "work"]), st.integers(0, 30)), max_size=40
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    return station_world.World.make(tmp_path_factory.mktemp("station"))


@given(events=EVENTS, seed=st.integers(0, 2**16), faults=st.sampled_from([0.0, 1e-4, 5e-4]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_every_device_ends_with_one_identity(
    made: station_world.World,
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[str, int]],
    seed: int,
    faults: float,
) -> None:
    world = made.copied(tmp_path_factory.mktemp("chaos") / "world")
    with world.journal() as journal:
        shop = Shop(world, journal, damage(seed, flip=faults, drop=faults, double=faults, noise=faults))
        for n in range(PORTS):
            shop.put(n)
        for name, n in events:
            getattr(shop, name)(n)
        shop.finish()
        shop.check()


def test_a_journal_that_forgets_is_caught(made: station_world.World, tmp_path: Any) -> None:
    """Negative control: what was granted is not written down, and the station is killed before the device confirms."""
    world = made.copied(tmp_path / "world")
    with world.journal() as journal:
        shop = Shop(world, journal, lambda data, _: data)
        shop.put(0)
        append = journal.append
        journal.append = lambda kind, **v: None if kind == chain.GRANTED else append(kind, **v)  # type: ignore[method-assign,assignment]
        while shop.boards[0].home.identity is None:
            shop.round()
        journal.append = append  # type: ignore[method-assign]
        with pytest.raises(AssertionError):
            shop.finish()

"""Devices that a station refuses, through the code of a port, and what its screen then says and advises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
from tests.unit import station_world
from tests.unit.lane_world import KINDS, Bench, home, make

from edgeseal.provisioning import Code, EntropyReport
from edgeseal.suite import PrivateKey
from edgeseal_host.station import chain
from edgeseal_host.station.lane import Phase
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    return station_world.World.make(tmp_path_factory.mktemp("station"))


@pytest.fixture
def world(made: station_world.World, tmp_path: Path) -> station_world.World:
    return made.copied(tmp_path / "world")


@pytest.fixture
def bench(world: station_world.World) -> Iterator[Bench]:
    with world.journal() as journal:
        yield make(world, journal)


def test_a_key_seen_before_is_refused(bench: Bench) -> None:
    dead = PrivateKey(1, bytes(32))
    one, other = home(1), home(2)
    for device in (one, other):
        device.pending = (dead, device.new_key(1, "mix", b"")[1])
    assert bench.serve(one) is Phase.PASSED
    bench.serve(other, until=lambda: bench.lane.serial == "10000002")
    assert bench.serve(other) is Phase.FAILED
    assert bench.why == (
        Code.KEY_SEEN,
        "10000002 shows the key that was given to 10000001 before",
        "put the device aside: its random source is dead or its card is a copy",
    )
    assert other.identity is None
    assert bench.kinds() == [*KINDS, chain.FAILED]


def test_a_device_that_cannot_make_a_healthy_key_says_so(world: station_world.World) -> None:
    with world.journal() as journal:
        bench = make(world, journal, policy="require")
        assert bench.serve(home(healthy=False)) is Phase.FAILED
        code, reason, remedy = bench.why
    assert code is Code.ENTROPY
    assert "needs a healthy hardware source" in reason
    assert remedy.startswith("plug in the noise source and wait until its light is steady")


class Liar(MemoryHome):
    """Makes its key without a healthy source under `require`, and admits it in its report."""

    def new_key(
        self, suite_number: int, policy: Literal["mix", "require"], host: bytes
    ) -> tuple[PrivateKey, EntropyReport]:
        del policy
        return super().new_key(suite_number, "mix", host)


def test_unhealthy_entropy_under_require_is_refused_by_the_station_too(world: station_world.World) -> None:
    with world.journal() as journal:
        bench = make(world, journal, policy="require")
        device = Liar(serial="10000001")
        assert bench.serve(device) is Phase.FAILED
        assert bench.why == (
            Code.UNHEALTHY,
            "the key was made without a healthy noise source (os: getrandom)",
            "plug in the noise source and wait until its light is steady, or allow `mix` in the batch file",
        )
        assert device.identity is None
        assert bench.kinds() == [chain.FAILED]
        assert make(world, journal, policy="mix").serve(device) is Phase.PASSED, "negative control"


def test_a_serial_number_provisioned_before_is_refused_unless_rework_is_authorised(bench: Bench) -> None:
    bench.serve(home())
    bench.take_away()
    new_card = home()
    bench.serve(new_card, until=lambda: bench.lane.phase is Phase.TALKING)
    assert bench.serve(new_card) is Phase.FAILED
    assert bench.why == (
        Code.SERIAL_SEEN,
        "serial number 10000001 was already provisioned, as press-0001",
        "put it aside, or authorise re-work for this serial number",
    )
    assert new_card.identity is None
    bench.journal.append(chain.AUTHORISED, serial="10000001", operator="boss", detail={"reason": "card replaced"})
    bench.lane.retry()
    assert bench.serve(new_card) is Phase.PASSED
    assert bench.lane.view().device == "press-0002"


def test_a_wrong_board_for_the_batch_is_refused(world: station_world.World) -> None:
    with world.journal() as journal:
        bench = make(world, journal, hardware=("raspberrypi,5-model-b", "raspberrypi,4-model-b"))
        device = home(hardware="raspberrypi,3-model-b")
        assert bench.serve(device) is Phase.FAILED
        assert bench.why == (
            Code.WRONG_BOARD,
            "this board is raspberrypi,3-model-b; the batch is for raspberrypi,5-model-b or raspberrypi,4-model-b",
            "take the board the batch file names, or the batch file for this board",
        )
        assert device.identity is None
        assert journal.last(chain.GRANTED) is None

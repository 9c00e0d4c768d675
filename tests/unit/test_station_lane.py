"""One port's life in memory: who is served, who is refused and in which words, and what is not done twice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import station_world
from tests.unit.lane_world import KINDS, Bench, Nobody, home, make
from tests.unit.line_world import cut_after

from edgeseal.errors import NoSpaceError
from edgeseal.provisioning import Code, Offer, Stage
from edgeseal.smp import Op, Packet, encode_lines
from edgeseal.suite import PrivateKey
from edgeseal_host.station import chain
from edgeseal_host.station.cable import Problem
from edgeseal_host.station.journal import offer_of
from edgeseal_host.station.lane import Lane, Phase
from edgeseal_host.testing.provisioning import Link, MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


# Served -------------------------------------------------------------------------------------------------------------


def test_a_device_comes_and_passes_and_the_journal_and_it_agree(bench: Bench) -> None:
    device = home()
    assert bench.serve(Nobody(), seconds=30) is Phase.WAITING
    assert bench.serve(device) is Phase.PASSED
    view = bench.lane.view()
    assert (view.serial, view.device, view.reason, view.code) == ("10000001", "press-0001", "", None)
    assert 0.5 < view.seconds < 3, "of the dialogue, not of the waiting before"
    assert bench.kinds() == KINDS
    (granted,) = bench.journal.of_kind(chain.GRANTED)
    assert device.identity is not None
    assert granted.kid == device.identity[0].public.kid
    assert (granted.fixture, granted.operator, granted.batch) == ("port-1", "anna", "2026-11-a")
    assert device.stage() is Stage.LOCKED


def test_who_stays_on_the_port_is_not_served_twice(bench: Bench) -> None:
    device = home()
    bench.serve(device)
    assert bench.leave(device, 300) is Phase.PASSED
    assert bench.kinds() == KINDS


def test_the_next_device_is_served_whether_or_not_a_gap_was_seen(bench: Bench) -> None:
    bench.serve(home(1))
    bench.take_away()
    assert bench.lane.phase is Phase.PASSED, "the verdict stays until somebody else is there"
    bench.serve(home(2), until=lambda: bench.lane.serial == "10000002")
    assert bench.serve(home(2)) is Phase.PASSED
    three = home(3)
    bench.serve(three, until=lambda: bench.lane.serial == "10000003")
    assert bench.serve(three) is Phase.PASSED
    assert [e.device for e in bench.journal.of_kind(chain.LOCKED)] == ["press-0001", "press-0002", "press-0003"]


def test_who_was_done_before_is_shown_as_such_and_not_journaled(bench: Bench) -> None:
    device = home()
    bench.serve(device)
    bench.take_away()
    again = Bench(bench.journal, bench.work, bench.link)
    assert again.serve(device) is Phase.DONE
    assert again.why == (Code.LOCKED, "provisioned here before, as press-0001", "take it out")
    assert bench.kinds() == KINDS


def test_a_failed_device_is_tried_again_when_it_was_away_or_by_the_enter_key(bench: Bench) -> None:
    tries = 0
    device = home(healthy=False)
    bench.work.order = replace(bench.work.order, policy="require")
    assert bench.serve(device) is Phase.FAILED
    assert bench.leave(device, 60) is Phase.FAILED
    tries = bench.kinds().count(chain.FAILED)
    assert tries == 1, "nobody asked for another try"
    device.healthy = True  # the noise source is plugged in now
    bench.lane.retry()
    assert bench.serve(device) is Phase.PASSED


def test_a_failed_device_that_was_away_is_tried_again(bench: Bench) -> None:
    device = home()
    bench.work.order = replace(bench.work.order, policy="require")
    bench.serve(device)
    bench.take_away()
    device.healthy = True
    bench.serve(device, until=lambda: bench.lane.phase is Phase.TALKING)
    assert bench.serve(device) is Phase.PASSED


# A lock nobody heard of ---------------------------------------------------------------------------------------------


@dataclass
class Restarting:
    """A device whose power goes off and on as soon as it has locked itself; its answer is lost on the way."""

    home: MemoryHome
    clock: Callable[[], float]
    restarts: int = 0

    def __post_init__(self) -> None:
        self._device = self.home.device(self.clock)

    def feed(self, data: bytes) -> None:
        self._device.feed(data)

    def outgoing(self) -> bytes:
        if self.home.locked and not self.restarts:
            self.restarts += 1
            self._device = self.home.device(self.clock)
        return self._device.outgoing()


def test_a_lost_locked_answer_is_a_pass_and_the_lock_is_in_the_journal(bench: Bench) -> None:
    device = Restarting(home(), bench.link.clock)
    assert bench.serve(device) is Phase.PASSED  # type: ignore[arg-type]
    assert device.restarts == 1
    assert bench.kinds() == KINDS, "the dialogue itself never heard of the lock; the port wrote it down"
    assert bench.lane.view().device == "press-0001"


def test_the_dialogue_alone_does_not_write_that_lock_down(world: station_world.World) -> None:
    """Negative control of the test above: without what the port adds, the entry is missing."""
    with world.journal() as journal:
        bench = make(world, journal)
        station = bench.work.station(bench.work.book("port-1", lambda: 1.0))
        device = Restarting(home(), bench.link.clock)
        bench.link.run(station, device, until=lambda: station.verdict is not None)
        assert station.verdict is not None
        assert station.verdict.passed
        assert bench.kinds() == KINDS[:2]


def test_a_lock_that_could_not_be_written_is_a_fail_that_the_next_try_mends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = bench.journal.append

    def full(kind: str, **values: Any) -> chain.Entry:
        if kind == chain.LOCKED:
            raise NoSpaceError("there is no space left to write journal.db")
        return append(kind, **values)

    device = home()
    with monkeypatch.context() as patch:
        patch.setattr(bench.journal, "append", full)
        assert bench.serve(device) is Phase.FAILED
        code, reason, remedy = bench.why
        assert (code, device.stage()) == (Code.JOURNAL, Stage.LOCKED)
        assert "no space left" in reason
        assert "it goes on where it was" in remedy, "not: nothing was given to the device"
    bench.lane.retry()
    assert bench.serve(device) is Phase.PASSED
    assert [k for k in bench.kinds() if k != chain.FAILED] == KINDS
    assert device.identities == 1


def test_a_device_locked_by_somebody_else_is_no_pass(bench: Bench) -> None:
    """Only what this journal has provisioned counts: anybody can say that he is locked."""
    stranger = home()
    stranger.locked = True
    stranger.identity = (PrivateKey(1, bytes(32)), None, b"")  # type: ignore[assignment]
    assert bench.serve(stranger) is Phase.FAILED
    assert bench.why[0] is Code.LOCKED
    assert bench.kinds() == [chain.FAILED]


def test_a_device_that_claims_the_serial_number_of_an_unfinished_one_gets_nothing(bench: Bench) -> None:
    """Whoever says `locked` in the name of a device in between only ends the wait: no identity, no grant is given."""
    device = home()
    bench.serve(device, until=lambda: bench.journal.last(chain.GRANTED) is not None)
    bench.lane.unplugged()
    bench.lane.plugged()
    liar = home()
    liar.locked = True
    liar.identity = (PrivateKey(1, bytes(32)), None, b"")  # type: ignore[assignment]
    bench.serve(liar, until=lambda: bench.lane.phase is Phase.TALKING)
    assert bench.serve(liar) is Phase.FAILED
    assert bench.journal.last(chain.PROVISIONED) is None


# The cable ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["greeted", "challenged", "granted", "locking"])
def test_a_port_that_vanishes_in_the_dialogue_goes_on_when_it_is_back(bench: Bench, step: str) -> None:
    device = home()
    bench.serve(device, until=lambda: bench.lane.view().step == step)
    bench.lane.unplugged()
    assert bench.lane.phase is Phase.FAILED
    assert bench.why == (
        Code.LINE_BROKE,
        f"the line was lost while {step}",
        "plug the cable in again and run it again: it goes on where it was",
    )
    bench.lane.plugged()
    bench.serve(device, until=lambda: bench.lane.phase is Phase.TALKING)
    assert bench.serve(device) is Phase.PASSED
    assert device.identities == 1
    assert [k for k in bench.kinds() if k != chain.FAILED] == KINDS


def test_the_cable_is_pulled_at_every_few_bytes_of_a_dialogue(world: station_world.World) -> None:
    """After each pull the same device goes on; journal and device agree, and never has one two identities."""
    with world.journal() as journal:
        whole = make(world, journal)
        whole.serve(home(0))
        total = sum(whole.link.bytes.values())
        for number, count in enumerate(range(100, total, total // 40), start=1):
            device = home(number)
            pulled = make(world, journal, Link(mangle=cut_after(count)))
            pulled.leave(device, 3)
            pulled.lane.unplugged()
            bench = make(world, journal)
            assert bench.serve(device) in {Phase.PASSED, Phase.DONE}, (count, bench.why)
            assert device.identity is not None
            assert (device.identities, device.stage()) == (1, Stage.LOCKED)
            known = [(e.kind, e.kid) for e in journal if e.serial == device.serial and e.kind in KINDS]
            assert known == [(kind, device.identity[0].public.kid) for kind in KINDS], count
    assert number >= 40


def test_a_port_that_vanishes_while_nobody_talks_is_no_failure(bench: Bench) -> None:
    bench.leave(Nobody(), 5)
    bench.lane.unplugged()
    assert bench.lane.view().phase is Phase.ABSENT
    bench.lane.plugged()
    assert bench.lane.view().phase is Phase.WAITING
    bench.serve(home())
    bench.lane.unplugged()
    assert bench.lane.phase is Phase.PASSED, "the verdict stays to be read"


def test_a_port_that_cannot_be_opened_says_why_until_it_can(bench: Bench) -> None:
    lane = Lane("port-2", bench.work)
    lane.blocked(Problem("another program has it open", "close that program"))
    view = lane.view()
    assert (view.phase, view.reason, view.remedy) == (
        Phase.ABSENT,
        "another program has it open",
        "close that program",
    )
    lane.plugged()
    assert (lane.phase, lane.view().reason) == (Phase.WAITING, "")


@pytest.mark.parametrize("what", ["nobody", "vanishes", "blocked"])
def test_with_once_a_port_without_a_device_ends_as_a_failure(world: station_world.World, what: str) -> None:
    with world.journal() as journal:
        bench = make(world, journal, once=True, patience=20.0)
        if what == "nobody":
            bench.serve(Nobody())
            expected = (Code.NO_ANSWER, "no answer in 20 s")
        elif what == "vanishes":
            bench.lane.unplugged()
            expected = (Code.LINE_BROKE, "the port went away")
        else:
            bench.lane = Lane("port-1", bench.work)
            bench.lane.blocked(Problem("this user may not open it", "sudo usermod"))
            expected = (Code.NO_PORT, "this user may not open it")
        assert bench.lane.phase is Phase.FAILED
        assert bench.why[:2] == expected
        assert bench.why[2]


def test_with_once_a_port_serves_one_device(world: station_world.World) -> None:
    with world.journal() as journal:
        bench = make(world, journal, once=True)
        bench.serve(home(1))
        bench.take_away()
        assert bench.leave(home(2), 30) is Phase.PASSED
        assert bench.kinds() == KINDS


# Scanned, doubled, odd ----------------------------------------------------------------------------------------------


def test_where_labels_are_scanned_a_device_waits_for_it(world: station_world.World) -> None:
    with world.journal() as journal:
        bench = make(world, journal, scan=True)
        device = home()
        assert bench.leave(device, 30) is Phase.SCAN
        bench.work.scanned.add("10000002")
        assert bench.leave(device, 5) is Phase.SCAN, "another label"
        bench.work.scanned.add("10000001")
        bench.serve(device, until=lambda: bench.lane.phase is Phase.TALKING)
        assert bench.serve(device) is Phase.PASSED
        bench.take_away()
        other = Bench(journal, bench.work, bench.link)
        assert other.leave(home(3), 5) is Phase.SCAN
        other.take_away()
        assert other.lane.phase is Phase.WAITING, "taken away before it was scanned"


def test_one_serial_number_on_two_ports_at_once(bench: Bench) -> None:
    """Two cables to one device, or a copied card: one at a time, and never two identities."""
    one, copy = home(), home()
    bench.serve(one, until=lambda: bench.lane.phase is Phase.TALKING)
    second = Bench(bench.journal, bench.work, bench.link)
    assert second.leave(copy, 10) is Phase.WAITING
    assert second.lane.view().remedy == "this serial number is on another port too"
    assert bench.serve(one) is Phase.PASSED
    second.serve(copy, until=lambda: second.lane.phase is Phase.TALKING)
    assert second.serve(copy) is Phase.FAILED
    assert second.why[0] is Code.SERIAL_SEEN
    assert copy.identity is None


def test_an_unproven_serial_number_commands_no_terminal(bench: Bench) -> None:
    request = Packet(Op.READ, 64, 0, {}, 1)
    for serial in ("\x1b[2J\x07boom", "x" * 300, 7, None):
        body = {"v": 1, "stage": "locked", "serial": serial, "agent": "1"}
        bench.lane.feed(encode_lines(request.answer(body).to_bytes()))
        assert bench.lane.view().serial.isprintable()
        assert len(bench.lane.view().serial) < 300
    assert bench.lane.view().serial == "?[2J?boom"


def test_a_full_disk_is_said_nothing_left_the_station_and_the_next_try_is_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_kind: str, **_values: Any) -> chain.Entry:
        raise NoSpaceError("there is no space left to write journal.db")

    device = home()
    with monkeypatch.context() as patch:
        patch.setattr(bench.journal, "append", full)
        assert bench.serve(device) is Phase.FAILED
        assert bench.why[:2] == (
            Code.JOURNAL,
            "the station could not write: there is no space left to write journal.db",
        )
    assert device.identity is None
    assert bench.kinds() == []
    bench.lane.retry()
    assert bench.serve(device) is Phase.PASSED
    assert bench.kinds() == KINDS
    (granted,) = bench.journal.of_kind(chain.GRANTED)
    assert isinstance(offer_of(granted), Offer)

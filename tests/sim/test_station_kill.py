"""kill -9 of a station at every write of its journal, of station and device at every message: never two identities.

The station is a process of its own; the device is one whose memory outlives its power. After each kill the next run
must complete, and then journal and device agree.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

import pytest
from tests.sim import injected, station_factory
from tests.sim.line_process import device
from tests.sim.serial_line import SerialLine, bench
from tests.unit.line_card import Card

from edgeseal.provisioning import Stage, wire
from edgeseal.smp import LineDecoder, Op, Packet
from edgeseal_host.station import chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FAST = 2_000_000  # baud
WRITES = ("pwrite64", "fdatasync", "fsync", "rename")  # what a journal entry is made of: SQLite's and the head file's
EVERY = os.environ.get("EDGESEAL_FAULTS") == "every"
pytestmark = pytest.mark.timeout(300)


factory = station_factory.factory


@pytest.fixture(scope="module")
def station(factory: station_factory.Factory, memory_place: Path) -> Iterator[injected.Zygote]:
    """A station's process that runs as often as it is asked to."""
    with factory.station(memory_place / "errors") as zygote:
        yield zygote


# Journal writes ---------------------------------------------------------------------------------------------------


def sample(calls: list[injected.Call], name: str) -> list[injected.Call]:
    """Every call of that name; of the many writes of pages every fifth unless all are wanted."""
    found = [c for c in calls if c.name == name]
    return found if EVERY or name != "pwrite64" else found[::5]


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("name", WRITES)
def test_kill_9_of_the_station_at_its_journals_writes(
    factory: station_factory.Factory, station: injected.Zygote, tmp_path: Path, name: str
) -> None:
    factory.fresh()
    calls = station.count(tmp_path / "log")
    factory.completes()
    points = sample(calls, name)
    assert len(points) >= 5, "a run writes five entries"
    for call in points:
        factory.fresh()
        fault = injected.Fault(call.name, call.nth, "signal=SIGKILL", call.file)
        done = station.inject(fault)
        assert done.returncode == -signal.SIGKILL, (str(fault), done.stderr)
        factory.completes()


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("name", ["pwrite64", "rename"])
def test_a_disk_that_is_full_at_a_write_ends_in_a_message_and_the_next_run_completes(
    factory: station_factory.Factory, station: injected.Zygote, tmp_path: Path, name: str
) -> None:
    factory.fresh()
    calls = [c for c in station.count(tmp_path / "log") if c.name == name]
    for call in calls if EVERY else calls[:: max(1, len(calls) // 5)]:
        factory.fresh()
        fault = injected.Fault(call.name, call.nth, "error=ENOSPC", call.file)
        done = station.inject(fault)
        assert done.returncode >= 0, (str(fault), done.stderr)
        if done.returncode:
            assert "No space left" in done.stderr or "no space left" in done.stderr or "full" in done.stderr, fault
        factory.completes()


# Messages ---------------------------------------------------------------------------------------------------------


class Killer:
    """Calls `kill` once, when message `number` is whole on the line (`asked`), or when its answer begins."""

    def __init__(self, line: SerialLine, number: int, moment: str, kill: Callable[[], None]) -> None:
        self._decoders = {"up": LineDecoder(), "down": LineDecoder()}
        self._line, self._number, self._moment, self._kill = line, number, moment, kill
        self._seen: set[int] = set()
        self.killed = False

    def __enter__(self) -> Self:
        self._line.taps.append(self._tap)
        return self

    def __exit__(self, *_: object) -> None:
        self._line.taps.remove(self._tap)

    def _tap(self, direction: Any, data: bytes) -> None:
        for raw in self._decoders[direction].feed(data):
            packet = Packet.from_bytes(raw)
            if packet.group == wire.GROUP and packet.body.get("n") == self._number:
                self._look(packet, asked=direction == "down")

    def _look(self, packet: Packet, *, asked: bool) -> None:
        body = packet.body
        if asked and packet.op is Op.WRITE:
            self._seen |= set(range(body["o"], body["o"] + len(body["d"])))
            due = self._moment == "asked" and len(self._seen) == body["l"]
        else:
            due = self._moment == "answered" and packet.op is Op.WRITE_RSP and "l" in body
        if due and not self.killed:
            self.killed = True
            self._kill()


def started(station: injected.Zygote) -> int:
    """Fork a run that waits for its word."""
    return int(station._ask("fork"))


@pytest.mark.parametrize("moment", ["asked", "answered"])
@pytest.mark.parametrize("who", ["station", "both"])
def test_kill_9_of_the_station_and_of_both_at_every_message(
    factory: station_factory.Factory, station: injected.Zygote, who: str, moment: str
) -> None:
    for number in range(4):
        factory.fresh()
        pid = started(station)

        def kill(pid: int = pid) -> None:
            os.kill(pid, signal.SIGKILL)
            if who == "both":
                factory.device.restart()

        with Killer(factory.line, number, moment, kill) as killer:
            assert int(station._ask("go")) == -signal.SIGKILL
        assert killer.killed
        factory.completes()


@pytest.mark.parametrize("moment", ["asked", "answered"])
def test_power_of_the_device_goes_at_every_message_and_the_same_run_completes(
    factory: station_factory.Factory, moment: str
) -> None:
    for number in range(4):
        factory.fresh()
        with Killer(factory.line, number, moment, factory.device.restart) as killer:
            factory.run()
        assert killer.killed
        with factory.world.journal() as journal:
            station_factory.agree(journal, factory.device)


def test_a_station_that_forgets_what_it_granted_is_caught(factory: station_factory.Factory, tmp_path: Path) -> None:
    """Negative control: without the entry before the grant, the next run does not know the device."""
    with factory.station(tmp_path / "errors", "--forgetful") as station:
        factory.fresh()
        pid = started(station)
        with Killer(factory.line, 2, "answered", lambda: os.kill(pid, signal.SIGKILL)):
            station._ask("go")
        with pytest.raises(AssertionError, match="an identity that this station's journal does not know"):
            factory.completes()


# A real device ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3])
def test_kill_9_of_both_processes_while_they_talk(
    factory: station_factory.Factory, tmp_path: Path, number: int
) -> None:
    """As above with the agent itself at the other end, and its files."""
    shutil.rmtree(factory.world.directory.path)
    shutil.copytree(factory.template, factory.world.directory.path)
    with bench(baud=FAST) as (line,), device(tmp_path / "card", line.device) as agent:
        agent.start()
        words = [sys.executable, "-m", "tests.sim.station_once", factory.world.place, line.station]
        with injected.zygote(words, tmp_path / "errors") as station:
            pid = started(station)

            def kill() -> None:
                os.kill(pid, signal.SIGKILL)
                assert agent.process is not None
                os.kill(agent.process.pid, signal.SIGKILL)

            with Killer(line, number, "answered", kill) as killer:
                assert int(station._ask("go")) == -signal.SIGKILL
            assert killer.killed
            agent.wait()
            if agent.start_unless_locked():
                started(station)
                assert station._ask("go") == "0", (tmp_path / "errors").read_text()
                agent.wait()
    home = Card(tmp_path / "card").home()
    origin = home.origin()
    assert origin is not None
    with factory.world.journal() as journal:
        found = station_factory.entries(journal)
    assert {kid for _, kid, _ in found} == {origin.kid}
    assert {name for _, _, name in found} == {home._agent.keys.identity().device}
    assert [kind for kind, _, _ in found][:2] == [chain.GRANTED, chain.PROVISIONED]
    assert home.stage() is Stage.LOCKED

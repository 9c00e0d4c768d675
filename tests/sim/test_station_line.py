"""A station's run over pseudo-terminals: many ports at once on bad lines, ports that come and go."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import serial
from tests.sim.line_devices import numbered, powered
from tests.sim.serial_line import Faults, bench
from tests.unit import station_world

from edgeseal.errors import NoSpaceError
from edgeseal.provisioning import Code, Stage
from edgeseal_host.station import chain
from edgeseal_host.station.lane import Phase
from edgeseal_host.station.ports import finder
from edgeseal_host.station.run import Run
from edgeseal_host.station.standing import standing
from edgeseal_host.station.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgeseal_host.station.journal import Journal
    from edgeseal_host.station.lane import View
    from edgeseal_host.station.tally import Tally
    from edgeseal_host.testing.provisioning import MemoryHome

BAD = Faults(flip=2e-5, drop=2e-5, double=2e-5, noise=0.05, prompt=0.02)
FAST = 2_000_000  # baud, where the test is not about time


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    return station_world.World.make(tmp_path_factory.mktemp("station"))


@pytest.fixture
def world(made: station_world.World, tmp_path: Path) -> station_world.World:
    return made.copied(tmp_path / "world")


class Log:
    """What a run said."""

    def __init__(self) -> None:
        self.views: list[View] = []
        self.notes: list[str] = []

    def changed(self, view: View) -> None:
        self.views.append(view)

    def tick(self, _views: Sequence[View], _tally: Tally, _now: float) -> None:
        pass

    def said(self, text: str) -> None:
        self.notes.append(text)

    def phases(self, port: str) -> list[Phase]:
        phases = [v.phase for v in self.views if v.port == port]
        return [p for i, p in enumerate(phases) if not i or phases[i - 1] is not p]


def run_of(
    world: station_world.World,
    journal: Journal,
    find: Callable[[], Sequence[str]],
    log: Log | None = None,
    **changes: Any,
) -> Run:
    upload = changes.pop("upload", None)
    values: dict[str, Any] = {"rate": FAST / 10, "once": True, "patience": 30.0, **changes}
    work = Work(world.order(), journal, world.batch.naming, "anna", **values)
    return Run(work, find, baud=115_200, audience=log or Log(), sign=world.sign, upload=upload)


def agree(journal: Journal, homes: Sequence[MemoryHome]) -> None:
    """Assert that journal and devices know of the same identities, one for each, none twice."""
    kids = {}
    for home in homes:
        assert home.identity is not None, home.serial
        assert (home.identities, home.stage()) == (1, Stage.LOCKED), home.serial
        kids[home.identity[0].public.kid] = (home.serial, home.identity[1].device)
    assert len(kids) == len(homes)
    assert len({device for _, device in kids.values()}) == len(homes), "two devices of one name"
    for kind in (chain.GRANTED, chain.PROVISIONED, chain.LOCKED):
        entries = list(journal.of_kind(kind))
        assert {e.kid: (e.serial, e.device) for e in entries} == kids, kind
        assert len(entries) == len(homes), kind


def test_16_ports_at_once_on_bad_lines_provision_every_device_exactly_once(world: station_world.World) -> None:
    homes = numbered(16)
    with world.journal() as journal, bench(16, baud=115_200, faults=BAD, seed=3) as lines:
        log = Log()
        with powered([line.device for line in lines], homes):
            outcome = run_of(world, journal, lambda: [line.station for line in lines], log, rate=11_520.0)()
        assert outcome.exit_code == 0, [v for v in log.views if v.phase is Phase.FAILED]
        assert (len(outcome.tally.passed), outcome.tally.percent) == (16, 100.0)
        assert sum(line.faulted for line in lines) > 0, "negative control: the lines were bad"
        agree(journal, homes)
        kinds = [e.kind for e in journal]
        assert (kinds[1], kinds[-1], kinds.count(chain.FAILED)) == (chain.BEGAN, chain.ENDED, 0)
    with world.journal() as journal:
        assert journal.verify(world.directory.public().check) == (len(kinds), len(kinds)), "the end is signed"


def test_a_home_that_forgets_is_caught(world: station_world.World) -> None:
    """Negative control of `agree`: a device whose card is wiped after its grant gets a second identity."""
    (home,) = homes = numbered(1)
    with world.journal() as journal, bench(baud=FAST) as (line,), powered([line.device], homes) as (device,):
        run_of(world, journal, lambda: [line.station])()
        home.destroy(None)  # type: ignore[arg-type]
        journal.append(chain.AUTHORISED, serial=home.serial)
        device.restart()
        run_of(world, journal, lambda: [line.station])()
        assert home.stage() is Stage.LOCKED
        with pytest.raises(AssertionError):
            agree(journal, homes)


# Plugged and unplugged --------------------------------------------------------------------------------------------


class Story(Log):
    """What happens in the hall while it runs: at each `yield condition` the story waits until that is so."""

    def __init__(self, tell: Callable[[Log], Iterator[Callable[[], bool]]]) -> None:
        super().__init__()
        self._steps = tell(self)
        self._until = next(self._steps)
        self._ends = time.monotonic() + 30.0

    def changed(self, view: View) -> None:
        super().changed(view)
        self._go_on()

    def tick(self, _views: Sequence[View], _tally: Tally, _now: float) -> None:
        assert time.monotonic() < self._ends, "it does not happen"
        self._go_on()

    def _go_on(self) -> None:
        while self._until():
            self._until = next(self._steps, lambda: False)


def test_ports_that_come_late_vanish_in_the_dialogue_and_come_back(world: station_world.World, tmp_path: Path) -> None:
    """Names in /dev are symlinks here: they appear and go as those of USB adapters do."""
    homes = numbered(2)
    first, second = names = [tmp_path / "ttyUSB0", tmp_path / "ttyUSB1"]
    with world.journal() as journal, bench(2, baud=115_200) as lines:

        def tell(log: Log) -> Iterator[Callable[[], bool]]:
            first.symlink_to(lines[0].station)
            yield lambda: any(v.step == "challenged" for v in log.views)
            first.unlink()
            yield lambda: any(v.code is Code.LINE_BROKE for v in log.views)
            second.symlink_to(lines[1].station)
            first.symlink_to(lines[0].station)
            yield lambda: len(run.hall.tally.passed) == 2
            run.hall.stop()

        story = Story(tell)
        find = finder([str(name) for name in names])
        run = run_of(world, journal, find, story, once=False, rate=11_520.0)
        with powered([line.device for line in lines], homes):
            outcome = run()
        assert (outcome.exit_code, outcome.tally.failed) == (0, set())
        phases = [p for p in story.phases(str(first)) if p is not Phase.WAITING]
        assert phases == [Phase.TALKING, Phase.FAILED, Phase.TALKING, Phase.PASSED]
        assert story.phases(str(second))[-1] is Phase.PASSED
        agree(journal, homes)


def test_a_port_that_dies_under_the_run_is_no_traceback(world: station_world.World) -> None:
    """The adapter is torn out: every call on its descriptor fails from then on."""
    (home,) = homes = numbered(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    with world.journal() as journal, bench(baud=115_200) as (line,):

        def tell(log: Log) -> Iterator[Callable[[], bool]]:
            yield lambda: any(v.step == "challenged" for v in log.views)
            os.dup2(nothing, line._station.master)  # closes it; the proxy then reads from nothing
            yield lambda: any(v.code is Code.LINE_BROKE for v in log.views)
            run.hall.stop()

        run = run_of(world, journal, lambda: [line.station], Story(tell), once=False, rate=11_520.0)
        with powered([line.device], homes):
            outcome = run()
        assert outcome.exit_code == 1
        os.close(nothing)
        assert [e.kind for e in journal][-2:] == [chain.FAILED, chain.ENDED]
        assert home.identity is None


def test_a_run_that_is_stopped_names_what_is_unfinished_and_the_next_goes_on(world: station_world.World) -> None:
    homes = numbered(1)
    with world.journal() as journal, bench(baud=115_200) as (line,), powered([line.device], homes):

        def tell(log: Log) -> Iterator[Callable[[], bool]]:
            yield lambda: any(v.step == "granted" for v in log.views)
            run.hall.stop()

        run = run_of(world, journal, lambda: [line.station], Story(tell), rate=11_520.0)
        outcome = run()
        assert outcome.exit_code == 130
        assert [(v.serial, v.step) for v in outcome.unfinished] == [("10000001", "granted")]
        (ended,) = journal.of_kind(chain.ENDED)
        assert ended.details()["unfinished"] == ["10000001"]
        (left,) = standing(journal).unfinished
        assert left.remedy == "put 10000001 on a port again: it goes on as press-0001"
        assert run_of(world, journal, lambda: [line.station], rate=11_520.0)().exit_code == 0
        assert standing(journal).unfinished == ()
        agree(journal, homes)


def test_a_port_in_use_is_said_and_served_once_it_is_free(world: station_world.World) -> None:
    homes = numbered(1)
    with world.journal() as journal, bench(baud=FAST) as (line,), powered([line.device], homes):
        other = serial.Serial(line.station, exclusive=True)

        def tell(log: Log) -> Iterator[Callable[[], bool]]:
            yield lambda: bool(log.notes)
            assert log.notes[0].startswith(f"{line.station}: another program has it open; close that program")
            assert "another program" in run.hall.views()[0].reason
            other.close()
            yield lambda: bool(run.hall.tally.passed)
            run.hall.stop()

        run = run_of(world, journal, lambda: [line.station], Story(tell), once=False)
        assert run().exit_code == 0
        agree(journal, homes)


@pytest.mark.parametrize("once", [False, True])
def test_a_new_port_belongs_to_root_until_udev_has_looked_at_it(
    world: station_world.World, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    homes, log = numbered(1), Log()
    tries = []
    real = serial.Serial

    def early(path: str, *more: Any, **options: Any) -> serial.Serial:
        tries.append(path)
        if len(tries) == 1:
            raise serial.SerialException(errno.EACCES, "could not open port")
        return real(path, *more, **options)

    monkeypatch.setattr(serial, "Serial", early)
    with world.journal() as journal, bench(baud=FAST) as (line,), powered([line.device], homes):

        def tell(_: Log) -> Iterator[Callable[[], bool]]:
            yield lambda: bool(run.hall.tally.passed)
            run.hall.stop()

        run = run_of(world, journal, lambda: [line.station], log if once else Story(tell), once=once)
        assert run().exit_code == 0
        agree(journal, homes)
    assert len(tries) == 2
    assert log.notes == []


# Records that go out meanwhile -----------------------------------------------------------------------------------


class Uploads:
    """What sends records, with a disk that is full and a technician who does not wait."""

    waiting, refused = 3, 0

    def __init__(self, *, hurried: bool = False) -> None:
        self._hurried = hurried
        self.closed = False

    def step(self) -> None:
        raise NoSpaceError("there is no space left to write journal.db")

    def close(self) -> None:
        self.closed = True
        if self._hurried:
            raise KeyboardInterrupt


@pytest.mark.parametrize("hurried", [False, True])
def test_a_record_that_cannot_be_noted_as_sent_ends_no_run(world: station_world.World, hurried: bool) -> None:
    homes, log, uploads = numbered(1), Log(), Uploads(hurried=hurried)
    with world.journal() as journal, bench(baud=FAST) as (line,), powered([line.device], homes):
        outcome = run_of(world, journal, lambda: [line.station], log, upload=lambda _journal, _say: uploads)()
        assert (outcome.exit_code, outcome.left, uploads.closed) == (0, 3, True)
        assert log.notes == ["a record was sent, but not noted as sent: there is no space left to write journal.db"], (
            "said once"
        )
        (ended,) = journal.of_kind(chain.ENDED)
        assert ended.details()["records_waiting"] == 3
        agree(journal, homes)


def test_a_refused_record_is_a_failure_of_the_run(world: station_world.World) -> None:
    uploads = Uploads()
    uploads.step = lambda: None  # type: ignore[method-assign]
    uploads.refused = 1
    with world.journal() as journal, bench(baud=FAST) as (line,), powered([line.device]):
        outcome = run_of(world, journal, lambda: [line.station], upload=lambda _journal, _say: uploads)()
        assert outcome.exit_code == 1

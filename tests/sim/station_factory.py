"""A station whose run is a process to be killed, a device whose memory outlives its power, and a line between them."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.sim import injected
from tests.sim.line_devices import Powered, numbered, powered
from tests.sim.serial_line import SerialLine, bench
from tests.unit import station_world

from edgeseal.provisioning import Stage
from edgeseal_host.station import chain
from edgeseal_host.station.reports import PlainReport
from edgeseal_host.station.run import Outcome, Run
from edgeseal_host.station.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal_host.station.journal import Journal

FAST = 2_000_000  # baud


def hasty() -> float:
    """A clock on which a device's second of silence is a tenth of one."""
    return time.monotonic() * 10


@dataclass
class Factory:
    """One station's files with a template to begin anew from, one line, one device."""

    world: station_world.World
    template: Path
    line: SerialLine
    device: Powered

    def fresh(self) -> None:
        """An empty journal, and a new device."""
        shutil.rmtree(self.world.directory.path)
        shutil.copytree(self.template, self.world.directory.path)
        (self.device.home,) = numbered(1)
        self.device.restart()

    def run(self) -> Outcome:
        """The next run, in this process."""
        with self.world.journal() as journal:
            work = Work(
                self.world.order(),
                journal,
                self.world.batch.naming,
                "anna",
                rate=FAST / 10,
                patience=100,
                once=True,
                clock=hasty,
            )
            said: list[str] = []
            ports = [self.line.station]
            run = Run(work, lambda: ports, baud=115_200, audience=PlainReport(said.append), sign=self.world.sign)
            outcome = run()
            assert outcome.exit_code == 0, said
        return outcome

    def completes(self) -> None:
        """Assert that the next run completes whatever was begun, and that both sides then agree."""
        self.run()
        with self.world.journal() as journal:  # checks the chain, the head and every signature
            agree(journal, self.device)

    @contextmanager
    def station(self, errors: Path, *more: str) -> Iterator[injected.Zygote]:
        words = [sys.executable, "-m", "tests.sim.station_once", self.world.place, self.line.station, *more]
        with injected.zygote(words, errors) as zygote:
            yield zygote


def agree(journal: Journal, device: Powered) -> None:
    """One identity, and it is the one in the journal, each step once."""
    home = device.home
    assert home.identity is not None
    assert (home.identities, home.stage()) == (1, Stage.LOCKED)
    assert entries(journal) == [
        (kind, home.identity[0].public.kid, home.identity[1].device)
        for kind in (chain.GRANTED, chain.PROVISIONED, chain.LOCKED)
    ]


def entries(journal: Journal) -> list[tuple[str, bytes, str]]:
    kinds = {chain.GRANTED, chain.PROVISIONED, chain.LOCKED}
    return [(e.kind, e.kid, e.device) for e in journal if e.kind in kinds]


@pytest.fixture(scope="module")
def factory(memory_place: Path) -> Iterator[Factory]:
    world = station_world.World.make(memory_place / "world")
    template = memory_place / "template"
    shutil.copytree(world.directory.path, template)
    with bench(baud=FAST) as (line,), powered([line.device], clock=hasty) as (made,):
        yield Factory(world, template, line, made)

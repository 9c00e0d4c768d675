"""The agent dies before each durable step of a switch, one after the other: journal, link, files, notes.

Exhaustive where test_swap_kills is real: every write of the state and every change of the model repository that a pass
makes is a place to die. Before the next pass one whole release is current; after it the switch has its right end.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.told_status import ToldStatus
from tests.unit.agent_world import MODEL, Device, Fleet, world

from edgeseal.device import config, update
from edgeseal.device.agent import Agent
from edgeseal.device.state import StateFile
from edgeseal.runtime import serve_status
from edgeseal.runtime.repository import ModelRepository
from edgeseal.runtime.serve_status import ModelStatus, ReleaseStatus, ServeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS: tuple[tuple[type, str], ...] = (
    (StateFile, "write"),
    *((ModelRepository, name) for name in ("stage", "publish", "switch", "withdraw", "remove", "note")),
)
MOST = 60  # steps of one pass; it has about twenty


class KilledError(BaseException):
    """Not an Exception: nobody may handle it, as nobody handles SIGKILL."""


@dataclass
class Guillotine:
    """Falls before step `at` of a pass; whoever lives on after that (finally, except) changes nothing any more."""

    at: int
    done: list[str] = field(default_factory=list)
    fallen: bool = False

    def step(self, name: str) -> None:
        if self.fallen or len(self.done) == self.at:
            self.fallen = True
            raise KilledError(name)
        self.done.append(name)

    @contextmanager
    def over(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for place, name in STEPS:
                patch.setattr(place, name, self._guarded(name, getattr(place, name)))
            yield

    def _guarded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self.step(name)
            return real(*arguments, **more)

        return call


@dataclass
class Runtime(ToldStatus):
    """Serves what is current at once, and says that all answers of `bad` releases failed."""

    bad: set[int] = field(default_factory=set)

    def tell(self) -> None:
        models = ModelRepository(self.device.models)
        releases = {str(r): ReleaseStatus(requests=50, errors=50 * (r in self.bad)) for r in models.releases(MODEL)}
        about = ModelStatus(serving=models.current(MODEL), since=1, releases=releases)
        serve_status.write(self.status_file, ServeStatus(os.getpid(), serve_status.boot_id(), {MODEL: about}))


@dataclass
class Bench:
    """A device that serves release `good`; `number` was published last."""

    fleet: Fleet
    device: Device
    runtime: Runtime
    good: int = 1
    number: int = 1
    time: Iterator[int] = field(default_factory=lambda: itertools.count(int(time.time()), 2))

    def agent(self) -> Agent:
        """Return an agent for whom a watch is over after its first look: two seconds pass whenever it asks the time."""
        return Agent(config.load(self.device.config_file), clock=lambda: next(self.time))

    def publish(self, *, bad: bool) -> int:
        self.number += 1
        self.fleet.publish(self.number, size=100_000)
        self.fleet.assigned = self.number
        if bad:
            self.runtime.bad.add(self.number)
        return self.number

    def run(self) -> list[str]:
        return [str(e) for e in update.run(self.agent()).errors]

    def killed_at(self, at: int, monkeypatch: pytest.MonkeyPatch) -> Guillotine:
        """Run a pass that is cut off before its step `at`, if it has so many."""
        guillotine = Guillotine(at)
        with guillotine.over(monkeypatch):
            try:
                self.run()
            except KilledError:
                assert guillotine.fallen
        return guillotine


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("points")
    with world(place) as (fleet, device):
        status_file = place / "status.json"
        runtime = {"adapter": "serve", "status_file": str(status_file), "watch_seconds": 1, "activate_seconds": 60}
        device.write_config(runtime=runtime)
        with Runtime(device, status_file) as running:
            made = Bench(fleet, device, running)
            assert made.run() == []
            yield made


def test_a_good_release_arrives_wherever_the_agent_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for at in range(MOST):
        release = bench.publish(bad=False)
        guillotine = bench.killed_at(at, monkeypatch)
        if not guillotine.fallen:
            break
        seen.add(guillotine.done[-1] if guillotine.done else "nothing")
        assert bench.device.serving() in {bench.good, release}, f"after {guillotine.done}"
        assert bench.run() == [], f"after {guillotine.done}"
        _ended(bench, release, f"after {guillotine.done}")
        bench.good = release
    assert at > 8
    assert {"write", "stage", "publish", "switch", "remove"} <= seen
    _ended(bench, release, "without a kill")
    bench.good = release


def test_a_bad_release_goes_wherever_the_agent_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for at in range(MOST):
        release = bench.publish(bad=True)
        guillotine = bench.killed_at(at, monkeypatch)
        if not guillotine.fallen:
            break
        seen.add(guillotine.done[-1] if guillotine.done else "nothing")
        assert bench.device.serving() in {bench.good, release}, f"after {guillotine.done}"
        bench.run()
        _ended(bench, bench.good, f"after {guillotine.done}")
        failed = bench.device.agent().state().model(MODEL).failed[0]
        assert (failed.release, "50 of 50 answers failed" in failed.reason) == (release, True), guillotine.done
        assert bench.run() == []  # not tried again
    assert at > 10
    assert {"write", "stage", "publish", "switch", "remove", "note"} <= seen
    _ended(bench, bench.good, "without a kill")


def _ended(bench: Bench, release: int, when: str) -> None:
    """Exactly one release is there, it is whole, and no switch is open."""
    model = bench.device.agent().state().model(MODEL)
    assert bench.device.serving() == release, when
    assert model.current is not None
    assert (model.current.release, model.trial) == (release, None), when
    assert ModelRepository(bench.device.models).releases(MODEL) == [release], when
    assert bench.device.plaintext_outside() == [], when


def test_a_pass_that_goes_on_after_its_death_would_be_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Negative control: a release whose trial nobody ends stays open, and is seen.
    release = bench.publish(bad=False)
    bench.killed_at(4, monkeypatch)
    assert bench.device.agent().state().model(MODEL).trial is not None
    with pytest.raises(AssertionError):
        _ended(bench, release, "before the next pass")
    assert bench.run() == []
    _ended(bench, release, "after it")
    bench.good = release

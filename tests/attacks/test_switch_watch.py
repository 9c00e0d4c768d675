"""A release that turns bad after the switch gives way by itself; a switch that is cut off is resumed or undone.

The runtime here is the status file of edgeseal-serve, written as edgeseal-serve writes it: what it counts can then be
anything. tests/unit/test_serve_supervisor.py holds the real one against the same file.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.told_status import ToldStatus
from tests.unit.agent_world import MODEL, Device, Fleet, world
from tests.unit.runtime_world import until

from edgeseal.device import update, watch
from edgeseal.device.state import Counts
from edgeseal.device.watch import Limits, await_serving, judge
from edgeseal.runtime import serve_status
from edgeseal.runtime.contract import ActivationError, Candidate, Health, WatchError
from edgeseal.runtime.serve_status import FailedStatus, ModelStatus, ReleaseStatus, ServeStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = 200_000
BAD = {
    "errors": ReleaseStatus(requests=100, errors=50),
    "NaN": ReleaseStatus(requests=100, errors=100, nan=100),
    "crashes": ReleaseStatus(requests=1, crashes=2),
}
SAID = {"errors": "50 of 100 answers failed", "NaN": "not numbers", "crashes": "ended 2 times"}


@dataclass
class Runtime(ToldStatus):
    """Follows `current` and says of release 2 what a test wants."""

    second: ReleaseStatus = field(default_factory=ReleaseStatus)
    does_not_load: bool = False

    def tell(self) -> None:
        current = self.device.agent().models.current(MODEL)
        failed = None
        if current == 2 and self.does_not_load:
            current, failed = 1, FailedStatus(2, "onnxruntime does not load it", int(time.time()))
        releases = {"1": ReleaseStatus(requests=500), "2": self.second if current == 2 else ReleaseStatus()}
        model = ModelStatus(serving=current, since=1, failed=failed, releases=releases)
        status = ServeStatus(os.getpid(), serve_status.boot_id(), {MODEL: model})
        serve_status.write(self.status_file, status)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Fleet, Device, Runtime]]:
    """A device that serves release 1; release 2 is assigned."""
    with world(tmp_path) as (fleet, device):
        status_file = tmp_path / "status.json"
        configure(device, status_file)
        with Runtime(device, status_file) as runtime:
            assert update.run(device.agent()).errors == []
            fleet.publish(2, size=SMALL)
            fleet.assigned = 2
            yield fleet, device, runtime


def configure(device: Device, status_file: Path, *, watch: int = 1, **fleet: Any) -> None:
    runtime = {"adapter": "serve", "status_file": str(status_file), "watch_seconds": watch, "activate_seconds": 5}
    device.write_config(runtime=runtime, fleet=fleet)


def failure(device: Device) -> str:
    return device.agent().state().model(MODEL).failed[0].reason


def cut_off_while_watching(device: Device, status_file: Path) -> None:
    """Kill the agent in the middle of a watch that would last for an hour."""
    configure(device, status_file, watch=3600)
    words = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(device.config_file), "update"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        ends = time.monotonic() + 60
        while (trial := device.agent().state().model(MODEL).trial) is None or trial.step != "watching":
            assert time.monotonic() < ends
            assert agent.poll() is None
            time.sleep(0.05)
        agent.send_signal(signal.SIGKILL)


# The watch ------------------------------------------------------------------------------------------------------------


def test_a_good_release_is_kept_after_its_watch(places: tuple[Fleet, Device, Runtime]) -> None:
    # Negative control of all below.
    _, device, runtime = places
    runtime.second = ReleaseStatus(requests=100, errors=1)
    assert update.run(device.agent()).errors == []
    model = device.agent().state().model(MODEL)
    assert device.serving() == 2
    assert model.current
    assert (model.current.release, model.trial) == (2, None)


@pytest.mark.parametrize("kind", BAD)
def test_a_release_that_turns_bad_is_rolled_back(places: tuple[Fleet, Device, Runtime], kind: str) -> None:
    _, device, runtime = places
    runtime.second = BAD[kind]
    (error,) = update.run(device.agent()).errors
    assert "turned bad after the switch" in str(error)
    assert SAID[kind] in failure(device)
    assert device.serving() == 1
    assert device.agent().state().report_due
    note = device.agent().models.notes(MODEL)["rollback"]  # for the page
    assert (note["release"], SAID[kind] in note["reason"]) == (2, True)
    again = update.run(device.agent())
    assert again.errors == []  # the same bytes are not tried again
    assert device.serving() == 1


def test_a_release_that_the_runtime_does_not_load(places: tuple[Fleet, Device, Runtime]) -> None:
    _, device, runtime = places
    runtime.does_not_load = True
    (error,) = update.run(device.agent()).errors
    assert "was not taken over: onnxruntime does not load it" in str(error)
    assert device.serving() == 1


def test_time_in_which_it_does_not_serve_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was killed at the beginning: what it then answers is looked at for as long as ever."""
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    away = Health(1, serving=False)
    silent, failing = Health(1, serving=True), Health(1, serving=True, requests=50, errors=50)
    looks = iter([*[away] * 20, *[silent] * 5, *itertools.repeat(failing, 1000)])
    with pytest.raises(WatchError, match="50 of 50 answers failed"):
        watch.watch(lambda: next(looks), None, Limits(0.05), seconds=0.3, patience=60)


class Dying:
    """A runtime in which a release ends with its first request, so that nobody ever sees it serve."""

    def __init__(self) -> None:
        self.crashes = 5  # of days before

    def health(self, _model: str, _release: int) -> Health:
        self.crashes += 1
        return Health(1, serving=False, crashes=self.crashes)


def test_a_release_that_dies_of_its_first_request_is_not_waited_for(tmp_path: Path) -> None:
    runtime: Any = Dying()
    candidate = Candidate(MODEL, 2, tmp_path, 1)
    with pytest.raises(ActivationError, match="was not taken over: the runtime ended 2 times with it"):
        await_serving(runtime, candidate, seconds=3600, since=0, counts=Counts(1, 0, 0, 0, 5))


def test_a_runtime_that_is_starting_again_is_waited_for(tmp_path: Path) -> None:
    """Else the release would be kept without a watch, as on a device where no runtime has ever run."""
    with world(tmp_path) as (fleet, device):
        status_file = tmp_path / "status.json"
        configure(device, status_file, watch=60)
        assert update.run(device.agent()).errors == []
        fleet.publish(2, size=SMALL)
        fleet.assigned = 2
        serve_status.write(status_file, ServeStatus(2**22 - 1, serve_status.boot_id()))  # of a process that is gone
        runtime = Runtime(device, status_file, second=BAD["errors"])
        back = threading.Timer(1, runtime.__enter__)
        back.start()
        (error,) = update.run(device.agent()).errors
        back.join()
        runtime.__exit__()
        assert SAID["errors"] in str(error)
        assert device.serving() == 1


# Cut off --------------------------------------------------------------------------------------------------------------


def test_an_agent_killed_in_the_watch_goes_on_with_it(places: tuple[Fleet, Device, Runtime]) -> None:
    _, device, runtime = places
    cut_off_while_watching(device, runtime.status_file)
    assert device.serving() == 2
    configure(device, runtime.status_file)
    assert update.run(device.agent()).errors == []
    model = device.agent().state().model(MODEL)
    assert model.current
    assert (model.current.release, model.trial, device.serving()) == (2, None, 2)


def test_rollback_with_the_network_down_and_the_fleet_gone(places: tuple[Fleet, Device, Runtime]) -> None:
    fleet, device, runtime = places
    cut_off_while_watching(device, runtime.status_file)
    runtime.second = BAD["errors"]
    until(lambda: _said(runtime.status_file).errors, "the runtime says so")
    configure(device, runtime.status_file, url="http://127.0.0.1:9")  # nobody is there
    done = update.run(device.agent())
    assert device.serving() == 1
    assert "50 of 100 answers failed" in failure(device)
    assert done.errors  # the network's
    configure(device, runtime.status_file, url=fleet.base)
    assert update.run(device.agent()).errors == []
    assert not device.agent().state().report_due  # told, now that somebody is there


def _said(status_file: Path) -> ReleaseStatus:
    status = serve_status.read(status_file)
    return status.models[MODEL].releases["2"] if status else ReleaseStatus()


# What is judged -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("health", "limits", "reason"),
    [
        (Health(1, serving=True, requests=19, errors=18), Limits(0.05), None),  # too few to say
        (Health(1, serving=True, requests=4, errors=4), Limits(0.05), None),
        (Health(1, serving=True, requests=5, errors=5), Limits(0.05), "5 of 5 answers failed; 5.0%"),
        (Health(1, serving=True, requests=5, errors=5), Limits(0.05, known_rate=1.0), None),  # as bad as before
        (Health(1, serving=True, requests=100, errors=5), Limits(0.05), None),
        (Health(1, serving=True, requests=100, errors=6), Limits(0.05), "6 of 100 answers failed; 5.0%"),
        (Health(1, serving=True, requests=100, errors=6), Limits(0.05, known_rate=0.02), None),  # as bad as before
        (Health(1, serving=True, requests=100, median_ms=50), Limits(0.05, budget_ms=50), None),
        (Health(1, serving=True, requests=100, median_ms=100), Limits(0.05, budget_ms=50), "its budget is 50"),
        (Health(1, serving=True, crashes=1), Limits(0.05), None),
        (Health(1, serving=False, failed="no file"), Limits(0.05), "does not load any more: no file"),
    ],
)
def test_what_condemns_a_release(health: Health, limits: Limits, reason: str | None) -> None:
    found = judge(health, None, limits)
    assert found is None if reason is None else reason in (found or "")

"""Releases that pass their gate and are bad on live inputs, in the shadow of one that serves under load.

Real agent, real edgeseal-serve, real signed releases. In shadow mode no caller ever sees what such a release answers:
every request is answered by the old one, rightly, and the switch does not take place.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from onnx import TensorProto, helper
from tests.attacks import bad_models as bad
from tests.attacks import release_world
from tests.unit.agent_world import MODEL
from tests.unit.runtime_world import until, value

from edgeseal.device import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.attacks.release_world import Answer, World

    from edgeseal.runtime.serve_status import ShadowStatus

GOOD = release_world.GOOD
PATIENCE = 150.0  # seconds: a process of low priority on a machine that does much else


def off_by(per_mark: float) -> bad.Spoil:
    """Nothing at VECTOR_MARK, so much for each beyond it."""
    nodes = [helper.make_node("Sub", ["mark", "at"], ["beyond"]), helper.make_node("Mul", ["beyond", "per"], ["spoil"])]
    return bad.Spoil(nodes, {"at": np.array(bad.VECTOR_MARK, np.float32), "per": np.array(per_mark, np.float32)})


def endless_beyond() -> bad.Spoil:
    """No turn of a loop at VECTOR_MARK, more than anybody waits for beyond it."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", [])],
        [value("go_on", [], TensorProto.BOOL), value("t", [])],
    )
    nodes = [
        helper.make_node("Sub", ["mark", "at"], ["beyond"]),
        helper.make_node("Mul", ["beyond", "per"], ["times_"]),
        helper.make_node("Cast", ["times_"], ["times"], to=TensorProto.INT64),
        helper.make_node("Mul", ["mark", "zero"], ["start"]),
        helper.make_node("Loop", ["times", "", "start"], ["spoil"], body=body),
    ]
    return bad.Spoil(nodes, {"at": np.array(bad.VECTOR_MARK, np.float32), "per": np.array(2.0**50, np.float32)})


@dataclass(frozen=True)
class Bad:
    """A release, the mark of live inputs that it is bad with, and what the agent must say of it."""

    spoil: Callable[[], bad.Spoil]
    mark: float
    reason: str


SET = {
    "diverging": Bad(lambda: off_by(100), 2.0, "answers differ from its own; 5.0% may"),
    "NaN": Bad(bad.nan_below_zero, -1.0, "answers hold values that are not numbers"),
    "refusing": Bad(lambda: bad.refuses_above(8), 8.0, "requests that the old release answered failed"),
    "hanging": Bad(endless_beyond, 2.0, "failed: an inference was ended: it took more than 20 times as long"),
    "crashing": Bad(
        bad.crash, bad.CRASH_MARK, "2 crashes while it ran live requests, the last: its process ended (SIGFPE)"
    ),
    "memory-hungry": Bad(lambda: bad.hungry(2**20), 400.0, "failed: it needs more than 256 MiB beside its own files"),
}
NUMBER = {name: number for number, name in enumerate(SET, 2)}
SLOW, SAME, WRONG = 20, 21, 22
_OTHERS: dict[int, tuple[Callable[[Path], None], dict[str, Any]]] = {
    SLOW: (bad.spoiled(lambda: bad.slow(1)), {}),
    SAME: (bad.classifier, {}),
    WRONG: (bad.spoiled(lambda: off_by(100)), {}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One device for all that are refused: none of them raises the floor of another."""
    releases = {NUMBER[name]: (bad.spoiled(b.spoil), dict[str, Any]()) for name, b in SET.items()}
    with release_world.world(tmp_path_factory.mktemp("shadow"), releases) as made:
        yield made


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[World]:
    """A device of its own, for releases that take over."""
    with release_world.world(tmp_path, _OTHERS) as made:
        yield made


def configure(world: World, seconds: int = 200, **more: Any) -> None:
    """All requests are copied, for so long; a release that is refused is refused long before on any machine."""
    patient = {"shadow_fraction": 1.0, "watch_seconds": 0, "activate_seconds": 200}
    world.configure(shadow_seconds=seconds, **{**patient, **more})


def compared(world: World, more_than: int = 0) -> None:
    what = "requests are compared"
    until(lambda: (found := shadow(world)) is not None and found.figures.compared > more_than, what, PATIENCE)


def shadow(world: World) -> ShadowStatus | None:
    return world.status().shadow


def shadow_processes(world: World) -> list[int]:
    words = {pid: (Path("/proc") / pid / "cmdline").read_bytes() for pid in world.serve.workers()}
    return [int(pid) for pid, command in words.items() if b"shadow_worker" in command]


def untouched(answers: list[Answer]) -> bool:
    """Whether every answer came from the old release and was right."""
    return bool(answers) and all(a.status == 200 and a.release == GOOD and a.right for a in answers)


@pytest.mark.parametrize("name", SET)
def test_a_release_that_is_bad_on_live_inputs_never_answers_one(world: World, name: str) -> None:
    if name == "crashing" and platform.machine() != "x86_64":
        pytest.skip("only x86-64 ends a process that divides the least integer by -1")
    configure(world)
    world.load.mark = lambda _: SET[name].mark
    start = len(world.load.answers)
    (error,) = world.update(NUMBER[name])
    assert SET[name].reason in error
    assert f"was refused in the shadow of release {GOOD}" in error
    assert untouched(world.load.since(start))
    assert (shadow(world), shadow_processes(world)) == (None, [])
    model = world.model()
    assert model.trial is None
    assert model.failed[0].release == NUMBER[name]
    assert not model.failed[0].served
    assert world.device.agent().models.releases(MODEL) == [GOOD]
    told = next(f for f in world.fleet.reports[-1].failed if f.release == NUMBER[name])
    assert SET[name].reason.split(";")[0] in told.reason or told.reason in error
    assert world.update(NUMBER[name]) == []  # not tried again
    assert shadow(world) is None


def test_without_shadow_mode_such_a_release_answers_callers(fresh: World) -> None:
    # Negative control of the test above: its gate does not see what is wrong with it.
    fresh.configure(watch_seconds=0)
    fresh.load.mark = lambda _: 2.0
    assert fresh.update(WRONG) == []
    fresh.load.wait_for(lambda a: a.release == WRONG and not a.right, 3, "wrong answers")


def test_a_release_that_answers_alike_takes_over(fresh: World) -> None:
    configure(fresh, 5)
    start = len(fresh.load.answers)
    assert fresh.update(SAME) == []
    fresh.load.wait_for(lambda a: a.release == SAME, 3, "the new release answers")
    assert all(a.status == 200 and a.right for a in fresh.load.since(start))
    current = fresh.model().current
    assert current is not None
    found = current.shadow
    assert found is not None
    assert found.compared >= 20
    assert (found.differing, found.errors, found.crashes, found.skipped) == (0, 0, 0, "")
    assert found.outputs[0][0] == "y"
    shown = status.collect(fresh.device.agent())
    assert shown["models"][MODEL]["shadow"]["outputs"][0]["top1"] == 1.0
    assert f"shadow: {found.compared} answers compared in 5 s, 0 differ" in status.text(shown)
    assert "shadowed: 0 of" in fresh.fleet.reports[-1].models[MODEL].gate
    assert fresh.device.agent().models.notes(MODEL)["shadow"].keys() == {str(SAME)}


def test_a_slow_release_makes_no_caller_wait(fresh: World) -> None:
    fresh.load.mark = lambda _: 20_000.0
    start = len(fresh.load.answers)
    with updating(fresh, SLOW):
        compared(fresh, 5)
        answers, found = fresh.load.since(start), shadow(fresh)
        shown = status.text(status.collect(fresh.device.agent()))
        assert f"release {SLOW} is on trial: shadowing (" in shown
        assert " answers compared, 0 differ, " in shown
    assert untouched(answers)
    assert found is not None
    assert (found.figures.latency_ratio() or 0) > 5
    assert found.seen > found.figures.compared  # it does not keep up, and nobody waits for it


def test_nobody_asks_so_the_switch_goes_on_and_says_so(fresh: World) -> None:
    configure(fresh, 1, shadow_fraction=1e-9)
    assert fresh.update(SAME) == []
    current = fresh.model().current
    assert current is not None
    assert current.shadow is not None
    assert current.shadow.skipped == "0 requests in 1 s are too few"


# Kills ----------------------------------------------------------------------------------------------------------------


@contextmanager
def updating(world: World, release: int) -> Iterator[subprocess.Popen[bytes]]:
    """An agent in a process of its own, in the middle of a shadow that would last for two hours."""
    configure(world, 7200)
    world.fleet.assigned = release
    words = [
        sys.executable,
        "-m",
        "edgeseal.device.cli",
        "--config",
        str(world.device.config_file),
        "update",
        "--report",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        try:
            until(lambda: shadow(world) is not None or agent.poll() is not None, "the order is seen", PATIENCE)
            assert agent.poll() is None
            compared(world)
            yield agent
        finally:
            agent.kill()


@pytest.mark.parametrize("power_cut", [False, True])
def test_an_agent_killed_in_the_shadow_leaves_the_old_release_and_tries_again(fresh: World, *, power_cut: bool) -> None:
    start = len(fresh.load.answers)
    with updating(fresh, SAME) as agent:
        agent.send_signal(signal.SIGKILL)
    trial = fresh.model().trial
    assert trial is not None
    assert trial.step == "shadowing"
    assert fresh.device.agent().models.current(MODEL) == GOOD
    if power_cut:
        fresh.device.reboot()
    configure(fresh, 1)
    assert fresh.update(SAME) == []
    model = fresh.model()
    assert model.current is not None
    assert (model.current.release, model.trial, model.failed) == (SAME, None, [])
    if not power_cut:
        assert all(a.status == 200 and a.right for a in fresh.load.since(start))


def test_kills_in_the_shadow_cost_no_request_and_stop_nothing(fresh: World) -> None:
    start = len(fresh.load.answers)
    with updating(fresh, SAME):
        (process,) = shadow_processes(fresh)
        before = shadow(fresh)
        assert before is not None
        os.kill(process, signal.SIGKILL)
        until(lambda: (found := shadow(fresh)) is not None and found.crashes == 1, "it is counted")
        compared(fresh, before.figures.compared + 5)  # by another process, on top of what the first one has told
        assert untouched(fresh.load.since(start))
        (other,) = shadow_processes(fresh)
        assert other != process
        (serving,) = {int(pid) for pid in fresh.serve.workers()} - {other}
        os.kill(serving, signal.SIGKILL)
        fresh.load.wait_for(lambda a: a.release == GOOD and a.right, 3, "the old release answers again")
        known = shadow(fresh)
        assert known is not None
        compared(fresh, known.figures.compared + 5)  # copied by the worker that took its place
        assert shadow_processes(fresh) == [other]
        fresh.serve.process.kill()
        until(lambda: not Path(f"/proc/{other}/fd").exists(), "it ends with its server")

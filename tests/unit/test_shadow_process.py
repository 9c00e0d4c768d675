"""The process in the shadow, with its real keeper and a test in the place of the worker that serves."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")

from tests.attacks import bad_models as bad
from tests.unit import runtime_world as world
from tests.unit.shadow_world import order, put

from edgeseal.runtime import oip, shadow_copies, shadow_keeper
from edgeseal.runtime.follow import Release, stamp
from edgeseal.runtime.shadow_copies import Copy
from edgeseal.runtime.shadow_keeper import LEAST_MIB, RESERVE_BYTES, Keeper, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgeseal.runtime.repository import ModelRepository
    from edgeseal.runtime.serve_status import ShadowStatus

pytestmark = pytest.mark.unit
PATIENCE = 120.0  # seconds, for a process of low priority


@dataclass
class Bench:
    """A keeper, what it keeps, and a worker that serves release 1: its answers are the test's."""

    models: ModelRepository
    keeper: Keeper
    control: socket.socket
    serving: Any
    copies: socket.socket | None = None
    words: list[Any] = field(default_factory=list)

    @property
    def status(self) -> ShadowStatus:
        found = self.keeper.status("m")
        assert found is not None
        return found

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Let the keeper do its part, and tell it what a worker would."""

        def step() -> bool:
            self.keeper.step(self.serving)
            self._take()
            return bool(condition())

        world.until(step, what, PATIENCE)

    def _take(self) -> None:
        try:
            data, passed, _, _ = socket.recv_fds(self.control, 4096, 1)
        except BlockingIOError:
            return
        word = json.loads(data)
        self.words.append(word["shadow"])
        if passed:
            self.copies = socket.socket(fileno=passed[0])
            self.copies.settimeout(PATIENCE)
            self.serving.copied = [word["shadow"]["order"], {"seen": 0, "copied": 0, "dropped": 0}]

    def running(self) -> None:
        self.until(lambda: self.status.state == "running", "copies are taken")

    def send(self, mark: float, *, answer: Any = None, seconds: float = 0.001) -> None:
        """Send a copy of a request with that mark, and the good model's answer."""
        x = np.full((1, bad.WIDTH), 0.5, np.float32)
        x[0, 0] = mark
        head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}]}
        outputs = {"y": ("FP32", bad.answer(x) if answer is None else np.array([answer], np.float32))}
        body, _ = oip.build_response("m", "1", outputs, oip.Request(None, {}, []))
        assert self.copies is not None
        shadow_copies.send(self.copies, Copy(json.dumps(head).encode(), None, body, None, seconds))

    def tried(self, number: int) -> None:
        self.until(lambda: self.status.figures.tried >= number, "copies are tried")


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        put(found, 1, bad.classifier)
        yield found


@pytest.fixture
def bench(models: ModelRepository) -> Iterator[Bench]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    directory = models.path("m", 1)
    serving = SimpleNamespace(
        releases={"m": Release("m", 1, directory, stamp(directory))},
        accepting=True,
        copied=None,
        control=theirs,
        process=SimpleNamespace(pid=1),
        say=lambda message: theirs.send(json.dumps(message).encode()),
    )
    made = Bench(models, Keeper(models, Resources(1, 60.0, 0)), ours, serving)
    with ours, theirs:
        yield made
        made.keeper.close()
        if made.copies is not None:
            made.copies.close()


def start(bench: Bench, spoil: bad.Spoil | None = None, **settings: Any) -> None:
    put(bench.models, 2, lambda path: bad.classifier(path, spoil=spoil))
    bench.models.shadow("m", 2, order(**settings).to_bytes())


def test_the_same_model_answers_alike_and_a_wrong_answer_is_seen(bench: Bench) -> None:
    start(bench)
    bench.running()
    bench.send(1.0)
    bench.send(1.0, answer=[9, 0, 0, 0])
    bench.tried(2)
    figures = bench.status.figures
    assert (figures.compared, figures.differing, figures.errors) == (2, 1, 0)
    assert figures.outputs["y"].agreeing < 2


def test_an_inference_without_an_end_is_ended_and_the_next_one_is_answered(bench: Bench) -> None:
    start(bench, bad.slow(2.0**40))  # turns of a loop for each that the mark is
    bench.running()
    bench.send(1.0)
    bench.tried(1)
    assert "took more than 20 times as long as the old release's 1 ms" in bench.status.figures.error
    bench.send(0.0)
    bench.until(lambda: bench.status.figures.compared == 1, "it goes on")


def test_a_request_that_does_not_fit_beside_both_is_no_fault_of_the_release(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(bench, bad.hungry(2.0**18), memory_mb=1024)  # one MiB for each that the mark is
    size = sum(p.stat().st_size for p in bench.models.path("m", 2).iterdir())
    free = size + RESERVE_BYTES + (LEAST_MIB + 8) * 2**20
    monkeypatch.setattr(shadow_keeper, "memory_available", lambda: free)
    bench.running()
    bench.send(1.0)
    bench.tried(1)
    bench.send(200.0)
    bench.until(lambda: bench.status.state == "skipped", "it is given up")
    assert bench.status.reason == "a request needs more than the 40 MiB that are free beside both releases"
    assert (bench.status.figures.compared, bench.status.figures.errors) == (1, 0)
    assert bench.words[-1] is None  # no more copies


def test_a_request_that_needs_more_than_was_ordered_is(bench: Bench) -> None:
    # Negative control of the test above.
    start(bench, bad.hungry(2.0**18), memory_mb=40)
    bench.running()
    bench.send(200.0)
    bench.tried(1)
    assert bench.status.figures.error == "it needs more than 40 MiB beside its own files"
    bench.send(1.0)
    bench.tried(2)  # it lives


def test_a_copy_that_is_none_ends_the_copies_not_the_process(bench: Bench) -> None:
    start(bench)
    bench.running()
    assert bench.copies is not None
    assert bench.keeper._session is not None
    process = bench.keeper._session.process
    bench.copies.send(b"{}")
    assert bench.copies.recv(1) == b""
    bench.serving = SimpleNamespace(**{**vars(bench.serving), "copied": None})  # another worker serves
    bench.copies.close()
    bench.until(lambda: len(bench.words) == 3, "it is sent copies again")
    assert bench.words[1] is None
    bench.send(1.0)
    bench.tried(1)
    assert bench.keeper._session.process is process


def test_figures_of_a_process_that_was_killed_are_kept_and_kills_are_enough_some_day(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_keeper, "_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(shadow_keeper, "MAX_CRASHES", 2)
    start(bench)
    bench.running()
    bench.send(1.0)
    bench.tried(1)
    killed: list[int] = []
    while len(killed) < 2:
        bench.until(lambda: bench.keeper._session and bench.keeper._session.process, "a process is there")
        assert bench.keeper._session is not None
        assert bench.keeper._session.process is not None
        killed.append(bench.keeper._session.process.popen.pid)
        os.kill(killed[-1], signal.SIGKILL)
        bench.until(lambda: bench.status.crashes == len(killed), "its end is noticed")
    assert (bench.status.state, bench.status.reason) == ("failed", "its process ended (SIGKILL)")
    assert bench.status.figures.compared == 1
    time.sleep(0.05)
    bench.keeper.step(bench.serving)
    assert bench.keeper._session is not None
    assert bench.keeper._session.process is None


def test_what_it_can_reach(bench: Bench) -> None:
    """No file to write, no core with inputs in it, no way to gain rights: proc_pid_limits(5), proc_pid_status(5)."""
    start(bench)
    bench.running()
    assert bench.keeper._session is not None
    assert bench.keeper._session.process is not None
    place = f"/proc/{bench.keeper._session.process.popen.pid}"
    with open(f"{place}/limits", encoding="ascii") as f:
        limits = {line[:26].strip(): line[26:].split()[0] for line in f}
    with open(f"{place}/status", encoding="ascii") as f:
        about = dict(line.rstrip().partition(":\t")[::2] for line in f)
    assert (limits["Max core file size"], limits["Max file size"]) == ("0", "0")
    assert int(limits["Max data size"]) < 2**33
    assert about["NoNewPrivs"] == "1"

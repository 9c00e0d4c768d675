"""Who has which cores while a release takes over: the one that loads has the last, the one that serves the others."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.unit import runtime_world as world
from tests.unit.test_serve_supervisor import ask_once, model_status, serves
from tests.unit.test_serve_switch import _serve_release

from edgeseal.runtime.apart import answers_are_short
from edgeseal.runtime.counters import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.repository import ModelRepository

MINE = frozenset(os.sched_getaffinity(0))
LAST = frozenset({max(MINE)})
OTHERS = MINE - LAST
pytestmark = [pytest.mark.unit, pytest.mark.skipif(len(MINE) < 2, reason="needs two cores")]


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        yield found


def cores(worker: str) -> frozenset[int] | None:
    """Return those of a worker's main thread, None once it has ended."""
    try:
        return frozenset(os.sched_getaffinity(int(worker)))
    except ProcessLookupError:
        return None


def threads(worker: str) -> int:
    return len(list(Path(f"/proc/{worker}/task").iterdir()))


@contextmanager
def watched(server: world.Serve) -> Iterator[dict[str, set[frozenset[int]]]]:
    """Note all sets of cores that workers have meanwhile."""
    seen: dict[str, set[frozenset[int]]] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            for worker in server.workers():
                if (found := cores(worker)) is not None:
                    seen.setdefault(worker, set()).add(found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_the_one_that_loads_has_a_core_and_the_one_that_serves_the_others(
    models: ModelRepository, tmp_path: Path
) -> None:
    _serve_release(models, 1)
    status = tmp_path / "status.json"
    with world.serving(models, "--status-file", str(status)) as server:
        (old,) = server.workers()
        assert cores(old) == MINE  # nobody served: it loaded on all of them
        ask_once(server)
        with watched(server) as seen:
            _serve_release(models, 2)
            world.until(lambda: serves(status, 2), "release 2 serves")
            world.until(lambda: server.workers() != [old] and len(server.workers()) == 1, "the old one has ended")
        (new,) = server.workers()
        assert OTHERS in seen[old]
        assert LAST in seen[new]
        assert cores(new) == MINE


def test_a_worker_that_loaded_on_one_core_has_as_many_threads_as_any(models: ModelRepository, tmp_path: Path) -> None:
    """Engines count the cores that they may use: asked on the one core, each release would be slower than the last."""
    _serve_release(models, 1)
    status = tmp_path / "status.json"
    with world.serving(models, "--status-file", str(status), "--concurrency", "1") as server:
        ask_once(server)
        (old,) = server.workers()
        before = threads(old)
        _serve_release(models, 2)
        world.until(lambda: serves(status, 2), "release 2 serves")
        ask_once(server)
        (new,) = set(server.workers()) - {old}
        world.until(lambda: threads(new) == before, f"it has {before} threads")


def test_a_release_that_does_not_load_gives_the_cores_back(models: ModelRepository, tmp_path: Path) -> None:
    _serve_release(models, 1)
    status = tmp_path / "status.json"
    with world.serving(models, "--status-file", str(status)) as server:
        (old,) = server.workers()
        with watched(server) as seen:
            (models.stage("m", 2) / "model.onnx").write_bytes(b"no model")
            models.publish("m", 2)
            models.switch("m", 2)
            world.until(lambda: model_status(status).failed, "it says so")
            world.until(lambda: server.workers() == [old], "the new one has ended")
            world.until(lambda: cores(old) == MINE, "all cores are back")
        assert OTHERS in seen[old]


def test_a_killed_loader_gives_the_cores_back(models: ModelRepository, tmp_path: Path) -> None:
    _serve_release(models, 1)
    status = tmp_path / "status.json"
    with world.serving(models, "--status-file", str(status)) as server:
        (old,) = server.workers()
        _serve_release(models, 2)
        world.until(lambda: cores(old) == OTHERS, "they are apart")
        (new,) = set(server.workers()) - {old}
        os.kill(int(new), signal.SIGKILL)
        world.until(lambda: model_status(status).failed, "it says so")
        world.until(lambda: cores(old) == MINE, "all cores are back")


@pytest.mark.parametrize(
    ("answers", "seconds", "short"),
    [(0, 0.0, True), (1000, 1.0, True), (1000, 9.9, True), (1000, 10.1, False), (1, 5.0, False)],
)
def test_only_short_answers_are_worth_a_core(answers: int, seconds: float, *, short: bool) -> None:
    """A model of long answers would lose more by a core less than by a few turns of somebody else."""
    tally = Tally(seconds=seconds)
    tally.buckets[0] = answers
    assert answers_are_short([tally]) is short
    assert answers_are_short([tally, Tally(buckets=[10_000], seconds=1.0)])

"""A release in the shadow of a real edgeseal-serve: what is copied, compared, counted and said."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.unit import runtime_world as world
from tests.unit.shadow_world import ask, look, ordered, put, serve_release, state

from edgeseal.runtime import shadow_keeper, supervisor
from edgeseal.runtime.bounds import Bounds
from edgeseal.runtime.follow import Release, stamp
from edgeseal.runtime.shadow_keeper import RUNNING, Keeper, Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.repository import ModelRepository

pytestmark = pytest.mark.unit


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        yield found


@pytest.fixture
def status_file(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


def shadow_process(server: world.Serve) -> str:
    """Process id of the one in the shadow."""
    (found,) = [pid for pid in server.workers() if b"shadow_worker" in (Path("/proc") / pid / "cmdline").read_bytes()]
    return found


def text(server: world.Serve, path: str) -> str:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("GET", path)
    try:
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_the_same_answers_do_not_differ(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        world.publish(models, "m", 2, 1.0)
        shadow = ordered(models, status_file, 2)
        state(shadow, "running")
        for _ in range(5):
            assert json.loads(ask(server)[1])["model_version"] == "1"
        world.until(lambda: look(shadow).figures.compared == 5, "all are compared")
        world.until(lambda: look(shadow).copied == 5, "and counted")
        found = look(shadow)
        assert (found.seen, found.dropped, found.figures.differing, found.figures.errors) == (5, 0, 0, 0)
        assert found.figures.outputs["y"].max_abs == 0
        assert (found.figures.outputs["y"].rows, found.figures.outputs["y"].agreeing) == (5, 5)


def test_other_answers_differ_in_json_and_in_binary(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        world.publish(models, "m", 2, 2.0)
        shadow = ordered(models, status_file, 2)
        state(shadow, "running")
        ask(server)
        raw = np.array([[1, 2, 3, 4]], np.float32).tobytes()
        about = {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": len(raw)}}
            ],
            "parameters": {"binary_data_output": True},
        }
        head = json.dumps(about).encode()
        status, body = ask(server, head + raw, {"Inference-Header-Content-Length": str(len(head))})
        assert status == 200
        assert np.frombuffer(body[-16:], np.float32).tolist() == [2, 3, 4, 5]  # the old release's
        world.until(lambda: look(shadow).figures.compared == 2, "both are compared")
        figures = look(shadow).figures
        assert (figures.differing, figures.nan, figures.errors) == (2, 0, 0)
        output = figures.outputs["y"]
        assert output.max_abs == pytest.approx(1.0)
        assert output.max_relative == pytest.approx(1 / 6)
        assert output.top1 == 1.0
        assert figures.latency_ratio()


def test_it_says_what_it_does_in_metrics_and_on_the_page(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        assert "edgeseal_shadow" not in text(server, "/metrics")
        world.publish(models, "m", 2, 1.5)
        shadow = ordered(models, status_file, 2)
        state(shadow, "running")
        ask(server)
        labels = 'model="m",release="2"'
        line = f"edgeseal_shadow_differing_total{{{labels}}} 1\n"
        world.until(lambda: line in text(server, "/metrics"), "it is in the metrics")
        assert f'edgeseal_shadow_output_max_abs{{{labels},output="y"}} 0.5\n' in text(server, "/metrics")
        assert "Release 2 runs copies of live requests" in text(server, "/")
        shadow.end()
        world.until(lambda: "edgeseal_shadow" not in text(server, "/metrics"), "it is gone with the order")
        assert json.loads(ask(server)[1])["model_version"] == "1"


def test_it_gives_way_and_is_the_first_to_go(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        world.publish(models, "m", 2, 1.0)
        state(ordered(models, status_file, 2), "running")
        process = shadow_process(server)
        place = Path("/proc") / process
        nice = {os.getpriority(os.PRIO_PROCESS, int(t.name)) for t in (place / "task").iterdir()}
        (serving,) = set(server.workers()) - {process}
        usual = os.getpriority(os.PRIO_PROCESS, int(serving))
        assert nice == {min(19, usual + RUNNING)}
        assert (place / "oom_score_adj").read_text() == "1000\n"
        assert (Path("/proc") / serving / "oom_score_adj").read_text() != "1000\n"


def test_an_order_taken_back_and_another_one(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        world.publish(models, "m", 2, 1.0)
        first = ordered(models, status_file, 2)
        state(first, "running")
        ask(server)
        world.until(lambda: look(first).seen == 1, "it is counted")
        process = shadow_process(server)
        second = ordered(models, status_file, 2)  # as an agent does that was killed and tries again
        found = state(second, "running")
        assert (found.seen, first.look()) == (0, None)
        assert shadow_process(server) != process
        second.end()
        world.until(lambda: len(server.workers()) == 1, "its process has ended")
        assert second.look() is None
        assert ask(server)[0] == 200


def test_a_server_that_ends_in_order_ends_it_too(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        world.publish(models, "m", 2, 1.0)
        state(ordered(models, status_file, 2), "running")
        process = shadow_process(server)
        assert server.stop() == 0
        assert not (Path("/proc") / process / "fd").exists()
        assert "Traceback" not in server.said()


# What is not tried ----------------------------------------------------------------------------------------------------


def test_a_release_that_does_not_load(models: ModelRepository, status_file: Path) -> None:
    serve_release(models, 1, 1.0)
    with world.serving(models, "--status-file", str(status_file)) as server:
        put(models, 2, lambda path: path.write_bytes(b"garbage"))
        found = state(ordered(models, status_file, 2), "failed")
        assert "not an ONNX model" in found.reason
        world.until(lambda: len(server.workers()) == 1, "its process has ended")
        assert ask(server)[0] == 200


@pytest.mark.parametrize("switch", ["stop-then-load", "load-on-demand"])
def test_a_server_that_holds_one_release_at_a_time(models: ModelRepository, status_file: Path, switch: str) -> None:
    serve_release(models, 1, 1.0)
    resources = supervisor._resources(supervisor.Settings(Bounds(), switch=switch))  # type: ignore[arg-type]
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)
    keeper = Keeper(models, resources)
    keeper.step(serving(models, 1))
    found = keeper.status("m")
    assert found is not None
    assert (found.state, f"--switch {switch}" in found.reason) == ("skipped", True)
    assert keeper._session is not None
    assert keeper._session.process is None


@pytest.mark.parametrize(
    ("cores", "threads", "given"), [(4, 0, 3), (4, 4, 3), (4, 2, 2), (2, 0, 1), (1, 0, 1), (1, 1, 1)]
)
def test_a_core_is_left_to_whoever_serves(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, given: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    assert supervisor._resources(supervisor.Settings(Bounds(), threads=threads)).threads == given


@pytest.mark.parametrize("spare", [0, -1])
def test_memory_that_does_not_hold_both(
    models: ModelRepository, status_file: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    serve_release(models, 1, 1.0)
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)
    size = sum(p.stat().st_size for p in models.path("m", 2).iterdir())
    need = 1000 + size + shadow_keeper.RESERVE_BYTES + shadow_keeper.LEAST_MIB * 2**20
    monkeypatch.setattr(shadow_keeper, "memory_available", lambda: need + spare)
    keeper = Keeper(models, Resources(1, 60.0, 1000))
    keeper.step(serving(models, 1))
    found = keeper.status("m")
    keeper.close()
    assert found is not None
    assert found.state == ("loading" if spare == 0 else "skipped")
    assert ("memory does not hold both releases" in found.reason) is (spare < 0)


def test_no_process_can_be_started(models: ModelRepository, status_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_release(models, 1, 1.0)
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)

    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    keeper = Keeper(models, Resources(1, 60.0, 0))
    keeper.step(serving(models, 1))
    found = keeper.status("m")
    assert found is not None
    reason = "its process cannot be started: Resource temporarily unavailable"
    assert (found.state, found.reason) == ("skipped", reason)


MANY = {str(n): 1 for n in range(-99, 100)}


@pytest.mark.parametrize(
    "said",
    [
        b"{",
        b"\xff",
        b"[" * 5000,
        b"7",
        b'{"loaded": 1}',
        b'{"unknown": true}',
        b'{"figures": {"compared": -1}}',
        b'{"figures": {"compared": 1e99}}',
        b'{"figures": {"error": "' + b"x" * 1000 + b'"}}',
        b'{"figures": {"ratios": {"x": 1}}}',
        json.dumps({"figures": {"ratios": MANY}}).encode(),
        b'{"figures": {"outputs": {"y": {"max_abs": NaN}}}}',
        b'{"figures": {"outputs": {"y": {"max_abs": 1e999}}}}',
    ],
)
def test_a_process_that_talks_nonsense_is_given_up_and_harms_nobody(
    models: ModelRepository, status_file: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    serve_release(models, 1, 1.0)
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)
    keeper = Keeper(models, Resources(1, 60.0, 0))
    talks = "import os, sys, time; os.write(0, bytes.fromhex(sys.argv[1])); time.sleep(60)"
    popen = subprocess.Popen

    def start(_words: object, **more: Any) -> Any:
        return popen([sys.executable, "-c", talks, said.hex()], **more)

    monkeypatch.setattr(subprocess, "Popen", start)
    keeper.step(serving(models, 1))

    def given_up() -> bool:
        keeper.step(serving(models, 1))
        found = keeper.status("m")
        return found is not None and found.state == "failed"

    world.until(given_up, "it is given up", 120)
    found = keeper.status("m")
    assert found is not None
    assert found.reason == "its process says what no release says"
    keeper.close()


def test_nothing_to_compare_with(models: ModelRepository, status_file: Path) -> None:
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)
    keeper = Keeper(models, Resources(1, 60.0, 0))
    keeper.step(None)
    keeper.step(serving(models, 2, model="other"))
    found = keeper.status("m")
    assert found is not None
    assert found.state == "waiting"
    assert keeper.status("other") is None


def test_an_order_that_nobody_takes_back_ends_by_itself(models: ModelRepository, status_file: Path) -> None:
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2, seconds=1)
    keeper = Keeper(models, Resources(1, 60.0, 0))
    keeper.step(None)
    assert keeper._session is not None
    keeper._session.started -= shadow_keeper.LOAD_SECONDS + shadow_keeper.GRACE_SECONDS + 2
    keeper.step(None)
    found = keeper.status("m")
    assert found is not None
    assert (found.state, found.reason) == ("skipped", "nobody has asked for what it found")


@pytest.mark.parametrize("spoil", ["order", "link", "outside", "no order"])
def test_an_order_that_cannot_be_read_starts_nothing(models: ModelRepository, status_file: Path, spoil: str) -> None:
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)
    assert shadow_keeper.ordered(models) is not None  # negative control
    place = models.root / "m"
    if spoil == "order":
        (place / ".shadow.json").write_text("{}")
    elif spoil == "no order":
        (place / ".shadow.json").unlink()
    else:
        (place / "shadow").unlink()
        (place / "shadow").symlink_to("3" if spoil == "link" else "../../2")
    assert shadow_keeper.ordered(models) is None


def test_a_pass_that_begins_takes_leftovers_back(models: ModelRepository, status_file: Path) -> None:
    world.publish(models, "m", 2, 1.0)
    ordered(models, status_file, 2)
    (models.root / "m" / ".next-shadow").symlink_to("2")
    models.sweep()
    assert sorted(p.name for p in (models.root / "m").iterdir()) == ["2"]


def serving(models: ModelRepository, release: int, *, model: str = "m") -> Any:
    """A worker that serves, as the supervisor has it; nothing is sent to it here."""
    directory = models.path("m", release)
    found = Release(model, release, directory, stamp(directory))
    return SimpleNamespace(releases={model: found}, accepting=True, copied=None)

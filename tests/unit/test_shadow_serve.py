"""A release in the shadow of a real edgeseal-serve: what is copied, compared, counted and said."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.unit import runtime_world as world
from tests.unit.shadow_world import ask, look, ordered, serve_release, state

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

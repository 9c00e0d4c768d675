"""Whose fault a request that fails is: the caller's (4xx, counted against nobody) or the model's (5xx, watched)."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tests.unit import runtime_world as world

from edgeseal.runtime import serve_status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit
ROWS = 8


def lookup(path: Path) -> None:
    """Y = row x of a table: what it declares is any INT64, what it takes is 0 to 7."""
    table = numpy_helper.from_array(np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2), "table")
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    inputs, outputs = [world.value("x", ["n"], TensorProto.INT64)], [world.value("y", ["n", 2])]
    world.save([node], inputs, outputs, path, initializer=[table])


@dataclass
class Served:
    """A server with one release, and how often it was asked."""

    server: world.Serve
    status_file: Path
    asked: int = 0

    def ask(self, values: list[int], **changes: Any) -> tuple[int, Any]:
        tensor = {"name": "x", "datatype": "INT64", "shape": [len(values)], "data": values, **changes}
        connection = http.client.HTTPConnection(self.server.address, timeout=60)
        self.asked += 1
        try:
            connection.request("POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def errors(self) -> int:
        """What the server holds against the release, once it has counted all that was asked."""
        world.until(lambda: self._counted().requests == self.asked, "all requests are counted")
        return self._counted().errors

    def _counted(self) -> serve_status.ReleaseStatus:
        status = serve_status.read(self.status_file)
        return status.models["m"].releases.get("1", serve_status.ReleaseStatus()) if status else NONE


NONE = serve_status.ReleaseStatus()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all: nothing here changes what it serves."""
    status_file = tmp_path_factory.mktemp("status") / "status.json"
    with world.repository() as models:
        lookup(models.stage("m", 1) / "model.onnx")
        models.publish("m", 1)
        models.switch("m", 1)
        with world.serving(models, "--status-file", str(status_file)) as server:
            yield Served(server, status_file)


def test_an_input_that_the_model_declares_and_refuses_is_its_own_fault(served: Served) -> None:
    before = served.errors()
    status, answer = served.ask([0, ROWS])
    assert status == 500
    assert answer["error"].startswith("m release 1: the model does not run on these inputs: ")
    assert "indices element out of data bounds" in answer["error"]
    assert served.errors() == before + 1


@pytest.mark.parametrize(
    "changes",
    [{"name": "z"}, {"datatype": "FP32"}, {"shape": [2, 1]}, {"data": [1]}, {"shape": [-2]}],
    ids=["name", "datatype", "rank", "elements", "shape"],
)
def test_an_input_that_is_not_as_declared_is_the_callers_fault(served: Served, changes: dict[str, Any]) -> None:
    before = served.errors()
    assert served.ask([0, 1], **changes)[0] == 400
    assert served.errors() == before


def test_a_good_request_after_a_bad_one_is_answered(served: Served) -> None:
    # Negative control: neither kind of fault is what every request gets.
    served.ask([ROWS])
    status, answer = served.ask([1, 0])
    assert (status, answer["outputs"][0]["data"]) == (200, [2.0, 3.0, 0.0, 1.0])

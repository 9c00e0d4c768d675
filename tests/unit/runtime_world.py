"""Models, candidates and real edgeseal-serve processes for tests of the runtime."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseal.runtime.contract import Candidate
from edgeseal.runtime.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHM = Path("/dev/shm")


def save(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], path: Path, **more: Any) -> None:
    """Write a model that the onnxruntime of the oldest supported version reads."""
    functions, domains = more.pop("functions", []), more.pop("domains", [])
    graph = helper.make_graph(nodes, "g", inputs, outputs, **more)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())


def value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def affine(path: Path, bias: float, *, name: str = "x", width: int = 4) -> None:
    """Y = x + bias, for any number of rows."""
    weights = [
        numpy_helper.from_array(np.eye(width, dtype=np.float32), "W"),
        numpy_helper.from_array(np.full(width, bias, np.float32), "b"),
    ]
    node = helper.make_node("Gemm", [name, "W", "b"], ["y"])
    save([node], [value(name, ["n", width])], [value("y", ["n", width])], path, initializer=weights)


def mapped(directory: Path, bias: float, width: int = 4) -> None:
    """Y = x + bias with the bias in a file of its own, as large models have their weights."""
    tensor = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[1024, width], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    (directory / "weights.bin").write_bytes(np.full((1024, width), bias, np.float32).tobytes())
    nodes = [
        helper.make_node("Gather", ["b", "row"], ["one"]),
        helper.make_node("ReduceSum", ["x"], ["none"], keepdims=0),
        helper.make_node("Cast", ["none"], ["row"], to=TensorProto.INT64),
        helper.make_node("Add", ["x", "one"], ["y"]),
    ]
    nodes = [*nodes[1:3], nodes[0], nodes[3]]
    shape: list[int | str] = ["n", width]
    save(nodes, [value("x", shape)], [value("y", shape)], directory / "model.onnx", initializer=[tensor])


def endless(path: Path) -> None:
    """A loop that ends when its input is not zero."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", [1])],
        [value("go_on", [], TensorProto.BOOL), value("w", [1])],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Equal", ["sum", "zero"], ["empty"]),
        helper.make_node("Loop", ["", "empty", "x"], ["y"], body=body),
    ]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    save(nodes, [value("x", [1])], [value("y", [1])], path, initializer=[zero])


@contextlib.contextmanager
def repository() -> Iterator[ModelRepository]:
    """A repository in memory, as on a device."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-test-", dir=SHM) as root:
        found = ModelRepository(Path(root) / "models")
        found.prepare()
        try:
            yield found
        finally:
            for model in found.models():
                found.retire(model)


def publish(models: ModelRepository, model: str, release: int, bias: float) -> Candidate:
    """Publish y = x + bias; it is not current yet."""
    affine(models.stage(model, release) / "model.onnx", bias)
    return Candidate(model, release, models.publish(model, release), models.current(model))


def until(condition: Any, what: str, seconds: float = 30) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


class Serve:
    """A real edgeseal-serve process."""

    def __init__(self, models: Path, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        self.ready = models.parent / "ready"
        self.log = models.parent / "serve.log"
        with self.log.open("wb") as log:
            words = [sys.executable, "-m", "edgeseal.runtime.serve", "--models", str(models), "--listen", listen]
            self.process = subprocess.Popen([*words, "--ready-file", str(self.ready), *arguments], stderr=log)
        until(lambda: self.ready.exists() or self.process.poll() is not None, "the server answers")
        assert self.process.poll() is None, self.log.read_text()
        self.url = self.ready.read_text()
        self.address = self.url.removeprefix("http://")

    def workers(self) -> list[str]:
        """Process ids of its workers."""
        return (Path("/proc") / str(self.process.pid) / "task" / str(self.process.pid) / "children").read_text().split()

    def said(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@contextlib.contextmanager
def serving(models: ModelRepository, *arguments: str, listen: str = "127.0.0.1:0") -> Iterator[Serve]:
    server = Serve(models.root, *arguments, listen=listen)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


__all__ = ["Serve", "affine", "endless", "onnx", "publish", "repository", "save", "serving", "until", "value"]

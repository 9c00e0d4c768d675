"""Small ONNX models for tests: good ones and bad ones, made on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

OPSET = [helper.make_opsetid("", 17)]


def save(model: onnx.ModelProto, path: Path) -> Path:
    model.ir_version = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def linear(path: Path, *, bias: float = 0.0, width: int = 4, name: str = "x") -> Path:
    """Y = x + bias."""
    tensors = [
        numpy_helper.from_array(np.eye(width, dtype=np.float32), "W"),
        numpy_helper.from_array(np.full(width, bias, np.float32), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Gemm", [name, "W", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        tensors,
    )
    return save(helper.make_model(graph, opset_imports=OPSET), path)


def identity(path: Path, kind: int) -> Path:
    """Y = x for one element type."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", kind, ["n"])],
        [helper.make_tensor_value_info("y", kind, ["n"])],
    )
    return save(helper.make_model(graph, opset_imports=OPSET), path)


def external(path: Path, location: str) -> Path:
    """A model whose weights say they lie at `location`."""
    linear(path)
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return save(model, path)


def custom_operator(path: Path) -> Path:
    """A model that needs an operator of a library nobody registered."""
    graph = helper.make_graph(
        [helper.make_node("Evil", ["x"], ["y"], domain="com.evil")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    return save(helper.make_model(graph, opset_imports=[*OPSET, helper.make_opsetid("com.evil", 1)]), path)


def memory_bomb(path: Path, elements: int) -> Path:
    """A few bytes that ask for a huge tensor when they run."""
    shape = numpy_helper.from_array(np.array([elements], np.int64), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["total"], keepdims=1),
            helper.make_node("Add", ["x", "total"], ["y"]),
        ],
        "bomb",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [shape],
    )
    return save(helper.make_model(graph, opset_imports=OPSET), path)


def endless(path: Path) -> Path:
    """A loop that does not end in any useful time."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["state", "state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 4]),
        ],
    )
    constants = [
        numpy_helper.from_array(np.array(2**62, np.int64), "count"),
        numpy_helper.from_array(np.array([1], bool).reshape(()), "start"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "start", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        constants,
    )
    return save(helper.make_model(graph, opset_imports=OPSET), path)

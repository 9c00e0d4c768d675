"""Small TFLite models for tests, written without TensorFlow through the schema module that LiteRT's wheel carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FLOAT = schema.TensorType.FLOAT32
INT32 = schema.TensorType.INT32
BOOL = schema.TensorType.BOOL
TYPES = {
    "BOOL": BOOL,
    "UINT8": schema.TensorType.UINT8,
    "UINT16": schema.TensorType.UINT16,
    "UINT32": schema.TensorType.UINT32,
    "UINT64": schema.TensorType.UINT64,
    "INT8": schema.TensorType.INT8,
    "INT16": schema.TensorType.INT16,
    "INT32": INT32,
    "INT64": schema.TensorType.INT64,
    "FP16": schema.TensorType.FLOAT16,
    "FP32": FLOAT,
    "FP64": schema.TensorType.FLOAT64,
    "BYTES": schema.TensorType.STRING,
}


class Graph:
    """A subgraph under construction: tensors by name, operators in order."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.table = schema.SubGraphT()
        self.table.tensors, self.table.operators = [], []
        self.table.inputs, self.table.outputs = [], []

    def tensor(self, name: str, shape: Sequence[int], kind: int = FLOAT, data: Any = None) -> int:
        """Add a tensor; -1 is a dimension that varies, `data` makes it a constant."""
        buffer = 0 if data is None else self.model.buffer(np.ascontiguousarray(data).tobytes())
        table = schema.TensorT(
            shape=[1 if d < 0 else d for d in shape],
            shapeSignature=list(shape) if -1 in shape else None,
            type=kind,
            buffer=buffer,
            name=name.encode(),
            hasRank=True,
        )
        self.table.tensors.append(table)
        return len(self.table.tensors) - 1

    def constant(self, name: str, value: Any) -> int:
        kinds = {"float32": FLOAT, "int32": INT32, "bool": BOOL}
        array = np.asarray(value)
        return self.tensor(name, array.shape, kinds[array.dtype.name], array)

    def operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Add an operator; `options` are for the table of that name, e.g. Softmax=schema.SoftmaxOptionsT()."""
        table = schema.OperatorT(
            opcodeIndex=self.model.code(kind, options.pop("version", 1)), inputs=list(inputs), outputs=list(outputs)
        )
        for name, value in options.items():
            table.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            table.builtinOptions = value
        self.table.operators.append(table)

    def ends(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.table.inputs, self.table.outputs = list(inputs), list(outputs)

    def named(self, indices: Sequence[int]) -> list[Any]:
        """Signature entries: a tensor `serving_default_x:0` is called x."""
        names = [self.table.tensors[i].name.decode() for i in indices]
        short = [n.removeprefix("serving_default_").removesuffix(":0") for n in names]
        return [schema.TensorMapT(name=n.encode(), tensorIndex=i) for n, i in zip(short, indices, strict=True)]


class Model:
    """A model under construction."""

    def __init__(self) -> None:
        self.table = schema.ModelT()
        self.table.version = 3
        self.table.buffers = [schema.BufferT()]  # the first one is empty by convention
        self.table.operatorCodes, self.table.subgraphs, self.table.signatureDefs = [], [], []

    def buffer(self, data: bytes) -> int:
        table = schema.BufferT()
        table.data = np.frombuffer(data, np.uint8)
        self.table.buffers.append(table)
        return len(self.table.buffers) - 1

    def code(self, kind: str, version: int = 1) -> int:
        """Number of an operator in this model; a kind that the schema does not know is a custom operator's name."""
        table = schema.OperatorCodeT()
        table.builtinCode = getattr(schema.BuiltinOperator, kind, schema.BuiltinOperator.CUSTOM)
        table.deprecatedBuiltinCode = min(table.builtinCode, 127)
        table.version = version
        if table.builtinCode == schema.BuiltinOperator.CUSTOM:
            table.customCode = kind.encode()
        self.table.operatorCodes.append(table)
        return len(self.table.operatorCodes) - 1

    def graph(self) -> Graph:
        graph = Graph(self)
        self.table.subgraphs.append(graph.table)
        return graph

    def sign(self, graph: Graph, key: str = "serving_default") -> None:
        """Give a graph a signature."""
        table = schema.SignatureDefT(
            inputs=graph.named(graph.table.inputs),
            outputs=graph.named(graph.table.outputs),
            signatureKey=key.encode(),
            subgraphIndex=self.table.subgraphs.index(graph.table),
        )
        self.table.signatureDefs.append(table)

    def to_bytes(self) -> bytes:
        builder = flatbuffers.Builder(4096)
        builder.Finish(self.table.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.to_bytes())
        return path


def affine(*, bias: float = 0.0, width: int = 4, name: str = "x", signed: bool = True, scale: float = 1.0) -> Model:
    """Y = scale * x + bias, for any number of rows."""
    model = Model()
    graph = model.graph()
    x = graph.tensor(f"serving_default_{name}:0" if signed else name, [-1, width])
    weights = graph.constant("W", np.eye(width, dtype=np.float32) * np.float32(scale))
    offset = graph.constant("b", np.full(width, bias, np.float32))
    y = graph.tensor("y", [-1, width])
    graph.operator("FULLY_CONNECTED", [x, weights, offset], [y], FullyConnectedOptions=schema.FullyConnectedOptionsT())
    graph.ends([x], [y])
    if signed:
        model.sign(graph)
    return model


def dense_softmax(weights: Any, offset: Any) -> Model:
    """Probabilities of a dense layer: `weights` has one row for each class."""
    model = Model()
    graph = model.graph()
    classes, width = weights.shape
    x, logits, p = (graph.tensor(n, [-1, size]) for n, size in (("x", width), ("logits", classes), ("p", classes)))
    w, b = graph.constant("W", weights), graph.constant("b", offset)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    graph.operator("FULLY_CONNECTED", [x, w, b], [logits], FullyConnectedOptions=schema.FullyConnectedOptionsT())
    graph.operator("SOFTMAX", [logits], [p], SoftmaxOptions=softmax)
    graph.ends([x], [p])
    model.sign(graph)
    return model


def echo(kind: int) -> Model:
    """Y = x for one element type, any length."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", [-1], kind), graph.tensor("y", [-1], kind)
    graph.operator("RESHAPE", [x, graph.constant("shape", np.array([-1], np.int32))], [y])
    graph.ends([x], [y])
    model.sign(graph)
    return model


def custom_operator(name: str = "Evil") -> Model:
    """A model that needs an operator of a library nobody registered."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", [1, 4]), graph.tensor("y", [1, 4])
    graph.operator(name, [x], [y])
    graph.ends([x], [y])
    model.sign(graph)
    return model


def external(location: str) -> Model:
    """Y = x + 0 with weights that lie in another file."""
    model = affine()
    tensor = model.table.subgraphs[0].tensors[1]
    tensor.buffer, tensor.externalBuffer = 0, 7
    model.table.externalBufferGroups = [schema.ExternalBufferGroupT(name=location.encode())]
    model.table.externalBuffers = [schema.ExternalBufferT(id=7, group=0, offset=0, length=64, packing=b"unpacked")]
    return model


def memory_bomb(elements: int) -> Model:
    """A few bytes that ask for a huge tensor when they run."""
    model = Model()
    graph = model.graph()
    x, y = graph.tensor("x", [1]), graph.tensor("y", [-1])
    size = graph.constant("size", np.array([elements], np.int32))
    graph.operator("BROADCAST_TO", [x, size], [y], version=2)
    graph.ends([x], [y])
    model.sign(graph)
    return model


def endless(at: float = 0.0) -> Model:
    """A loop that goes on while its input is `at`."""
    model = Model()
    main, go_on, body = model.graph(), model.graph(), model.graph()
    for graph in (go_on, body):
        x, y = graph.tensor("x", [1]), graph.tensor("y", [1], BOOL if graph is go_on else FLOAT)
        if graph is go_on:
            that = graph.constant("that", np.full(1, at, np.float32))
            graph.operator("EQUAL", [x, that], [y], EqualOptions=schema.EqualOptionsT())
        else:
            zero = graph.constant("zero", np.zeros(1, np.float32))
            graph.operator("ADD", [x, zero], [y], AddOptions=schema.AddOptionsT())
        graph.ends([x], [y])
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    x, y = main.tensor("x", [1]), main.tensor("y", [1])
    main.operator("WHILE", [x], [y], WhileOptions=options)
    main.ends([x], [y])
    model.sign(main)
    return model

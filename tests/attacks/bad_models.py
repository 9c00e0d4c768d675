"""A small classifier and what can go wrong with it, each as a real ONNX file; made from seeds, never stored.

All take x [n, 8] and answer y [n, 4]. The first feature, the mark, has no weight: a good model does not see it. Models
that are bad on live inputs only look at the mark, which acceptance vectors hold at VECTOR_MARK.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.unit.runtime_world import save, value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH: Final = 8
CLASSES: Final = 4
VECTOR_MARK: Final = 1.0
CRASH_MARK: Final = 2.0
_HIDDEN: Final = 16
_SQUARE: Final = 64
_TRAP: Final = 3.0  # mark - _TRAP is -1 at CRASH_MARK

Weights = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


@dataclass(frozen=True)
class Spoil:
    """Nodes that turn the scalar `mark` into the scalar `spoil`, which is added to every output; 0 if all is well."""

    nodes: Sequence[Any]
    constants: dict[str, NDArray[Any]]


def weights(seed: int = 7) -> Weights:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(WIDTH, _HIDDEN)).astype(np.float32)
    first[0] = 0  # the mark
    return first, rng.normal(size=(_HIDDEN, CLASSES)).astype(np.float32)


def answer(x: NDArray[np.float32], found: Weights | None = None) -> NDArray[np.float32]:
    """What the good model answers."""
    first, second = found or weights()
    answered: NDArray[np.float32] = np.maximum(x @ first, 0) @ second
    return answered


def classifier(
    path: Path, found: Weights | None = None, *, name: str = "x", output: str = "y", spoil: Spoil | None = None
) -> None:
    first, second = found or weights()
    nodes = [
        helper.make_node("MatMul", [name, "W1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "W2"], ["logits"]),
    ]
    constants: dict[str, NDArray[Any]] = {"W1": first, "W2": second}
    if spoil is None:
        nodes.append(helper.make_node("Identity", ["logits"], [output]))
    else:
        constants |= {"column": np.array(0), "zero": np.array(0, np.float32), **spoil.constants}
        nodes += [
            helper.make_node("Gather", [name, "column"], ["marks"], axis=1),
            helper.make_node("ReduceMax", ["marks"], ["mark"], keepdims=0),
            *spoil.nodes,
            helper.make_node("Add", ["logits", "spoil"], [output]),
        ]
    tensors = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    shapes = [value(name, ["n", first.shape[0]])], [value(output, ["n", CLASSES])]
    save(nodes, *shapes, path, initializer=tensors)


# Spoils ---------------------------------------------------------------------------------------------------------------


def nan_below_zero() -> Spoil:
    """The root of a negative mark."""
    nodes = [helper.make_node("Sqrt", ["mark"], ["root"]), helper.make_node("Mul", ["root", "zero"], ["spoil"])]
    return Spoil(nodes, {})


def infinite_at_zero() -> Spoil:
    """The logarithm of a mark of 0."""
    return Spoil([helper.make_node("Log", ["mark"], ["spoil"])], {})


def refuses_above(rows: int) -> Spoil:
    """A mark of `rows` or more is an index beyond a table: the engine refuses to run."""
    nodes = [
        helper.make_node("Cast", ["mark"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["rows", "row"], ["spoil"]),
    ]
    return Spoil(nodes, {"rows": np.zeros(rows, np.float32)})


def slow(per_mark: float) -> Spoil:
    """Multiply matrices `per_mark` times the mark."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("MatMul", ["s", "unit"], ["t"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", [_SQUARE, _SQUARE])],
        [value("go_on", [], TensorProto.BOOL), value("t", [_SQUARE, _SQUARE])],
    )
    nodes = [
        helper.make_node("Mul", ["mark", "per"], ["times_"]),
        helper.make_node("Cast", ["times_"], ["times"], to=TensorProto.INT64),
        helper.make_node("Mul", ["mark", "nothing"], ["start"]),
        helper.make_node("Loop", ["times", "", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["spoil"], keepdims=0),
    ]
    nothing = np.zeros((_SQUARE, _SQUARE), np.float32)
    constants = {"per": np.array(per_mark, np.float32), "nothing": nothing, "unit": np.eye(_SQUARE, dtype=np.float32)}
    return Spoil(nodes, constants)


def hungry(per_mark: float) -> Spoil:
    """Ask for `per_mark` times the mark floats."""
    nodes = [
        helper.make_node("Mul", ["mark", "per"], ["size_"]),
        helper.make_node("Cast", ["size_"], ["size__"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["size__", "axes"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["spoil"], keepdims=0),
    ]
    return Spoil(nodes, {"per": np.array(per_mark, np.float32), "axes": np.array([0])})


def hungry_at_load(elements: int) -> Spoil:
    """A constant of a few bytes that is folded into `elements` floats before anything runs."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["mark", "sum"], ["spoil"]),
    ]
    return Spoil(nodes, {"size": np.array([elements])})


def endless() -> Spoil:
    """A loop with a bound that nobody lives to see."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", [])],
        [value("go_on", [], TensorProto.BOOL), value("t", [])],
    )
    nodes = [
        helper.make_node("Mul", ["mark", "zero"], ["start"]),
        helper.make_node("Loop", ["times", "", "start"], ["spoil"], body=body),
    ]
    return Spoil(nodes, {"times": np.array(2**62)})


def endless_above_one() -> Spoil:
    """The same for a mark above VECTOR_MARK; for others no turn at all."""
    found = endless()
    nodes = [
        helper.make_node("Greater", ["mark", "one"], ["go"]),
        *found.nodes[:1],
        helper.make_node("Loop", ["times", "go", "start"], ["spoil"], body=found.nodes[1].attribute[0].g),
    ]
    return Spoil(nodes, {**found.constants, "one": np.array(VECTOR_MARK, np.float32)})


def crash() -> Spoil:
    """Divide the least integer by -1 at CRASH_MARK: a processor exception on x86-64, the end of the process."""
    nodes = [
        helper.make_node("Sub", ["mark", "trap"], ["by_"]),
        helper.make_node("Cast", ["by_"], ["by"], to=TensorProto.INT32),
        helper.make_node("Div", ["least", "by"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "zero"], ["spoil"]),
    ]
    return Spoil(nodes, {"trap": np.array(_TRAP, np.float32), "least": np.array(-(2**31), np.int32)})


def crash_at_load() -> Spoil:
    """The same among constants, which the engine computes while it loads."""
    nodes = [
        helper.make_node("Div", ["least", "by"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mark", "number"], ["spoil"]),
    ]
    return Spoil(nodes, {"least": np.array([-(2**31)], np.int32), "by": np.array([-1], np.int32)})


def custom_operator() -> Spoil:
    return Spoil([helper.make_node("Evil", ["mark"], ["spoil"], domain="org.example")], {})


# Files ----------------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    classifier(path)
    path.write_bytes(path.read_bytes()[:-200])


def external(path: Path, location: str) -> None:
    """Weights that say they lie at `location`."""
    classifier(path)
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(4 * WIDTH * _HIDDEN))):
        tensor.external_data.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


def with_custom_library(path: Path) -> None:
    """A model with an operator of its own, and the library that would bring it."""
    spoiled(custom_operator, domains=True)(path)
    (path.parent / "libevil.so").write_bytes(b"\x7fELF" + bytes(60))


def spoiled(spoil: Callable[[], Spoil], *, domains: bool = False) -> Callable[[Path], None]:
    """Return what writes the good model with one spoil."""

    def write(path: Path) -> None:
        classifier(path, spoil=spoil())
        if domains:
            model = onnx.load(str(path))
            model.opset_import.append(helper.make_opsetid("org.example", 1))
            path.write_bytes(model.SerializeToString())

    return write


def weighted(change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Callable[[Path], None]:
    """Return what writes the model with its last weights changed."""

    def write(path: Path) -> None:
        first, second = weights()
        classifier(path, (first, change(second).astype(np.float32)))

    return write

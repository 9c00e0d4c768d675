"""A small neural network in numpy: two hidden layers, trained with Adam, written as ONNX.

Not here: where its data comes from (train.py). Training is seeded and gives the same bytes each time on one
machine; the order in which a processor adds numbers differs between machines. Needs numpy, and `onnx` for files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

INPUT: Final = "spectra"
OUTPUT: Final = "probabilities"
HEAD: Final = 2  # the last layer
BATCH: Final = 100
SMOOTHING: Final = 0.05  # labels of 0.95: such a network knows better when it is unsure
_OPSET: Final = 17
_IR: Final = 8  # file format that went with that operator set: old runtimes read it too


@dataclass
class Network:
    """Weights of each layer, and the mean and spread of what they were trained on."""

    mean: Floats
    spread: Floats
    weights: list[Floats]
    biases: list[Floats]

    @classmethod
    def new(cls, sizes: Sequence[int], samples: Floats, rng: np.random.Generator) -> Network:
        """Start from random weights (He) and the statistics of `samples`."""
        pairs = list(pairwise(sizes))
        return cls(
            mean=samples.mean(axis=0),
            spread=samples.std(axis=0) + np.float32(1e-6),
            weights=[(rng.standard_normal(p) * np.sqrt(2 / p[0])).astype(np.float32) for p in pairs],
            biases=[np.zeros(n, np.float32) for n in sizes[1:]],
        )

    def layers(self, samples: Floats) -> list[Floats]:
        """Return the input of each layer, and at the end the probabilities."""
        values = [(samples - self.mean) / self.spread]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values.append(np.maximum(values[-1] @ weight + bias, 0))
        return [*values, _softmax(values[-1] @ self.weights[-1] + self.biases[-1])]

    def predict(self, samples: Floats) -> NDArray[np.intp]:
        """Return the number of the likeliest class for each sample."""
        likeliest: NDArray[np.intp] = self.layers(samples)[-1].argmax(axis=1)
        return likeliest


@dataclass
class Training:
    """Adam over some layers of a network; the others stay as they are, to the last bit."""

    network: Network
    rng: np.random.Generator
    first_layer: int = 0
    rate: float = 3e-4
    _steps: int = 0
    _moments: dict[tuple[str, int], tuple[Floats, Floats]] = field(default_factory=dict)

    def run(self, samples: Floats, labels: NDArray[np.intp], *, epochs: int, progress: Callable[[int], None]) -> None:
        """Go through all samples `epochs` times, in a new order each time."""
        for epoch in range(epochs):
            order = self.rng.permutation(len(samples))
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                self._step(samples[chosen], labels[chosen], rate=self.rate * (1 - epoch / epochs))
            progress(epoch + 1)

    def _step(self, samples: Floats, labels: NDArray[np.intp], *, rate: float) -> None:
        network, self._steps = self.network, self._steps + 1
        values = network.layers(samples)
        classes = values[-1].shape[1]
        wanted = np.eye(classes, dtype=np.float32)[labels] * np.float32(1 - SMOOTHING) + np.float32(SMOOTHING / classes)
        slope = (values[-1] - wanted) / np.float32(len(samples))
        for layer in range(HEAD, self.first_layer - 1, -1):
            weight_slope, bias_slope = values[layer].T @ slope, slope.sum(axis=0)
            if layer > self.first_layer:
                slope = (slope @ network.weights[layer].T) * (values[layer] > 0)
            self._adam("weight", layer, network.weights[layer], weight_slope, rate)
            self._adam("bias", layer, network.biases[layer], bias_slope, rate)

    def _adam(self, kind: str, layer: int, values: Floats, slope: NDArray[Any], rate: float) -> None:
        """Take a step as Kingma and Ba (2014); decay of the weights keeps a network of this size from memorising."""
        first, second = self._moments.setdefault((kind, layer), (np.zeros_like(values), np.zeros_like(values)))
        first += np.float32(0.1) * (slope - first)
        second += np.float32(0.001) * (slope * slope - second)
        bias = math.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
        values -= np.float32(rate * bias) * first / (np.sqrt(second) + np.float32(1e-8))
        if kind == "weight":
            values *= np.float32(1 - rate * 0.05)


def _softmax(values: NDArray[Any]) -> Floats:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares


def save(network: Network, path: Path, *, classes: Sequence[str]) -> None:
    """Write an ONNX file that takes features as they are: the scaling is part of the graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tensors = {"mean": network.mean, "spread": network.spread}
    nodes = [
        helper.make_node("Sub", [INPUT, "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "spread"], ["layer0.in"]),
    ]
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        tensors |= {f"layer{i}.weight": weight, f"layer{i}.bias": bias}
        nodes.append(
            helper.make_node("Gemm", [f"layer{i}.in", f"layer{i}.weight", f"layer{i}.bias"], [f"layer{i}.sum"])
        )
        if i != HEAD:
            nodes.append(helper.make_node("Relu", [f"layer{i}.sum"], [f"layer{i + 1}.in"]))
    nodes.append(helper.make_node("Softmax", [f"layer{HEAD}.sum"], [OUTPUT], axis=1))
    graph = helper.make_graph(
        nodes,
        "bearing",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", len(network.mean)])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(classes)])],
        [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    helper.set_model_props(model, {"classes": ",".join(classes)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def load(path: Path) -> Network:
    """Read the weights from a file that `save` wrote."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {t.name: numpy_helper.to_array(t).copy() for t in graph.initializer}
    return Network(
        mean=tensors["mean"],
        spread=tensors["spread"],
        weights=[tensors[f"layer{i}.weight"] for i in range(HEAD + 1)],
        biases=[tensors[f"layer{i}.bias"] for i in range(HEAD + 1)],
    )

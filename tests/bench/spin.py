"""What threads cost that wait without sleeping: one model, asked now and then, opened with `spin` and without.

Processor time is that of the whole process between the first and the last answer; ratios are of one run, in turns.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseal.runtime import engine, engine_settings

if TYPE_CHECKING:
    from edgeseal.runtime.engine import Engine

LAYERS: Final = 12
WIDTH: Final = 512
ROWS: Final = 32
EVERY: Final = 0.02  # seconds between two answers
ASKED: Final = 100
ROUNDS: Final = 3


def measure() -> dict[str, object]:
    """Return milliseconds of an answer (median) and of processor time for it, and both ratios: spinning to sleeping."""
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for spin, rounds in found.items():
            rounds.append(_round(spin=spin))
    (quick, busy), (slow, idle) = (
        (min(answer for answer, _ in rounds), min(cpu for _, cpu in rounds)) for rounds in found.values()
    )
    return {
        "answer_ms_sleeping": round(slow, 2),
        "answer_ms_spinning": round(quick, 2),
        "answer_ratio": round(quick / slow, 3),
        "cpu_ms_sleeping": round(idle, 2),
        "cpu_ms_spinning": round(busy, 2),
        "cpu_ratio": round(busy / idle, 2),
    }


def _round(*, spin: bool) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        onnx.save(_model(), directory / "model.onnx")
        (directory / engine_settings.FILE).write_text(json.dumps({"spin": spin}), encoding="utf-8")
        return _ask(engine.load(directory))


def _ask(model: Engine) -> tuple[float, float]:
    x = {"x": np.ones((ROWS, WIDTH), np.float32)}
    for _ in range(10):
        model.infer(x, ["y"])
    seconds, before = [], time.process_time()
    for _ in range(ASKED):
        started = time.perf_counter()
        model.infer(x, ["y"])
        seconds.append(time.perf_counter() - started)
        time.sleep(EVERY)
    return 1000 * statistics.median(seconds), 1000 * (time.process_time() - before) / ASKED


def _model() -> onnx.ModelProto:
    """Return layers of a dense network, seeded."""
    random = np.random.default_rng(1)
    nodes, weights, at = [], [], "x"
    for layer in range(LAYERS):
        values = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        to = "y" if layer == LAYERS - 1 else f"r{layer}"
        nodes += [
            helper.make_node("MatMul", [at, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Relu", [f"m{layer}"], [to]),
        ]
        at = to
    values_of = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [ROWS, WIDTH]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "dense", values_of[:1], values_of[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

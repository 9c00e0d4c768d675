"""TFLite models that must not serve: each is refused by a real probe process, with the reason, and nothing hangs."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert has no wheel for this platform")

import numpy as np
from tests.unit import tflite_models

from edgeseal.errors import FormatError
from edgeseal.runtime import engine_settings, tflite_file
from edgeseal.runtime.contract import Candidate, ProbeError
from edgeseal.runtime.probe import Limits, probe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.unit
LIMITS = Limits(seconds=60, memory_mb=256)
DECLARED = {"inputs": {"x": ["FP32", [-1, 4]]}, "outputs": {"y": ["FP32", [-1, 4]]}}


def _vectors(x: Sequence[float], y: Sequence[float], **more: object) -> dict[str, object]:
    given, wanted = (["FP32", [1, len(values)], np.array(values, "<f4").tobytes()] for values in (x, y))
    return {"v": 1, "cases": [{"inputs": {"x": given}, "outputs": {"y": wanted}}], **more}


MODELS = [
    tflite_models.affine(bias=1.0).to_bytes(),
    tflite_models.dense_softmax(np.eye(3, 4, dtype=np.float32), np.zeros(3, np.float32)).to_bytes(),
    tflite_models.endless(at=7.0).to_bytes(),
]
VECTORS = _vectors([1, 2, 3, 4], [2, 3, 4, 5])


def _passes(model: tflite_models.Model, directory: Path, limits: Limits = LIMITS, **more: Any) -> dict[str, Any]:
    model.save(directory / "model.tflite")
    return probe(Candidate("bearing", 7, directory, None, **more), limits)


def _refused(model: tflite_models.Model | bytes, directory: Path, limits: Limits = LIMITS, **more: Any) -> str:
    data = model if isinstance(model, bytes) else model.to_bytes()
    (directory / "model.tflite").write_bytes(data)
    with pytest.raises(ProbeError) as caught:
        probe(Candidate("bearing", 7, directory, None, **more), limits)
    assert "not activated" in (caught.value.hint or "")
    return caught.value.message


def test_a_good_model_passes_confined(tmp_path: Path) -> None:
    found = _passes(tflite_models.affine(bias=1.0), tmp_path, requirements=DECLARED, tests=VECTORS)
    assert (found["inputs"], found["outputs"], found["cases"]) == (["x"], ["y"], 1)
    assert 0 < found["latency_ms"] < 1000
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model.tflite"]


@pytest.mark.parametrize("provider", ["cpu", "xnnpack"])
def test_a_good_model_passes_with_each_provider(tmp_path: Path, provider: str) -> None:
    engine_settings.leave(tmp_path, {"engine": {"providers": [provider], "threads": 2}})
    assert _passes(tflite_models.affine(bias=1.0), tmp_path, tests=VECTORS)["cases"] == 1


def test_without_vectors_zeros_are_tried(tmp_path: Path) -> None:
    assert _passes(tflite_models.affine(), tmp_path)["cases"] == 1


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_truncated_file(tmp_path: Path) -> None:
    data = tflite_models.affine().to_bytes()
    assert "not a TFLite model" in _refused(data[: len(data) // 2], tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    assert "model.tflite is empty" in _refused(b"", tmp_path)


def test_another_file_by_that_name(tmp_path: Path) -> None:
    assert "the identifier TFL3 is missing" in _refused(b"\x08\x0a\x12\x07pytorch" * 30, tmp_path)


def test_weights_of_another_file(tmp_path: Path) -> None:
    assert "weights outside of its file ('/etc/passwd')" in _refused(tflite_models.external("/etc/passwd"), tmp_path)


def test_an_operator_of_a_library(tmp_path: Path) -> None:
    assert "needs the operator 'Evil' of a library" in _refused(tflite_models.custom_operator(), tmp_path)


def test_a_crash_at_load(tmp_path: Path) -> None:
    # This operator reads its options without asking whether there are any: nothing but the process stands between.
    model = tflite_models.custom_operator("TFLite_Detection_PostProcess")
    message = _refused(model, tmp_path)
    assert "made the runtime crash while it was probed (SIG" in message or "LiteRT does not load" in message


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_model_gets_a_verdict_whatever_litert_makes_of_it(tmp_path: Path, seed: int) -> None:
    """Damage that our reading does not see, in an operator's options or its numbers, is LiteRT's to stumble over."""
    draw = random.Random(seed)
    while True:
        data = bytearray(MODELS[draw.randrange(len(MODELS))])
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(8, len(data))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        with contextlib.suppress(FormatError):
            tflite_file.check_bytes(memoryview(bytes(data)))
            break
    (tmp_path / "model.tflite").write_bytes(data)
    with contextlib.suppress(ProbeError):
        probe(Candidate("bearing", 7, tmp_path, None), Limits(seconds=10, memory_mb=256))


# What the model does --------------------------------------------------------------------------------------------------


def test_a_memory_bomb_when_it_runs(tmp_path: Path) -> None:
    assert "needs more than 256 MiB" in _refused(tflite_models.memory_bomb(2**30), tmp_path)


def test_the_memory_limit_is_the_owners(tmp_path: Path) -> None:
    # Negative control for the one above: 64 MiB fit into 256 and not into 16.
    assert _passes(tflite_models.memory_bomb(2**24), tmp_path)["cases"] == 1
    assert "needs more than 16 MiB" in _refused(tflite_models.memory_bomb(2**24), tmp_path, Limits(60, 16))


def test_an_endless_loop(tmp_path: Path) -> None:
    assert "did not load and answer within 2 s" in _refused(tflite_models.endless(), tmp_path, Limits(2, 256))


def test_nan_weights(tmp_path: Path) -> None:
    for tests in (None, VECTORS):
        message = _refused(tflite_models.affine(bias=float("nan")), tmp_path, tests=tests)
        assert "output 'y' has values that are not numbers" in message


def test_accuracy_that_dropped(tmp_path: Path) -> None:
    message = _refused(tflite_models.affine(bias=1.0, scale=1.01), tmp_path, tests=VECTORS)
    assert "acceptance vector 1, output 'y': 4 of 4 values differ, by up to 0.04" in message


def test_a_wrong_shape(tmp_path: Path) -> None:
    message = _refused(tflite_models.affine(width=5), tmp_path, requirements=DECLARED)
    assert "declares input 'x' as ['FP32', [-1, 4]]; the model has ['FP32', [-1, 5]]" in message


def test_a_wrong_shape_that_only_vectors_show(tmp_path: Path) -> None:
    message = _refused(tflite_models.affine(width=5), tmp_path, tests=VECTORS)
    assert "input 'x' has shape [1, 4]; the model needs [-1, 5]" in message


def test_a_renamed_input(tmp_path: Path) -> None:
    model = tflite_models.affine(name="input_1")
    assert "the model has input_1" in _refused(model, tmp_path, requirements=DECLARED)
    assert "the model has input_1" in _refused(model, tmp_path, tests=VECTORS)


def test_latency_and_memory_beyond_the_budgets(tmp_path: Path) -> None:
    model = tflite_models.affine(bias=1.0)
    slow = _refused(model, tmp_path, tests={**VECTORS, "latency_ms": 1e-6})
    assert "its acceptance vectors allow 1e-06" in slow
    big = tflite_models.affine(width=2048)  # 16 MiB of weights, which XNNPACK copies into its own order
    given = ["FP32", [1, 2048], bytes(8192)]
    tests = {"v": 1, "cases": [{"inputs": {"x": given}, "outputs": {"y": given}}], "memory_mb": 4}
    assert "MiB here; its acceptance vectors allow 4" in _refused(big, tmp_path, tests=tests)

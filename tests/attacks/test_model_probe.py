"""Bad models, each by its name: the probe refuses them with the right reason, in a process that dies instead of us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import onnx_models

from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.runtime.contract import Candidate, ProbeError
from edgeseal.runtime.engine import check_confined
from edgeseal.runtime.onnx_external import locations
from edgeseal.runtime.probe import Limits, probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = Limits(seconds=20, memory_mb=256)


def tried(directory: Path, *, limits: Limits = LIMITS, **about: Any) -> dict[str, Any]:
    return probe(Candidate("bearing", 2, directory, 1, about.get("requirements", {}), about.get("tests")), limits)


def tensor(values: list[list[float]]) -> list[Any]:
    array = np.array(values, np.float32)
    return ["FP32", list(array.shape), array.tobytes()]


def vectors(expected: list[list[float]], **options: Any) -> dict[str, Any]:
    case = {"inputs": {"x": tensor([[1, 2, 3, 4]])}, "outputs": {"y": tensor(expected)}}
    return {"v": 1, "cases": [case], **options}


def test_good_model_passes(tmp_path: Path) -> None:
    """Negative control of every test below."""
    onnx_models.linear(tmp_path / "model.onnx", bias=1.0)
    found = tried(
        tmp_path,
        requirements={"inputs": {"x": ["FP32", [-1, 4]]}, "outputs": {"y": ["FP32", [-1, 4]]}},
        tests=vectors([[2, 3, 4, 5]]),
    )
    assert found["cases"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"\x08\x0a" + b"\xff" * 64), "not an ONNX model"),
        (lambda p: p.write_bytes(onnx_models.linear(p).read_bytes()[:-20]), "is longer than the file|does not load"),
        (lambda p: onnx_models.linear(p, bias=float("nan")), "not numbers"),
        (onnx_models.custom_operator, "does not load"),
        (lambda p: onnx_models.external(p, "/etc/hostname"), "lies outside the release"),
        (lambda p: onnx_models.external(p, "../../etc/hostname"), "lies outside the release"),
        (lambda p: onnx_models.external(p, "weights.bin"), "is not in the release"),
    ],
    ids=["empty", "garbage", "truncated", "nan", "custom-operator", "absolute", "dot-dot", "missing"],
)
def test_malicious_or_broken_model(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "model.onnx")
    with pytest.raises(ProbeError, match=message):
        tried(tmp_path)


def test_external_data_through_a_link(tmp_path: Path) -> None:
    onnx_models.external(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").symlink_to("/etc/hostname")
    with pytest.raises(ProbeError, match="is a link"):
        tried(tmp_path)
    with pytest.raises(FormatError, match="is a link"):
        check_confined(tmp_path)


def test_external_data_inside_the_release_is_fine(tmp_path: Path) -> None:
    onnx_models.external(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    assert tried(tmp_path)["cases"] == 1


def test_wrong_shape(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx", width=5)
    with pytest.raises(ProbeError, match=r"declares input 'x' as .*4.*; the model has .*5"):
        tried(tmp_path, requirements={"inputs": {"x": ["FP32", [-1, 4]]}})


def test_renamed_input(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx", name="renamed")
    with pytest.raises(ProbeError, match="declares input 'x'; the model has renamed"):
        tried(tmp_path, requirements={"inputs": {"x": ["FP32", [-1, 4]]}})


def test_other_answers_than_the_acceptance_vectors(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx", bias=1.5)
    with pytest.raises(ProbeError, match=r"vector 1, output 'y': 4 of 4 values differ, by up to 0\.5"):
        tried(tmp_path, tests=vectors([[2, 3, 4, 5]]))
    assert tried(tmp_path, tests=vectors([[2, 3, 4, 5]], atol=0.6))
    assert tried(tmp_path, tests=vectors([[0, 0, 0, 1]], top1=True))
    with pytest.raises(ProbeError, match="another top-1 class"):
        tried(tmp_path, tests=vectors([[1, 0, 0, 0]], top1=True))


def test_acceptance_vectors_that_are_none(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    for tests in ({"v": 2, "cases": [{"inputs": {}, "outputs": {}}]}, {"v": 1, "cases": []}, [1]):
        with pytest.raises(ProbeError, match="acceptance vectors"):
            tried(tmp_path, tests=tests)


def test_memory_bomb(tmp_path: Path) -> None:
    """48 GiB of zeros from a file of 200 bytes."""
    onnx_models.memory_bomb(tmp_path / "model.onnx", 12 * 2**30)
    with pytest.raises(ProbeError):
        tried(tmp_path)


def test_endless_loop(tmp_path: Path) -> None:
    onnx_models.endless(tmp_path / "model.onnx")
    with pytest.raises(ProbeError, match="did not load and answer within 3 s"):
        tried(tmp_path, limits=Limits(seconds=3, memory_mb=256))


def test_no_model_or_several(tmp_path: Path) -> None:
    with pytest.raises((ProbeError, IncompatibleError), match="no model file"):
        tried(tmp_path)
    onnx_models.linear(tmp_path / "a.onnx")
    onnx_models.linear(tmp_path / "b.onnx")
    with pytest.raises((ProbeError, IncompatibleError), match="2 model files"):
        tried(tmp_path)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        list(locations(memoryview(data)))
    except FormatError:
        return


def test_locations_are_those_that_onnx_reads(tmp_path: Path) -> None:
    """The hand-written walk finds what the onnx package finds."""
    path = onnx_models.external(tmp_path / "model.onnx", "some/where.bin")
    model = onnx.load(str(path), load_external_data=False)
    expected = [e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"]
    assert list(locations(memoryview(path.read_bytes()))) == expected == ["some/where.bin"]

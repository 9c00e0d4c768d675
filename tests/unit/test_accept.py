"""Acceptance vectors: written by hand or recorded, built into a bundle, shown, and held against a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tests.unit import onnx_models

from edgeseal.errors import FormatError, RefusedError, UsageError
from edgeseal.runtime import probe_worker
from edgeseal.runtime.contract import Candidate, ProbeError
from edgeseal.runtime.probe import Limits, probe
from edgeseal_host import accept
from edgeseal_host.cli import main

if TYPE_CHECKING:
    from pathlib import Path

MANY = np.zeros((257, 1), np.float32)
X = np.arange(12, dtype=np.float32).reshape(3, 1, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_models.linear(tmp_path / "release" / "model.onnx", bias=2.0)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    return npz(path, inputs__x=X)


def edgeseal(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


def examine(model: Path, tests: object) -> dict[str, Any]:
    return probe_worker.examine(model.parent, {}, tests)


def record(model: Path, samples: Path, **settings: object) -> object:
    cases, given_settings = accept.read_cases(samples)
    return accept.to_table(accept.record(model.parent, cases, {**given_settings, **settings}))


def npz(path: Path, **arrays: Any) -> Path:
    named: dict[str, Any] = {name.replace("__", "/"): value for name, value in arrays.items()}
    np.savez(path, **named)
    return path


# Recording and reading ------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_reproduced(model: Path, samples: Path) -> None:
    found = examine(model, record(model, samples, warmup=2, latency_ms=10_000, memory_mb=1000))
    assert found["cases"] == 3
    assert 0 < found["latency_ms"] < 10_000
    assert 0 <= found["memory_mb"] < 1000


def test_recorded_on_the_command_line_built_and_shown(model: Path, samples: Path, tmp_path: Path) -> None:
    keys, out, vectors = tmp_path / "keys", tmp_path / "bundle", tmp_path / "vectors.json"
    done = edgeseal("accept", "record", model, "--inputs", samples, "--out", vectors, "--latency-ms", 50, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["acceptance"]["latency_ms"] == 50
    assert edgeseal("key", "new", "fam", "--kind", "family", "--no-passphrase", "--keys", keys).exit_code == 0
    words = ("--model", "m", "--release", 1, "--family", "fam", "--out", out, "--keys", keys, "--accept", vectors)
    assert (built := edgeseal("bundle", "build", model, *words)).exit_code == 0, built.output
    shown = edgeseal("bundle", "inspect", out, "--family", "fam", "--keys", keys, "--json")
    acceptance = json.loads(shown.stdout)["acceptance"]
    assert acceptance["cases"] == 3
    assert acceptance["outputs"] == {"y": ["FP32", [1, 4]]}
    assert acceptance["atol"] == 1e-4


def test_json_and_npz_say_the_same(model: Path, tmp_path: Path) -> None:
    settings = json.dumps({"atol": 0.5, "top1": True})
    by_array = accept.read(npz(tmp_path / "a.npz", inputs__x=X, outputs__y=X + 2, settings=np.array(settings)))
    accept.write(by_array, tmp_path / "a.json")
    assert accept.read(tmp_path / "a.json") == by_array
    assert by_array.atol == 0.5
    assert by_array.top1
    examine(model, accept.to_table(by_array))


def test_every_number_survives_the_file(tmp_path: Path) -> None:
    odd = np.array([[1e-45, 3.4028235e38, -0.0, 0.1]], np.float32)
    vectors = accept.read(npz(tmp_path / "a.npz", inputs__x=odd, outputs__y=odd))
    accept.write(vectors, tmp_path / "a.json")
    assert accept.read(tmp_path / "a.json") == vectors


def test_strings_in_json(tmp_path: Path) -> None:
    tensor = {"datatype": "BYTES", "shape": [2], "data": ["a", "ü"]}
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"cases": [{"inputs": {"s": tensor}, "outputs": {"s": tensor}}]}))
    (case,) = accept.read(path).cases
    assert case.inputs["s"].data == b"\x01\0\0\0a\x02\0\0\0\xc3\xbc"


# Files that are wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"outputs__y": X}, "first axis counts cases"),
        ({"inputs__x": X, "outputs__y": X[:2]}, "must be the same everywhere"),
        ({"inputs__x": X, "outputs__y": np.float32(1)}, "must be the same everywhere"),
        ({"inputs__x": X, "y": X}, "array 'y'"),
        ({"inputs__x": X.astype(np.complex64), "outputs__y": X}, "is of type complex64"),
        ({"inputs__x": np.array([["a"]]), "outputs__y": X[:1]}, "is of type <U1"),
        ({"inputs__x": X, "outputs__y": X, "settings": np.array("{}x")}, "a string with a JSON object"),
        ({"inputs__x": X, "outputs__y": X, "settings": np.array('{"atoll": 1}')}, "unknown setting 'atoll'"),
        ({"inputs__x": X, "outputs__y": X, "settings": np.array('{"atol": -1}')}, "acceptance vectors"),
        ({"inputs__x": X, "outputs__y": X, "settings": np.array('{"rtol": NaN}')}, "acceptance vectors"),
        ({"inputs__x": X[:0], "outputs__y": X[:0]}, "has 0 cases"),
        ({"inputs__x": X}, "a case without outputs accepts everything"),
        ({"inputs__x": MANY, "outputs__y": MANY}, "has 257 cases"),
    ],
)
def test_npz_that_is_wrong(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        accept.read(npz(tmp_path / "v.npz", **arrays))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    npz(tmp_path / "v.npz", inputs__x=np.array([object()], dtype=object))
    with pytest.raises(FormatError, match="plain arrays"):
        accept.read(tmp_path / "v.npz")


@pytest.mark.parametrize("name", ["v.txt", "v.npy"])
def test_another_kind_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"neither \.npz nor \.json"):
        accept.read(tmp_path / name)


@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("any")
    for suffix in (".npz", ".json"):
        (path := directory / f"v{suffix}").write_bytes(data)
        with pytest.raises(FormatError):
            accept.read(path)


_NAMES = st.sampled_from(["x", "datatype", "shape", "data", "inputs", "outputs"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(cases=_JSON, settings=st.dictionaries(st.sampled_from([*accept.SETTINGS, "v"]), _JSON, max_size=2))
def test_any_json(tmp_path_factory: pytest.TempPathFactory, cases: object, settings: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("any") / "v.json"
    path.write_text(json.dumps({"cases": cases, **settings}))
    with pytest.raises(FormatError):
        accept.read(path)


def test_case_with_an_input_the_model_has_not(model: Path, tmp_path: Path) -> None:
    cases, _ = accept.read_cases(npz(tmp_path / "v.npz", inputs__z=X))
    with pytest.raises(FormatError, match="input 'x' is not in both; the model has x"):
        accept.record(model.parent, cases, {})


def test_nan_is_not_recorded(tmp_path: Path, samples: Path) -> None:
    model = onnx_models.linear(tmp_path / "release" / "model.onnx", bias=float("nan"))
    with pytest.raises(FormatError, match="NaN or infinite values in 'y'"):
        record(model, samples)


# Held against a model -------------------------------------------------------------------------------------------------


def test_another_bias_is_refused(model: Path, samples: Path, tmp_path: Path) -> None:
    vectors = record(model, samples)
    other = onnx_models.linear(tmp_path / "other" / "model.onnx", bias=2.01)
    with pytest.raises(RefusedError, match="acceptance vector 1, output 'y'"):
        examine(other, vectors)


def test_latency_beyond_the_budget_is_refused(model: Path, samples: Path) -> None:
    with pytest.raises(RefusedError, match=r"ms here \(median of 11\); its acceptance vectors allow 1e-06"):
        examine(model, record(model, samples, latency_ms=1e-6))


def test_memory_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    model = onnx_models.linear(tmp_path / "release" / "model.onnx", width=2048)  # 16 MiB of weights
    cases, _ = accept.read_cases(npz(tmp_path / "v.npz", inputs__x=np.ones((1, 1, 2048), np.float32)))
    vectors = accept.to_table(accept.record(model.parent, cases, {"memory_mb": 4}))
    candidate = Candidate("m", 1, model.parent, None, tests=vectors)
    with pytest.raises(ProbeError, match=r"MiB here; its acceptance vectors allow 4"):
        probe(candidate, Limits(seconds=60, memory_mb=1024))


def test_it_comes_back_before_it_is_timed(model: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that gives way meanwhile would refuse good releases on a busy device."""
    order: list[str] = []
    timed = probe_worker._timed

    def noted(*words: Any) -> Any:
        order.append("timed")
        return timed(*words)

    monkeypatch.setattr(probe_worker, "_timed", noted)
    probe_worker.examine(model.parent, {}, record(model, samples), loaded=lambda: order.append("back"))
    assert order[0] == "back"
    assert "timed" in order

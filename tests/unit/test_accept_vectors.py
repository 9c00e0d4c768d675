"""The vectors of acceptance vectors, file by file: edgeseal's gate and a second one agree on each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("numpy", reason="pip install 'edgeseal[onnx]'")

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import onnx_models, second_gate
from tests.vectors import make_accept

from edgeseal import cbor
from edgeseal.errors import EdgesealError, IncompatibleError, RefusedError
from edgeseal.runtime import oip, probe_worker, vectors
from edgeseal.runtime.engine import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgeseal.runtime.engine import Stop, Tensors

pytestmark = pytest.mark.unit
DIRECTORY = Path(__file__).parents[1] / "vectors" / "accept"
Case = dict[str, Any]
CASES: dict[str, Case] = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(DIRECTORY.glob("*.json"))}


def of(*outcomes: str) -> list[Any]:
    return [pytest.param(case, id=name) for name, case in CASES.items() if case["outcome"] in outcomes]


class Scripted:
    """An engine that answers what a file says."""

    platform = "scripted"

    def __init__(self, inputs: Sequence[str], answers: list[dict[str, list[Any]]]) -> None:
        self.inputs = [Signature(name, "FP32", (-1,)) for name in inputs]
        self.outputs = [Signature("y", "FP32", (-1,))]
        self._answers = iter(answers)

    def infer(self, _: Tensors, wanted: Sequence[str], __: Stop | None = None) -> dict[str, NDArray[np.generic]]:
        answer = next(self._answers)
        return {n: oip.from_raw(answer[n][0], answer[n][1], answer[n][2], n) for n in wanted}


def ours(tests: bytes, answers: list[dict[str, list[Any]]]) -> bool:
    """Whether the gate lets a model in that answers so. Raises what it says of the vectors themselves."""
    found = vectors.parse(cbor.decode(tests, max_length=len(tests)))
    assert found is not None
    found = msgspec.structs.replace(found, warmup=0)  # what does not count is not in the file
    try:
        probe_worker._run_vectors(Scripted(list(found.cases[0].inputs), answers), found)
    except RefusedError:
        return False
    return True


def answered(case: Case) -> list[dict[str, list[Any]]]:
    return [{n: [t[0], t[1], bytes.fromhex(t[2])] for n, t in one.items()} for one in case["answers"]]


@pytest.mark.parametrize("case", of("passes", "fails"))
def test_both_gates_judge_the_answers(case: Case) -> None:
    tests, answers = bytes.fromhex(case["tests"]), answered(case)
    expected = case["outcome"] == "passes"
    assert second_gate.passes(second_gate.read(tests), answers) is expected
    assert ours(tests, answers) is expected


@pytest.mark.parametrize("case", of("refused", "incompatible"))
def test_both_readers_refuse_vectors_before_a_model_runs(case: Case) -> None:
    tests = bytes.fromhex(case["tests"])
    wanted = {
        "refused": (RefusedError, second_gate.Refused),
        "incompatible": (IncompatibleError, second_gate.Incompatible),
    }
    ours_says, theirs_says = wanted[case["outcome"]]
    with pytest.raises(ours_says):
        vectors.parse(cbor.decode(tests, max_length=len(tests)))
    with pytest.raises(theirs_says):
        second_gate.read(tests)


def test_vectors_are_what_the_generator_makes() -> None:
    """Locks the bytes: a change of the format is a change of these files."""
    assert {p.name: p.read_text("utf-8") for p in DIRECTORY.iterdir()} == make_accept.rendered()


def test_every_datatype_is_known_to_both_tables() -> None:
    assert {name: dtype.itemsize for name, dtype in oip.DTYPES.items()} == vectors.WIDTHS
    assert set(second_gate.CODES) == set(vectors.WIDTHS)


def test_a_real_model_in_place_of_the_script(tmp_path: Path) -> None:
    """The whole way: the file's vectors, a probe's own code, onnxruntime."""
    onnx_models.identity(tmp_path / "model.onnx", 1)
    found = probe_worker.examine(
        tmp_path, {}, cbor.decode(bytes.fromhex(CASES["passes-all-256"]["tests"]), max_length=2**20)
    )
    assert found["cases"] == 256
    with pytest.raises(RefusedError, match="acceptance vector 2, output 'y': 1 of 1 values differ, by up to 1"):
        probe_worker.examine(
            tmp_path, {}, cbor.decode(bytes.fromhex(CASES["fails-second-case"]["tests"]), max_length=2**20)
        )


_NUMBERS = st.sampled_from([0, 1, 2, -1, 127, -128, 255, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1])
_REALS = st.sampled_from(
    [0.0, -0.0, 1.0, 1.0000001, -3.5, 65504.0, 1e-45, 3e38, 1e308, -1e308, float("nan"), float("inf")]
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(vectors.WIDTHS)), st.data())
def test_any_numbers_and_tolerances_are_judged_alike(datatype: str, data: st.DataObject) -> None:
    def drawn() -> list[Any]:
        values: list[Any] = data.draw(
            st.lists(_REALS if datatype.startswith("FP") else _NUMBERS, min_size=2, max_size=2)
        )
        with np.errstate(over="ignore"):
            array = np.array(values, object if not datatype.startswith("FP") else np.float64)
            if datatype == "BOOL":
                return [datatype, [2], bytes(v & 1 for v in values)]
            if datatype.startswith("FP"):
                return [datatype, [2], array.astype(oip.DTYPES[datatype]).tobytes()]
            width = vectors.WIDTHS[datatype]
            return [datatype, [2], b"".join((v % 2 ** (8 * width)).to_bytes(width, "little") for v in values)]

    tolerances = {n: data.draw(st.sampled_from([0, 0.5, 1.0, 1e-3, 1e300, 2.0**63])) for n in ("atol", "rtol")}
    expected, got, top1 = drawn(), drawn(), data.draw(st.booleans())
    document = {"v": 1, "cases": [{"inputs": {}, "outputs": {"y": expected}}], "top1": top1, **tolerances}
    tests = cbor.encode(document)
    assert ours(tests, [{"y": got}]) is second_gate.passes(second_gate.read(tests), [{"y": got}])


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=40), st.sampled_from(sorted(n for n, c in CASES.items() if c["outcome"] != "passes")), st.data()
)
def test_damaged_vectors_are_read_alike(junk: bytes, name: str, data: st.DataObject) -> None:
    """A byte changed, a piece put in: both read the same, or both refuse."""
    tests = bytearray.fromhex(CASES[name]["tests"])[:400]
    at = data.draw(st.integers(0, len(tests) - 1))
    tests[at : at + data.draw(st.integers(0, 2))] = junk[: data.draw(st.integers(0, 2))]
    assert _reads(bytes(tests), first=True) == _reads(bytes(tests), first=False)


def _reads(tests: bytes, *, first: bool) -> str:
    try:
        if first:
            vectors.parse(cbor.decode(tests, max_length=2**20))
        else:
            second_gate.read(tests)
    except (IncompatibleError, second_gate.Incompatible):
        return "incompatible"
    except (EdgesealError, second_gate.Refused):
        return "refused"
    return "reads"

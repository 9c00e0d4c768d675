"""Requests and answers of the Open Inference Protocol as bytes: every datatype both ways, everything wrong named."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest

pytest.importorskip("numpy", reason="pip install 'edgeseal[onnx]'")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgeseal.errors import FormatError
from edgeseal.runtime import oip

pytestmark = pytest.mark.unit
DATATYPES = [*oip.DTYPES, oip.BYTES]
ENDS = {
    name: [np.iinfo(dtype).min, 0, 1, np.iinfo(dtype).max]
    if dtype.kind in "iu"
    else [0.0, -0.0, 0.5, np.finfo(dtype).max]
    for name, dtype in oip.DTYPES.items()
    if name != "BOOL"
}


def tensor(**changes: Any) -> dict[str, Any]:
    item = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **changes}
    return {key: value for key, value in item.items() if value is not None}


def document(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs or [tensor()]), **more}).encode()


def parsed(body: bytes, raw: bytes = b"") -> oip.Request:
    return oip.parse_request(body + raw, len(body) if raw else None)


def binary(size: int = 8, **changes: Any) -> dict[str, Any]:
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


# Good -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", [*ENDS, "BOOL"])
def test_the_ends_of_every_datatype_survive_both_forms(datatype: str) -> None:
    array = np.array(ENDS.get(datatype, [False, True, True, False]), oip.DTYPES[datatype])
    as_json = json.loads(json.dumps(oip.to_json(datatype, array, "x")))
    for found in (
        oip.from_raw(datatype, array.shape, oip.to_raw(datatype, array), "x"),
        oip.from_json(datatype, array.shape, as_json, "x"),
    ):
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


def test_nested_and_flat_arrays_are_the_same() -> None:
    flat = parsed(document(tensor(shape=[2, 1, 2], data=[1, 2, 3, 4]))).inputs["x"][1]
    nested = parsed(document(tensor(shape=[2, 1, 2], data=[[[1, 2]], [[3, 4]]]))).inputs["x"][1]
    assert flat.tolist() == nested.tolist() == [[[1, 2]], [[3, 4]]]


def test_several_binary_tensors_come_in_their_order() -> None:
    body = document(binary(8, name="a", shape=[2]), tensor(name="b"), binary(2, name="c", datatype="INT8", shape=[2]))
    found = parsed(body, np.array([5, 6], "<f4").tobytes() + b"\x01\xff")
    assert [value.tolist() for _, value in found.inputs.values()] == [[5, 6], [1, 2], [1, -1]]


@pytest.mark.parametrize("shape", [[], [0], [2, 0, 3]])
def test_a_scalar_and_tensors_of_nothing(shape: list[int]) -> None:
    n = int(np.prod(shape))
    for body, raw in (
        (document(tensor(shape=shape, data=[1] * n)), b""),
        (document(binary(4 * n, shape=shape)), bytes(4 * n)),
    ):
        assert list(oip.parse_request(body + raw, len(body)).inputs["x"][1].shape) == shape


def test_which_outputs_come_in_binary() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
    found = parsed(document(outputs=outputs, parameters={"binary_data_output": True}, id="7"))
    value = ("INT8", np.array([1], np.int8))
    data, head = oip.build_response("m", "3", {"a": value, "b": value}, found)
    answer = json.loads(data[:head])
    assert answer == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "outputs": [
            {"name": "a", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
            {"name": "b", "datatype": "INT8", "shape": [1], "data": [1]},
        ],
    }
    assert data[head:] == b"\x01"


def test_hints_that_change_no_answer_are_ignored() -> None:
    parameters = {"priority": 3, "timeout": 5, "mine": {"any": "thing"}, "binary_data_output": False}
    assert parsed(document(parameters=parameters)).outputs == []


# Wrong ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "`inputs` must be an array"),
        (b'{"inputs": {}}', "`inputs` must be an array"),
        (b'{"inputs": [1]}', "`inputs` must be an array"),
        (json.dumps({"inputs": [{}] * 257}).encode(), "at most 256"),
        (document({}), "an input has no `name`"),
        (document(tensor(name="")), "an input has no `name`"),
        (document(tensor(name="n" * 257)), "an input has no `name`"),
        (document(tensor(), tensor()), "input 'x' is given twice"),
        (document(tensor(datatype=None)), "input 'x' has no `datatype`"),
        (document(tensor(datatype="FP99")), "unknown datatype 'FP99'"),
        (document(tensor(shape=None)), "`shape` must be an array"),
        (document(tensor(shape=[-1, 2])), "`shape` must be an array"),
        (document(tensor(shape=[2.0])), "`shape` must be an array"),
        (document(tensor(shape=[True, 2])), "`shape` must be an array"),
        (document(tensor(shape=[1] * 17)), "at most 16"),
        (document(tensor(shape=[2**40, 2, 0])), "is too large"),
        (document(tensor(data=None)), "neither `data` (an array) nor `binary_data_size`"),
        (document(tensor(data="12")), "neither `data` (an array)"),
        (document(tensor(shape=[3])), "2 elements where shape [3] has 3"),
        (document(tensor(data=[1, [2]])), "mixes arrays and values"),
        (document(tensor(data=[1, "2"])), '"2" is no FP32'),
        (document(tensor(data=[1, None])), "null is no FP32"),
        (document(tensor(data=[1, True])), "true is no FP32"),
        (document(tensor(data=[1, {}])), "{} is no FP32"),
        (document(tensor(data=[1, 1e39])), "too large for FP32"),
        (document(tensor(data=[1, 10**400])), "does not fit FP32"),
        (document(tensor(datatype="FP16", data=[1, 65520])), "too large for FP16"),
        (document(tensor(data=[1, 1e39])).replace(b"1e+39", b"1e999"), "too large for FP32"),
        (document(tensor(data=[1, float("nan")])), "NaN is no JSON; send such tensors in binary"),
        (document(tensor(data=[1, float("-inf")])), "-Infinity is no JSON"),
        (document(tensor(datatype="INT8", data=[1, 128])), "does not fit INT8"),
        (document(tensor(datatype="UINT64", data=[1, -1])), "does not fit UINT64"),
        (document(tensor(datatype="INT64", data=[1, 2**63])), "does not fit INT64"),
        (document(tensor(datatype="INT32", data=[1, 2.0])), "2.0 is no INT32"),
        (document(tensor(datatype="BOOL", data=[True, 1])), "1 is no BOOL"),
        (document(tensor(datatype="BYTES", data=["a", 1])), "holds strings"),
        (document(tensor(parameters=[])), "`parameters` must be an object"),
        (document(tensor(parameters={"binary_data_size": 8})), "both `data` and `binary_data_size`"),
        (document(binary(8)), "binary_data_size 8, but 0 bytes are left"),
        (document(binary(-1)), "binary_data_size -1"),
        (document(tensor(data=None, parameters={"binary_data_size": "8"})), "binary_data_size '8'"),
        (document(tensor(data=None, parameters={"binary_data_size": True})), "binary_data_size True"),
        (
            document(tensor(data=None, parameters={"shared_memory_region": "r"})),
            "'shared_memory_region' is not offered",
        ),
        (document(outputs={}), "`outputs` must be an array"),
        (document(outputs=[{"name": "y"}, {"name": "y"}]), "an output is asked for twice"),
        (document(outputs=[{"name": 1}]), "an output has no `name`"),
        (
            document(outputs=[{"name": "y", "parameters": {"classification": 3}}]),
            "output 'y': parameter 'classification'",
        ),
        (document(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "`binary_data` must be true or false"),
        (document(parameters={"binary_data_output": "yes"}), "`binary_data_output` must be true or false"),
        (document(parameters={"sequence_id": 4, "sequence_start": True}), "the request: parameter 'sequence_id'"),
        (document(id=7), "`id` must be a string"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        parsed(body)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("body", "raw", "reason"),
    [
        (document(binary(8)), bytes(9), "1 bytes follow the last binary tensor"),
        (document(binary(7)), bytes(7), "7 bytes where FP32 [2] has 8"),
        (document(binary(2, datatype="BOOL")), b"\x01\x02", "a BOOL is a byte of 0 or 1"),
        (document(binary(7, datatype="BYTES", shape=[1])), b"\x04\x00\x00\x00abc", "longer than the tensor"),
        (document(binary(3, datatype="BYTES", shape=[1])), b"\x00\x00\x00", "longer than the tensor"),
        (document(binary(4, datatype="BYTES", shape=[2])), bytes(4), "1 elements where shape [2] has 2"),
        (document(binary(6, datatype="BYTES", shape=[1])), b"\xff\xff\xff\xffab", "longer than the tensor"),
        (document(binary(16, datatype="FP128", shape=[1])), bytes(16), "unknown datatype 'FP128'"),
        (document(binary(5, datatype="BYTES", shape=[1])), b"\x01\x00\x00\x00\xff", "hold UTF-8"),
    ],
)
def test_what_is_wrong_in_binary_is_named(body: bytes, raw: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        parsed(body, raw)
    assert reason in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_json_cannot_carry_back(bad: float) -> None:
    with pytest.raises(FormatError, match="output 'y' has values that JSON cannot carry") as caught:
        oip.to_json("FP32", np.array([bad], "f4"), "y")
    assert caught.value.hint == "ask for it in binary"


@pytest.mark.parametrize("length", [-1, 10**9])
def test_a_json_part_that_cannot_be(length: int) -> None:
    with pytest.raises(FormatError, match="Inference-Header-Content-Length is"):
        oip.parse_request(document(), length)


# Anything -------------------------------------------------------------------------------------------------------------

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = False) -> tuple[str, Any]:
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(SHAPES)
    if datatype == oip.BYTES:
        items = draw(st.lists(st.text(max_size=5), min_size=math.prod(shape), max_size=math.prod(shape)))
        return datatype, np.array(items, dtype=object).reshape(shape)
    dtype = oip.DTYPES[datatype]
    elements = None
    if finite and dtype.kind == "f":
        elements = npst.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return datatype, draw(npst.arrays(dtype, shape, elements=elements))


def _same(a: Any, b: Any) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


@given(tensors())
def test_binary_there_and_back(tensor: tuple[str, Any]) -> None:
    datatype, value = tensor
    assert _same(oip.from_raw(datatype, value.shape, oip.to_raw(datatype, value), "x"), value)


@given(tensors(finite=True))
def test_json_there_and_back(tensor: tuple[str, Any]) -> None:
    datatype, value = tensor
    data = json.loads(json.dumps(oip.to_json(datatype, value, "x")))
    assert _same(oip.from_json(datatype, value.shape, data, "x"), value)


@given(st.dictionaries(st.text(min_size=1, max_size=8), tensors(finite=True), max_size=4), st.data())
def test_requests_and_responses_mirror_each_other(
    given_tensors: dict[str, tuple[str, Any]], data: st.DataObject
) -> None:
    """What a response says is what a request would say: outputs built by one side are read as inputs by the other."""
    binary = {name: data.draw(st.booleans()) for name in given_tensors}
    asked = oip.Request("id", {}, [], binary)
    body, head = oip.build_response("m", "1", given_tensors, asked)
    end = len(body) if head is None else head
    document = json.loads(body[:end])
    request = json.dumps({"id": document["id"], "inputs": document["outputs"]}).encode()
    parsed = oip.parse_request(request + body[end:], None if head is None else len(request))
    for found in (parsed.inputs, oip.parse_response(body, head)):
        assert found.keys() == given_tensors.keys()
        for name, (datatype, value) in given_tensors.items():
            assert found[name][0] == datatype
            assert _same(found[name][1], value)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_any_body_is_read_or_refused(body: bytes, header_length: int | None) -> None:
    with contextlib.suppress(FormatError):
        oip.parse_request(body, header_length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=3) | JSON,
        "datatype": st.sampled_from(DATATYPES) | JSON,
        "shape": st.lists(st.integers(-1, 3) | st.integers(0, 2**70), max_size=3) | JSON,
        "data": JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "binary_data"]), JSON) | JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(ITEM, max_size=3) | JSON},
        optional={"outputs": st.lists(ITEM, max_size=3) | JSON, "id": JSON, "parameters": JSON},
    ),
    st.binary(max_size=20),
)
def test_any_document_is_read_or_refused(document: dict[str, object], raw: bytes) -> None:
    head = json.dumps(document).encode()
    with contextlib.suppress(FormatError):
        oip.parse_request(head + raw, len(head))

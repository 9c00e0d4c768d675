"""Tensors of the Open Inference Protocol: every datatype both ways, and every way to get one wrong."""

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
    assert parsed.inputs.keys() == given_tensors.keys()
    for name, (datatype, value) in given_tensors.items():
        assert parsed.inputs[name][0] == datatype
        assert _same(parsed.inputs[name][1], value)


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


def _request(*inputs: dict[str, object], **more: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def _input(
    datatype: str = "FP32", shape: object = (2,), data: object = (1.0, 2.0), **more: object
) -> dict[str, object]:
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"inputs": 1}', "`inputs` must be an array"),
        (b"{}", "`inputs` must be an array"),
        (_request({"datatype": "FP32"}), "an input has no `name`"),
        (_request({"name": "x"}), "input 'x' has no `datatype`"),
        (_request(_input(shape=[-1])), "input 'x': `shape` must be"),
        (_request(_input(shape=[True])), "input 'x': `shape` must be"),
        (_request(_input(shape=[2**30, 2**30])), "input 'x': shape [1073741824, 1073741824] is too large"),
        (_request(_input(shape=[1] * 17)), "at most 16"),
        (_request(_input(), _input()), "input 'x' is given twice"),
        (_request(_input(shape=[3])), "'x': 2 elements where shape [3] has 3"),
        (_request(_input(data=None)), "neither `data` (an array) nor"),
        (_request(_input(data=[[1.0], 2.0])), "mixes arrays and values"),
        (_request(_input(data=[1.0, None])), "'x': null is no FP32"),
        (_request(_input(data=[1.0, True])), "'x': true is no FP32"),
        (_request(_input(data=["", "1"])), "'x': \"\" is no FP32"),
        (_request(_input("INT32", data=[0.0, 1])), "'x': 0.0 is no INT32"),
        (_request(_input("INT8", data=[1, 200])), "does not fit INT8"),
        (_request(_input("UINT8", data=[1, -1])), "does not fit UINT8"),
        (_request(_input("FP32", data=[1, 10**400])), "does not fit FP32"),
        (_request(_input("BOOL", data=[0, 1])), "'x': 0 is no BOOL"),
        (_request(_input("BYTES", data=[1, "a"])), "holds strings"),
        (_request(_input("BF16")), "unknown datatype 'BF16'; known: BOOL"),
        (_request(_input(parameters=[])), "`parameters` must be an object"),
        (_request(_input(parameters={"binary_data_size": 8})), "binary_data_size 8, but 0 bytes are left"),
        (_request(_input(parameters={"binary_data_size": True})), "binary_data_size True"),
        (_request(_input(), outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (_request(_input(), outputs=[{}]), "an output has no `name`"),
        (_request(_input(), id=7), "`id` must be a string"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        oip.parse_request(body, None)
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "reason"),
    [
        ("FP32", [2], bytes(7), "7 bytes where FP32 [2] has 8"),
        ("BOOL", [2], b"\x01\x02", "a byte of 0 or 1"),
        ("BYTES", [1], b"\x01\x00", "longer than the tensor"),
        ("BYTES", [1], b"\xff\xff\xff\xffab", "longer than the tensor"),
        ("BYTES", [2], b"\x01\x00\x00\x00a", "1 elements where shape [2] has 2"),
        ("BYTES", [1], b"\x01\x00\x00\x00\xff", "UTF-8"),
        ("FP128", [1], bytes(16), "unknown datatype 'FP128'"),
    ],
)
def test_a_wrong_binary_tensor_says_what_is_wrong(datatype: str, shape: list[int], data: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        oip.from_raw(datatype, shape, data, "x")
    assert reason in caught.value.message


@pytest.mark.parametrize("length", [-1, 10_000])
def test_a_header_length_beyond_the_body(length: int) -> None:
    with pytest.raises(FormatError, match="Inference-Header-Content-Length"):
        oip.parse_request(_request(_input()), length)


def test_bytes_after_the_last_tensor() -> None:
    body = _request(_input())
    with pytest.raises(FormatError, match="3 bytes follow"):
        oip.parse_request(body + b"abc", len(body))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_does_not_carry_what_it_cannot(bad: float) -> None:
    with pytest.raises(FormatError, match="output 'y' has values that JSON cannot carry") as caught:
        oip.to_json("FP32", np.array([bad], "f4"), "y")
    assert caught.value.hint == "ask for it in binary"

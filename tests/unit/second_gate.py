"""A second reader of acceptance vectors, written from docs/spec/bundle.md §8 alone.

It shares no code with edgeseal and uses no arrays: where the two disagree, one of them or the page is wrong.
"""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any, TypeAlias

from tests.unit.second_reader import Cbor, Incompatible, Refused, is_uint, require, text

CODES = {
    "BOOL": "B",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DEFAULTS = {"atol": 0.0001, "rtol": 0.001, "top1": False, "warmup": 0, "latency_ms": 0, "memory_mb": 0}
Values: TypeAlias = "list[Any]"


def read(data: bytes) -> dict[str, Any]:
    """Return the vectors with everything that may be missing, and tensors as (datatype, shape, values)."""
    tests = Cbor(data).whole()
    require(type(tests) is dict and is_uint(tests.get("v"), 1, 2**64 - 1), "no version")
    if tests["v"] != 1:
        raise Incompatible("version")
    require("cases" in tests and set(tests) <= {"v", "cases", *DEFAULTS}, "keys")
    found = {**DEFAULTS, **tests}
    for name in ("atol", "rtol", "latency_ms"):
        require(type(found[name]) in {int, float} and 0 <= found[name] < math.inf, name)
    require(is_uint(found["warmup"], 0, 1000) and is_uint(found["memory_mb"], 0, 2**20), "warmup or memory_mb")
    require(type(found["top1"]) is bool, "top1")
    require(type(found["cases"]) is list and 1 <= len(found["cases"]) <= 256, "cases")
    found["cases"] = [case(c) for c in found["cases"]]
    return found


def case(value: Any) -> dict[str, dict[str, Any]]:
    require(type(value) is dict and set(value) == {"inputs", "outputs"}, "case")
    for side in value.values():
        require(type(side) is dict and all(type(name) is str for name in side), "side")
    require(value["outputs"], "no output")
    return {side: {name: tensor(t) for name, t in named.items()} for side, named in value.items()}


def tensor(value: Any) -> tuple[str, list[int], Values]:
    require(type(value) is list and len(value) == 3, "tensor")
    datatype, shape, data = value
    require(type(datatype) is str and (datatype in CODES or datatype == "BYTES"), "datatype")
    require(type(shape) is list and len(shape) <= 16 and all(is_uint(d, 0, 2**31) for d in shape), "shape")
    require(type(data) is bytes, "data")
    values = strings(data) if datatype == "BYTES" else numbers(CODES[datatype], data)
    require(len(values) == math.prod(shape), "elements")
    require(datatype != "BOOL" or set(values) <= {0, 1}, "BOOL")
    return datatype, shape, values


def numbers(code: str, data: bytes) -> Values:
    width = struct.calcsize(code)
    require(len(data) % width == 0, "half an element")
    return list(struct.unpack(f"<{len(data) // width}{code}", data))


def strings(data: bytes) -> Values:
    found = []
    while data:
        require(len(data) >= 4, "half a length")
        end = 4 + int.from_bytes(data[:4], "little")
        require(len(data) >= end, "half an element")
        found.append(text(data[4:end]))
        data = data[end:]
    return found


def passes(tests: dict[str, Any], answers: list[dict[str, Any]]) -> bool:
    """Whether a model that answers this to the cases passes; budgets aside."""
    return all(
        output(tensor(answer[name]), expected, tests)
        for one, answer in zip(tests["cases"], answers, strict=True)
        for name, expected in one["outputs"].items()
    )


def output(got: tuple[str, list[int], Values], expected: tuple[str, list[int], Values], tests: dict[str, Any]) -> bool:
    datatype, shape, wanted = expected
    if got[:2] != (datatype, shape):
        return False
    if datatype in {"BOOL", "BYTES"}:
        return got[2] == wanted
    if not all(math.isfinite(v) for v in itertools.chain(got[2], wanted)):
        return False
    if tests["top1"]:
        return bool(shape and wanted) and classes(got[2], shape[-1]) == classes(wanted, shape[-1])
    return all(near(g, w, tests) for g, w in zip(got[2], wanted, strict=True))


def classes(values: Values, width: int) -> list[int]:
    rows = [values[at : at + width] for at in range(0, len(values), width)]
    return [row.index(max(row)) for row in rows]


def near(got: Any, expected: Any, tests: dict[str, Any]) -> bool:
    allowed = float(tests["atol"]) + float(tests["rtol"]) * abs(float(expected))
    distance = abs(got - expected)  # of int exactly, of float in binary64
    return math.isfinite(distance) and distance <= allowed


__all__ = ["Incompatible", "Refused", "passes", "read"]

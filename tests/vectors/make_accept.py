"""Write the acceptance vectors' own vectors, `tests/vectors/accept/*.json`: `python tests/vectors/make_accept.py`.

An independent writer: of docs/spec/bundle.md §8 it knows the page, of edgeseal nothing.

One file is one case:

    what      one line for a person
    outcome   "passes" or "fails" (the model), "refused" (exit code 3) or "incompatible" (exit code 6: the vectors)
    tests     hex: the CBOR of `tests` in a sealed table's index
    answers   what a model answers to each case: output -> [datatype, shape, hex]; for "passes" and "fails" only
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent / "accept"
CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
ENDS: dict[str, list[Any]] = {
    "UINT8": [0, 255], "UINT16": [0, 2**16 - 1], "UINT32": [0, 2**32 - 1], "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127], "INT16": [-(2**15), 2**15 - 1], "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [-65504.0, 2.0**-24], "FP32": [-3.4028234663852886e38, 2.0**-149],
    "FP64": [-1.7976931348623157e308, 5e-324],
    "BOOL": [False, True],
}  # fmt: skip
NAN, INF = float("nan"), float("inf")
Tensor = list[Any]


def tensor(datatype: str, *values: Any, shape: list[Any] | None = None) -> Tensor:
    shape = [len(values)] if shape is None else shape
    if datatype == "BYTES":
        return [datatype, shape, b"".join(struct.pack("<I", len(v)) + v for v in values)]
    return [datatype, shape, struct.pack(f"<{len(values)}{CODES[datatype]}", *values)]


def floats(*values: float) -> Tensor:
    return tensor("FP32", *values)


ONE = floats(1.0)


def vectors(*expected: Tensor, **settings: Any) -> dict[str, Any]:
    """One case for each expected output `y`; all take the same input."""
    return {"v": 1, "cases": [{"inputs": {"x": ONE}, "outputs": {"y": e}} for e in expected], **settings}


def after(value: float) -> float:
    """Return the next FP32 above."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    (found,) = struct.unpack("<f", struct.pack("<I", bits + 1))
    return float(found)


EXACT = {"atol": 0, "rtol": 0}
Judged = tuple[str, str, dict[str, Any], list[Tensor]]


def passing() -> Iterator[Judged]:
    for datatype, values in ENDS.items():
        same = tensor(datatype, *values)
        yield f"same-{datatype.lower()}", f"the ends of {datatype}, no tolerance", vectors(same, **EXACT), [same]
    words = tensor("BYTES", b"", b"a", "ü€".encode())
    yield "same-bytes", "strings", vectors(words), [words]
    yield "defaults", "0.0001 + 0.001 · |expected| is allowed", vectors(floats(0.0, -8.0)), [floats(0.000099, -8.008)]
    yield "atol-edge", "off by exactly atol", vectors(floats(1.0), atol=0.5, rtol=0), [floats(1.5)]
    yield "rtol-edge", "off by exactly rtol of what is expected", vectors(floats(-4.0), atol=0, rtol=0.25), [floats(-3)]
    yield "uint-tolerance", "a tolerance that is an uint", vectors(floats(1.0), atol=1, rtol=0), [floats(2.0)]
    yield "minus-zero", "0.0 where -0.0 is expected", vectors(floats(-0.0), **EXACT), [floats(0.0)]
    yield (
        "integer-tolerance",
        "integers have tolerances too",
        vectors(tensor("UINT8", 0), atol=3.9),
        [tensor("UINT8", 3)],
    )
    far = vectors(tensor("INT64", -(2**63)), atol=0, rtol=2.0)
    yield "int64-ends-allowed", "2^64 - 1 apart, 2^64 allowed", far, [tensor("INT64", 2**63 - 1)]
    yield "scalar", "no dimension", vectors(tensor("FP32", 2.0, shape=[])), [tensor("FP32", 2.0, shape=[])]
    yield "no-elements", "a dimension of 0", vectors(tensor("FP32", shape=[2, 0])), [tensor("FP32", shape=[2, 0])]
    top = vectors(tensor("FP32", 1, 9, 2, 7, 0, 0, shape=[2, 3]), top1=True)
    yield "top1", "other values, the same classes", top, [tensor("FP32", 0, 1, 0, 1, -5, -5, shape=[2, 3])]
    tie = vectors(tensor("INT8", 4, 5, 5), top1=True)
    yield "top1-first-of-equals", "two largest: the first counts on both sides", tie, [tensor("INT8", 0, 1, 1)]
    truth = tensor("BOOL", 1, 0)
    yield "top1-bool", "BOOL has no top-1 class", vectors(truth, top1=True), [truth]
    yield "all-256", "as many cases as there may be", vectors(*[ONE] * 256), [ONE] * 256
    full = vectors(ONE, atol=0.0, rtol=0.0, top1=False, warmup=1000, latency_ms=0.5, memory_mb=2**20)
    yield "all-settings", "every setting at its largest", full, [ONE]
    nothing = {"v": 1, "cases": [{"inputs": {}, "outputs": {"y": ONE}}]}
    yield "no-inputs", "a model that takes nothing", nothing, [ONE]


def failing() -> Iterator[Judged]:
    yield "atol-beyond", "off by a little more", vectors(floats(1.0), atol=0.5, rtol=0), [floats(after(1.5))]
    beyond = vectors(floats(4.0), atol=0, rtol=0.25)
    yield "rtol-beyond", "off by a little more than rtol", beyond, [floats(after(5.0))]
    yield "rtol-of-got", "within rtol of what came, not of what is expected", beyond, [floats(5.2)]
    yield "one-of-many", "one value of three", vectors(floats(1, 2, 3), **EXACT), [floats(1, 2, after(3))]
    yield "second-case", "the second case", vectors(ONE, floats(2.0)), [ONE, floats(3.0)]
    yield "shape", "another shape", vectors(tensor("FP32", 1, 2, shape=[1, 2])), [floats(1, 2)]
    yield "datatype", "the same numbers in FP64", vectors(ONE), [tensor("FP64", 1.0)]
    yield "signed", "the same bytes as INT8", vectors(tensor("UINT8", 1)), [tensor("INT8", 1)]
    for name, value in (("nan", NAN), ("inf", INF), ("minus-inf", -INF)):
        yield f"got-{name}", "not finite", vectors(ONE, atol=1e300), [floats(value)]
        yield f"expected-{name}", "nothing can be held against it", vectors(floats(value)), [floats(value)]
    yield "got-nan-top1", "a class, but NaN beside it", vectors(floats(1, 0), top1=True), [floats(2, NAN)]
    yield "got-inf-fp16", "FP16 beyond its largest", vectors(tensor("FP16", 65504), rtol=9), [tensor("FP16", INF)]
    ends = vectors(tensor("FP64", -1.7976931348623157e308), atol=1e308, rtol=1.5)
    yield "fp64-overflow", "a distance beyond binary64", ends, [tensor("FP64", 1.7976931348623157e308)]
    big = vectors(tensor("INT64", 2**62), **EXACT)
    yield "int64-by-one", "neighbours that binary64 does not tell apart", big, [tensor("INT64", 2**62 + 1)]
    yield "uint64-by-one", "as above", vectors(tensor("UINT64", 2**64 - 1), **EXACT), [tensor("UINT64", 2**64 - 2)]
    yield (
        "uint64-ends",
        "not a step of one backwards",
        vectors(tensor("UINT64", 0), atol=9),
        [tensor("UINT64", 2**64 - 1)],
    )
    yield "int8-ends", "255 apart, not 1", vectors(tensor("INT8", -128), atol=9), [tensor("INT8", 127)]
    yield "integer-part", "4 where 3.9 is allowed", vectors(tensor("UINT8", 0), atol=3.9), [tensor("UINT8", 4)]
    yield (
        "bool",
        "another truth, whatever the tolerance",
        vectors(tensor("BOOL", 1), atol=9),
        [tensor("BOOL", 0)],
    )
    yield "bytes", "another string", vectors(tensor("BYTES", b"a")), [tensor("BYTES", b"b")]
    yield "bytes-top1", "another string, with top1", vectors(tensor("BYTES", b"a"), top1=True), [tensor("BYTES", b"b")]
    top = vectors(tensor("FP32", 1, 9, 7, 2, shape=[2, 2]), top1=True)
    yield "top1-one-row", "one row has another class", top, [tensor("FP32", 1, 9, 2, 7, shape=[2, 2])]
    tie = vectors(floats(4, 5, 5), top1=True)
    yield "top1-last-of-equals", "the second of two largest", tie, [floats(0, 1, 2)]
    scalar = tensor("FP32", 1.0, shape=[])
    yield "top1-scalar", "no axis of classes", vectors(scalar, top1=True), [scalar]
    empty = tensor("FP32", shape=[2, 0])
    yield "top1-no-elements", "no class", vectors(empty, top1=True), [empty]


def spoilt() -> Iterator[tuple[str, str, Any]]:
    """What a reader refuses before any model runs."""
    value: Any
    yield "not-a-map", "an array", [1]
    yield "no-version", "no v", {"cases": vectors(ONE)["cases"]}
    for name, value in (("0", 0), ("minus-1", -1), ("text", "1"), ("float", 1.0), ("true", True)):
        yield f"version-{name}", "a v that is no version", {**vectors(ONE), "v": value}
    yield "no-cases", "no cases", {"v": 1}
    yield "cases-0", "no case", vectors()
    yield "cases-257", "one case too many", vectors(*[ONE] * 257)
    yield "cases-map", "cases in a map", {"v": 1, "cases": {"a": vectors(ONE)["cases"][0]}}
    yield "extra-key", "a setting that does not exist", vectors(ONE, atoll=1)
    yield "number-key", "a key that is a number", {1: 1}
    case = vectors(ONE)["cases"][0]
    for name, value in {
        "extra-key": {**case, "weights": 1}, "no-outputs": {"inputs": {}}, "no-inputs": {"outputs": {"y": ONE}},
        "outputs-empty": {"inputs": {}, "outputs": {}}, "inputs-array": {"inputs": [], "outputs": {"y": ONE}},
        "name-number": {"inputs": {}, "outputs": {1: ONE}}, "array": [{}, {"y": ONE}],
    }.items():  # fmt: skip
        yield f"case-{name}", "a case that is not as it must be", {"v": 1, "cases": [value]}
    for name, value in {
        "two-parts": ["FP32", [1]], "four-parts": [*ONE, 0], "map": {"datatype": "FP32"},
        "datatype-unknown": ["BF16", [1], bytes(2)], "datatype-case": ["fp32", [1], bytes(4)],
        "datatype-number": [1, [1], bytes(4)],
        "shape-negative": ["FP32", [-1], b""], "shape-float": ["FP32", [1.0], bytes(4)],
        "shape-true": ["FP32", [True], bytes(4)],
        "shape-number": ["FP32", 1, bytes(4)],
        "shape-too-large": ["FP32", [2**31 + 1, 0], b""], "rank-17": ["FP32", [1] * 17, bytes(4)],
        "short": ["FP32", [2], bytes(7)], "long": ["FP32", [2], bytes(9)],
        "empty": ["FP32", [2], b""], "scalar-empty": ["FP32", [], b""],
        "text": ["FP32", [1], "AAAAAA=="], "array": ["UINT8", [1], [0]], "bool-2": ["BOOL", [2], b"\x01\x02"],
        "huge": ["FP64", [2**31] * 3, b""],
        "bytes-length-short": ["BYTES", [1], b"\x01\x00\x00"], "bytes-beyond": ["BYTES", [1], b"\x02\x00\x00\x00a"],
        "bytes-too-few": ["BYTES", [2], b"\x01\x00\x00\x00a"], "bytes-too-many": ["BYTES", [1], bytes(8)],
        "bytes-not-utf8": ["BYTES", [1], b"\x01\x00\x00\x00\xff"],
    }.items():  # fmt: skip
        yield f"tensor-{name}", "an expected tensor that is not as it must be", vectors(value)
    yield (
        "input-short",
        "an input with too few bytes",
        {"v": 1, "cases": [{**case, "inputs": {"x": ["FP32", [2], b""]}}]},
    )
    for key in ("atol", "rtol", "latency_ms"):
        for name, value in (("negative", -0.5), ("inf", INF), ("text", "1"), ("true", True), ("null", None)):
            yield f"{key.replace('_', '-')}-{name}", f"{key} that is no number", vectors(ONE, **{key: value})
    for key, most in (("warmup", 1000), ("memory_mb", 2**20)):
        for name, value in (("negative", -1), ("float", 1.0), ("too-large", most + 1), ("true", True)):
            yield f"{key.replace('_', '-')}-{name}", f"{key} that is none", vectors(ONE, **{key: value})
    for name, value in (("number", 1), ("text", "true"), ("null", None)):
        yield f"top1-{name}", "neither true nor false", vectors(ONE, top1=value)


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and content of every file."""
    for outcome, group in (("passes", passing()), ("fails", failing())):
        for name, what, tests, answers in group:
            shown = [{"y": [datatype, shape, data.hex()]} for datatype, shape, data in answers]
            yield f"{outcome}-{name}", {"what": what, "outcome": outcome, "tests": encoded(tests), "answers": shown}
    for name, what, tests in spoilt():
        yield f"refused-{name}", {"what": what, "outcome": "refused", "tests": encoded(tests)}
    good = cbor2.dumps(vectors(ONE), canonical=True)
    for name, what, data in (
        ("cbor-truncated", "the last byte is missing", good[:-1]),
        ("cbor-trailing", "a byte behind it", good + b"\x00"),
        ("cbor-nan", "a tolerance that is NaN", cbor2.dumps(vectors(ONE, atol=NAN), canonical=True)),
        ("cbor-long-float", "0.5 in eight bytes", cbor2.dumps(vectors(ONE, atol=0.5))),
    ):
        yield f"refused-{name}", {"what": what, "outcome": "refused", "tests": data.hex()}
    newer = {"v": 2, "cases": "elsewhere", "sum": {1: 2}}
    yield "newer", {"what": "version 2, with another shape", "outcome": "incompatible", "tests": encoded(newer)}
    again = {**vectors(ONE), "v": 2}
    yield "newer-same-shape", {"what": "version 2", "outcome": "incompatible", "tests": encoded(again)}


def encoded(tests: object) -> str:
    return cbor2.dumps(tests, canonical=True).hex()


def rendered() -> dict[str, str]:
    """Return every file by name."""
    out: dict[str, str] = {}
    for name, content in cases():
        if f"{name}.json" in out:
            raise ValueError(f"two cases are called {name}")
        out[f"{name}.json"] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return out


def main() -> None:
    """Replace the directory's content."""
    HERE.mkdir(exist_ok=True)
    for old in HERE.glob("*.json"):
        old.unlink()
    for name, content in rendered().items():
        (HERE / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()

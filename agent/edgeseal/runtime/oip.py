"""Tensors of the Open Inference Protocol v2 and its binary extension, both directions; no server and no engine here.

A request is JSON, optionally followed by raw little-endian tensors; Inference-Header-Content-Length then says where the
JSON ends (https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and the "Binary Tensor
Data Extension" of Triton). BYTES elements are u32le length and data.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.generic]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
BYTES: Final = "BYTES"
MAX_RANK: Final = 16
_NOT_OFFERED: Final = frozenset({"classification", "sequence_id"})
MAX_TENSORS: Final = 256


@dataclass(frozen=True)
class Request:
    """One inference request. `binary` names outputs wanted in binary; `default_binary` is for those not named."""

    id: str | None
    inputs: dict[str, tuple[str, Array]]
    outputs: list[str]
    binary: dict[str, bool] = field(default_factory=dict)
    default_binary: bool = False


def parse_request(body: bytes, header_length: int | None) -> Request:
    """Parse a request body; `header_length` is the value of Inference-Header-Content-Length, if there was one.

    Raises FormatError naming the tensor that is wrong.
    """
    end = _end_of_json(body, header_length)
    document = _json(body[:end])
    inputs = _tensors(_list(document, "inputs", required=True), memoryview(body)[end:], "input")
    wanted = _list(document, "outputs")
    names = [_text(item, "name", "an output") for item in wanted]
    if len(set(names)) != len(names):
        raise FormatError("an output is asked for twice")
    flags = {}
    for name, item in zip(names, wanted, strict=True):
        parameters = _parameters(item)
        _check_offered(parameters, f"output {name!r}")
        if "binary_data" in parameters:
            flags[name] = _flag(parameters, "binary_data")
    everywhere = _parameters(document)
    _check_offered(everywhere, "the request")
    id_ = document.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise FormatError("`id` must be a string")
    return Request(id_, inputs, names, flags, _flag(everywhere, "binary_data_output"))


def build_response(
    model: str, version: str, outputs: Mapping[str, tuple[str, Array]], request: Request
) -> tuple[bytes, int | None]:
    """Return the body, and the length of its JSON if binary tensors follow it."""
    described, raw = [], []
    for name, (datatype, value) in outputs.items():
        item: dict[str, object] = {"name": name, "datatype": datatype, "shape": list(value.shape)}
        if request.binary.get(name, request.default_binary):
            data = to_raw(datatype, value)
            item["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            item["data"] = to_json(datatype, value, name)
        described.append(item)
    document: dict[str, object] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document).encode()
    return b"".join([head, *raw]), len(head) if raw else None


def parse_response(body: bytes, header_length: int | None) -> dict[str, tuple[str, Array]]:
    """Return the outputs of what `build_response` made: datatype and value by name. Raises FormatError."""
    end = _end_of_json(body, header_length)
    outputs = _list(_json(body[:end]), "outputs", required=True)
    return _tensors(outputs, memoryview(body)[end:], "output")


def _end_of_json(body: bytes, header_length: int | None) -> int:
    if header_length is not None and not 0 <= header_length <= len(body):
        raise FormatError(f"Inference-Header-Content-Length is {header_length}; the body has {len(body)} bytes")
    return len(body) if header_length is None else header_length


def _tensors(items: Sequence[dict[str, Any]], raw: memoryview, what: str) -> dict[str, tuple[str, Array]]:
    """Return the tensors of one side, in JSON or from `raw`, which must hold nothing else."""
    found: dict[str, tuple[str, Array]] = {}
    at = 0
    for item in items:
        name, datatype, shape = _head(item)
        if name in found:
            raise FormatError(f"{what} {name!r} is given twice")
        parameters = _parameters(item)
        _check_offered(parameters, f"{what} {name!r}")
        size = parameters.get("binary_data_size")
        if size is not None and "data" in item:
            raise FormatError(f"{what} {name!r} has both `data` and `binary_data_size`")
        if size is None:
            found[name] = (datatype, from_json(datatype, shape, item.get("data"), name))
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - at:
            raise FormatError(
                f"{what} {name!r}: binary_data_size {size!r}, but {len(raw) - at} bytes are left in the body"
            )
        found[name] = (datatype, from_raw(datatype, shape, bytes(raw[at : at + size]), name))
        at += size
    if at != len(raw):
        raise FormatError(f"{len(raw) - at} bytes follow the last binary tensor")
    return found


# Tensors -------------------------------------------------------------------------------------------------------------


def raw_size(datatype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor in memory; BYTES elements count 4."""
    return math.prod(shape) * (4 if datatype == BYTES else _dtype(datatype, "tensor").itemsize)


def zeros(datatype: str, shape: Sequence[int]) -> Array:
    """Return a tensor of zeros, or of empty strings."""
    if datatype == BYTES:
        return np.full(tuple(shape), "", dtype=object)
    return np.zeros(tuple(shape), _dtype(datatype, "tensor"))


def from_raw(datatype: str, shape: Sequence[int], data: bytes, name: str) -> Array:
    """Return a tensor from its binary form. Raises FormatError if it does not have the bytes of that shape."""
    if datatype == BYTES:
        return _strings(data, shape, name)
    dtype = _dtype(datatype, name)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise FormatError(f"{name!r}: {len(data)} bytes where {datatype} {list(shape)} has {expected}")
    if datatype == "BOOL" and data and np.frombuffer(data, np.uint8).max() > 1:
        raise FormatError(f"{name!r}: a BOOL is a byte of 0 or 1")
    return np.frombuffer(data, dtype).reshape(tuple(shape))


def to_raw(datatype: str, value: Array) -> bytes:
    """Inverse of `from_raw`."""
    if datatype == BYTES:
        items = [v if isinstance(v, bytes) else str(v).encode() for v in value.reshape(-1).tolist()]
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    return np.ascontiguousarray(value, DTYPES[datatype]).tobytes()


def from_json(datatype: str, shape: Sequence[int], data: object, name: str) -> Array:
    """Return a tensor from a JSON array, nested or flat. Raises FormatError naming what does not fit."""
    if not isinstance(data, list):
        raise FormatError(f"input {name!r} has neither `data` (an array) nor `binary_data_size`")
    flat = _flat(data, name)
    if len(flat) != math.prod(shape):
        raise FormatError(f"{name!r}: {len(flat)} elements where shape {list(shape)} has {math.prod(shape)}")
    if datatype == BYTES:
        if not all(isinstance(v, str) for v in flat):
            raise FormatError(f"{name!r}: a BYTES tensor in JSON holds strings")
        return np.array(flat, dtype=object).reshape(tuple(shape))
    dtype = _dtype(datatype, name)
    allowed = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}[dtype.kind]
    # By exact type: a truth value is an int to isinstance, and null would become NaN.
    if strange := {type(v) for v in flat}.difference(allowed):
        bad = next(v for v in flat if type(v) in strange)
        raise FormatError(f"{name!r}: {json.dumps(bad)[:40]} is no {datatype}")
    try:
        with np.errstate(over="ignore"):
            found = np.array(flat, dtype=dtype).reshape(tuple(shape))
    except (OverflowError, ValueError) as e:
        raise FormatError(f"{name!r}: a value does not fit {datatype}: {e}") from e
    if dtype.kind == "f" and not np.isfinite(found).all():
        raise FormatError(f"{name!r}: a value is too large for {datatype}")
    return found


def to_json(datatype: str, value: Array, name: str) -> list[object]:
    """Inverse of `from_json`, flat. Raises FormatError for values that JSON cannot carry."""
    flat: list[Any] = value.reshape(-1).tolist()
    if datatype == BYTES:
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in flat]
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise FormatError(
            f"output {name!r} has values that JSON cannot carry (NaN or infinite)", hint="ask for it in binary"
        )
    return flat


def _strings(data: bytes, shape: Sequence[int], name: str) -> Array:
    items, at = [], 0
    while at < len(data):
        if len(data) - at < 4 or len(data) - at - 4 < (size := struct.unpack_from("<I", data, at)[0]):  # noqa: PLR2004 - u32
            raise FormatError(f"{name!r}: a BYTES element is longer than the tensor")
        items.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if len(items) != math.prod(shape):
        raise FormatError(f"{name!r}: {len(items)} elements where shape {list(shape)} has {math.prod(shape)}")
    try:
        decoded = [item.decode() for item in items]
    except UnicodeDecodeError:
        raise FormatError(f"{name!r}: string tensors hold UTF-8") from None
    return np.array(decoded, dtype=object).reshape(tuple(shape))


def _flat(data: list[object], name: str) -> list[object]:
    for _ in range(MAX_RANK):
        if not any(isinstance(v, list) for v in data):
            return data
        if not all(isinstance(v, list) for v in data):
            raise FormatError(f"{name!r}: `data` mixes arrays and values")
        data = [v for row in data if isinstance(row, list) for v in row]
    raise FormatError(f"{name!r}: `data` is nested deeper than {MAX_RANK}")


def _dtype(datatype: str, name: str) -> np.dtype[Any]:
    try:
        return DTYPES[datatype]
    except KeyError:
        raise FormatError(
            f"{name!r}: unknown datatype {datatype[:20]!r}; known: {', '.join([*DTYPES, BYTES])}"
        ) from None


# JSON ----------------------------------------------------------------------------------------------------------------


def _json(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"the request is not JSON: {e}") from None
    if not isinstance(document, dict):
        raise FormatError("the request must be a JSON object")
    return document


def _no_constant(name: str) -> None:
    """Refuse what Python would read and JSON does not have (RFC 8259 §6)."""
    raise ValueError(f"{name} is no JSON; send such tensors in binary")


def _list(document: dict[str, Any], key: str, *, required: bool = False) -> list[dict[str, Any]]:
    value = document.get(key, None if required else [])
    if not isinstance(value, list) or len(value) > MAX_TENSORS or not all(isinstance(v, dict) for v in value):
        raise FormatError(f"`{key}` must be an array of at most {MAX_TENSORS} objects")
    return value


def _head(item: dict[str, Any]) -> tuple[str, str, list[int]]:
    name = _text(item, "name", "an input")
    datatype = _text(item, "datatype", f"input {name!r}")
    shape = item.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(type(d) is int and d >= 0 for d in shape):
        raise FormatError(f"input {name!r}: `shape` must be an array of at most {MAX_RANK} numbers of 0 or more")
    if math.prod(d or 1 for d in shape) > 2**40:
        raise FormatError(f"input {name!r}: shape {shape} is too large")
    return name, datatype, shape


def _text(item: dict[str, Any], key: str, what: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 256:  # noqa: PLR2004 - a name, not a novel
        raise FormatError(f"{what} has no `{key}`")
    return value


def _parameters(item: dict[str, Any]) -> dict[str, Any]:
    value = item.get("parameters", {})
    if not isinstance(value, dict):
        raise FormatError("`parameters` must be an object")
    return value


def _check_offered(parameters: dict[str, Any], what: str) -> None:
    """Refuse what other servers offer and would change the answer; a hint (priority, timeout) may be ignored."""
    for name in parameters:
        if name in _NOT_OFFERED or name.startswith("shared_memory_"):
            raise FormatError(f"{what}: parameter {name[:80]!r} is not offered by this server")


def _flag(parameters: dict[str, Any], key: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise FormatError(f"parameter `{key}` must be true or false")
    return value

"""External data of an ONNX model: where its tensors say their bytes are, read without the onnx package.

An engine opens the path that a tensor names. A path that leaves the release would let a model read the device's files,
so it is refused before the engine is started. Only what leads to the paths is parsed (onnx.proto: ModelProto.graph 7,
GraphProto.node 1, .initializer 5, .sparse_initializer 15, NodeProto.attribute 5, AttributeProto.t 5, .g 6, .tensors 10,
.graphs 11, TensorProto.external_data 13; ModelProto.functions 25, FunctionProto.node 7, .attribute_proto 11;
ModelProto.training_info 20, TrainingInfoProto.initialization 1, .algorithm 2).
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_DEPTH: Final = 32  # graphs within attributes within graphs; real models nest three
_MAX_VARINT: Final = 70  # bits
_MAX_TAG: Final = 2**32 - 1  # protobuf cuts longer ones off: what we took for another field, it would take for this one
_ENTRY_KEY, _ENTRY_VALUE, _LENGTH_DELIMITED = 1, 2, 2
# What a message of each kind leads to: field number -> kind of the message in it.
_FIELDS: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
}


def check_external(path: Path) -> None:
    """Raise FormatError if a tensor's external data lies outside the model's directory, or this is no ONNX model."""
    with path.open("rb") as f:
        if not f.seek(0, 2):
            raise FormatError(f"{path.name} is empty")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            for location in locations(view):
                _check(path, location)


def locations(data: memoryview) -> Iterator[str]:
    """Yield the location of every tensor with external data in a serialised ModelProto.

    Raises FormatError for bytes that are not protobuf.
    """
    stack = [("model", 0, len(data), 0)]
    while stack:
        kind, start, end, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise FormatError(f"ONNX graphs nested deeper than {_MAX_DEPTH}")
        for number, first, last in _fields(data, start, end):
            child = _FIELDS[kind].get(number)
            if child == "entry":
                location = _location(data, first, last)
                if location is not None:
                    yield location
            elif child is not None:
                stack.append((child, first, last, depth + 1))


def _check(path: Path, location: str) -> None:
    target = (path.parent / location).resolve()
    parts = location.split("/")
    if (
        not location
        or location.startswith("/")
        or ".." in parts
        or "\\" in location
        or not target.is_relative_to(path.parent.resolve())
    ):
        raise FormatError(f"a tensor's external data {location[:100]!r} lies outside the release")
    if not target.is_file() or (path.parent / location).is_symlink():
        raise FormatError(f"a tensor's external data {location[:100]!r} is not in the release")


def _location(data: memoryview, start: int, end: int) -> str | None:
    """Value of a StringStringEntryProto whose key is `location`."""
    entry = {number: bytes(data[first:last]) for number, first, last in _fields(data, start, end)}
    if entry.get(_ENTRY_KEY) != b"location":
        return None
    try:
        return entry.get(_ENTRY_VALUE, b"").decode()
    except UnicodeDecodeError:
        raise FormatError("a tensor's external data has a name that is not UTF-8") from None


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end) of the length-delimited fields of one message; others are passed over."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag > _MAX_TAG:
            raise FormatError("not an ONNX model: a field has an impossible number")
        if wire == _LENGTH_DELIMITED:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise FormatError("not an ONNX model: a field is longer than the file")
            yield number, at, at + length
            at += length
        elif wire == 0:
            _, at = _varint(data, at, end)
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
        else:
            raise FormatError("not an ONNX model: unknown wire type")
    if at > end:
        raise FormatError("not an ONNX model: a field is longer than the file")


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < _MAX_VARINT:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at
        shift += 7
    raise FormatError("not an ONNX model: a number does not end")

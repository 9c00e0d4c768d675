"""Where the tensors of an ONNX model lie in its file: a walk over the protobuf wire format that decodes nothing else.

Only the messages that lead to tensor data are entered (onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto,
FunctionProto, TensorProto, SparseTensorProto); every other field is stepped over. Depth and number of fields are
bounded, so that hostile bytes cost little. Not a protobuf library: groups and malformed fields end the walk.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from edgeseal_host.cutting.runs import NotThisFormatError, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal_host.cutting.runs import Buffer

MAX_FIELDS: Final = 4_000_000  # a large real graph has some 100,000; a few seconds of walking
MAX_DEPTH: Final = 32  # graphs nest through If and Loop; onnxruntime itself gives up earlier than protobuf's 100
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5

# message -> {field number: message of that field}; numbers from onnx.proto
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_GRAPH: Final = 7  # of ModelProto
_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA = 2, 9, 13  # of TensorProto
_PACKED: Final = {4: 4, 10: 8}  # float_data, double_data: fixed width; the integer arrays are varints
_VARINTS: Final = frozenset({5, 7, 11})
# TensorProto.DataType -> bytes of an element; whatever is missing has 1 or less
_WIDTH: Final = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}


class _Field(NamedTuple):
    number: int
    wire: int
    value: int  # of a varint; else where the content starts
    end: int


@dataclass
class _Tensor:
    """Places of one TensorProto's data, in this file or (location, offset, length) in another."""

    width: int = 1
    inside: list[Run] = field(default_factory=list)
    external: dict[bytes, bytes] = field(default_factory=dict)


def tensors(data: Buffer) -> list[Run]:
    """Return the places of all tensors inside the file.

    Raises NotThisFormatError if `data` is no ONNX model.
    """
    return [run for tensor in _Walk(data).tensors() for run in tensor.inside]


def external(data: Buffer) -> dict[str, list[Run]]:
    """Return the places of tensors in other files, by the location the model names.

    Raises NotThisFormatError if `data` is no ONNX model.
    """
    places: defaultdict[str, list[Run]] = defaultdict(list)
    for tensor in _Walk(data).tensors():
        if b"location" in tensor.external and b"length" in tensor.external:
            offset, length = (_number(tensor.external.get(key, b"0")) for key in (b"offset", b"length"))
            location = tensor.external[b"location"].decode("utf-8", "replace")
            places[location].append(Run(offset, length, tensor.width))
    return dict(places)


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:  # noqa: PLR2004 - digits of 2^63
        raise NotThisFormatError("an external tensor without a place")
    return int(text)


class _Walk:
    """One pass over a model; counts the fields it sees."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._left = MAX_FIELDS

    def tensors(self) -> Iterator[_Tensor]:
        if not any(f.number == _GRAPH and f.wire == _LEN for f in self._fields(0, len(self._data))):
            raise NotThisFormatError("a model without a graph")
        pending = [("Model", 0, len(self._data), 0)]
        while pending:
            message, start, end, depth = pending.pop()
            if message == "Tensor":
                yield self._tensor(start, end)
                continue
            if depth > MAX_DEPTH:
                raise NotThisFormatError("nested too deep")
            children = _CHILDREN[message]
            pending.extend(
                (children[f.number], f.value, f.end, depth + 1)
                for f in self._fields(start, end)
                if f.wire == _LEN and f.number in children
            )

    def _tensor(self, start: int, end: int) -> _Tensor:
        found = _Tensor()
        raw: list[_Field] = []
        for f in self._fields(start, end):
            if f.number == _DATA_TYPE and f.wire == _VARINT:
                found.width = _WIDTH.get(f.value, 1)
            elif f.wire != _LEN:
                continue
            elif f.number == _RAW_DATA:
                raw.append(f)
            elif f.number in _PACKED or f.number in _VARINTS:
                found.inside.append(Run(f.value, f.end - f.value, _PACKED.get(f.number, 1)))
            elif f.number == _EXTERNAL_DATA:
                self._external_entry(found, f)
        # The type may be written behind the data.
        found.inside += [Run(f.value, f.end - f.value, found.width) for f in raw]
        return found

    def _external_entry(self, tensor: _Tensor, entry: _Field) -> None:
        """StringStringEntryProto {1: key, 2: value}."""
        parts = {
            f.number: bytes(self._data[f.value : f.end])
            for f in self._fields(entry.value, entry.end)
            if f.wire == _LEN and f.end - f.value <= 4096  # noqa: PLR2004 - the longest path Linux takes
        }
        if 1 in parts and 2 in parts:  # noqa: PLR2004
            tensor.external[parts[1]] = parts[2]

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise NotThisFormatError("too many fields")
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            value, position = self._content(wire, position, end)
            if not number or position > end:
                raise NotThisFormatError("a field that is none or leaves its message")
            yield _Field(number, wire, value, position)

    def _content(self, wire: int, position: int, end: int) -> tuple[int, int]:
        """Return (value or start of the content, end of the field)."""
        if wire == _VARINT:
            return self._varint(position, end)
        if wire == _LEN:
            length, position = self._varint(position, end)
            return position, position + length
        if wire in {_I64, _I32}:
            return position, position + (8 if wire == _I64 else 4)
        raise NotThisFormatError("a wire type that ONNX does not use")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - no continuation bit
                return value, position
        raise NotThisFormatError("a varint that does not end")

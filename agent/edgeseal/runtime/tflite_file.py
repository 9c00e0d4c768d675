"""A TFLite file held against its schema, before an engine maps it: read without the engine and without copying it.

LiteRT trusts the offsets of a file that it opens by path. Here every table, vector and string that leads from the model
to its tensors, operators and signatures is checked to lie in the file (the options of single operators are not: they
are what the gate's own process is for). What asks for code or weights from elsewhere is refused.

Layout: FlatBuffers, little-endian; a table begins with the distance back to its vtable, which has the offset of each
field or 0 (flatbuffers.dev/internals). Field numbers: tflite/converter/schema/schema.fbs of LiteRT, version 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IDENTIFIER: Final = b"TFL3"
_VERSION: Final = 3
_CUSTOM: Final = 32  # BuiltinOperator.CUSTOM
# Operators without a number of their own that LiteRT's resolver carries all the same (tflite/kernels/register.cc).
OWN_OPERATORS: Final = frozenset({"AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess"})
_TYPES: Final = (  # TensorType
    *("FLOAT32", "FLOAT16", "INT32", "UINT8", "INT64", "STRING", "BOOL", "INT16", "COMPLEX64", "INT8", "FLOAT64"),
    *("COMPLEX128", "UINT64", "RESOURCE", "VARIANT", "UINT32", "UINT16", "INT4", "BFLOAT16", "INT2", "UINT4"),
    *("FLOAT8_E4M3FN", "FLOAT8_E5M2"),
)
SERVED_TYPES: Final = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15, 16})
_MAX_TABLES: Final = 2**20  # real models have some thousand tensors
_TABLE, _TABLES, _STRING = "table", "tables", "string"
# Kind of table -> field number -> (what it is, kind of the table or width of an element).
_FIELDS: Final[dict[str, dict[int, tuple[str, str | int]]]] = {
    "model": {
        1: (_TABLES, "operator code"),
        2: (_TABLES, "subgraph"),
        3: (_STRING, 1),
        4: (_TABLES, "buffer"),
        5: ("vector", 4),
        6: (_TABLES, "metadata"),
        7: (_TABLES, "signature"),
        8: (_TABLES, "buffer group"),
        9: (_TABLES, "external buffer"),
    },
    "operator code": {1: (_STRING, 1)},
    "subgraph": {
        0: (_TABLES, "tensor"),
        1: ("vector", 4),
        2: ("vector", 4),
        3: (_TABLES, "operator"),
        4: (_STRING, 1),
    },
    "tensor": {0: ("vector", 4), 3: (_STRING, 1), 4: (_TABLE, "quantization"), 7: ("vector", 4)},
    "quantization": {0: ("vector", 4), 1: ("vector", 4), 2: ("vector", 4), 3: ("vector", 8)},
    "operator": {1: ("vector", 4), 2: ("vector", 4), 5: ("vector", 1), 7: ("vector", 1), 8: ("vector", 4)},
    "buffer": {0: ("vector", 1)},
    "metadata": {0: (_STRING, 1)},
    "signature": {0: (_TABLES, "tensor map"), 1: (_TABLES, "tensor map"), 2: (_STRING, 1), 3: (_STRING, 1)},
    "tensor map": {0: (_STRING, 1)},
    "buffer group": {0: (_STRING, 1)},
    "external buffer": {4: (_STRING, 1)},
}


def check(path: Path) -> None:
    """Raise FormatError if this is no sound TFLite model, or needs an operator or weights that are not in it."""
    with path.open("rb") as f:
        if not f.seek(0, 2):
            raise FormatError(f"{path.name} is empty")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            check_bytes(view)


def check_bytes(data: memoryview) -> None:
    """Do what `check` does, with the file's bytes."""
    if len(data) < 8 or bytes(data[4:8]) != IDENTIFIER:  # noqa: PLR2004 - offset of the root, identifier
        raise FormatError("not a TFLite model: the identifier TFL3 is missing")
    reader = _Reader(data)
    model = reader.at("I", 0)
    if (version := reader.scalar(model, 0, "I")) != _VERSION:
        raise FormatError(f"a TFLite model of schema version {version}; engines read version {_VERSION}")
    reader.walk(model)
    if not reader.tables(model, 2):
        raise FormatError("the TFLite model has no subgraph")
    _check_operators(reader, model)
    _check_weights(reader, model)
    _check_datatypes(reader, model)


def _check_operators(reader: _Reader, model: int) -> None:
    for code in reader.tables(model, 1):
        number = max(reader.scalar(code, 0, "b"), reader.scalar(code, 3, "i"))
        name = reader.string(code, 1)
        if number == _CUSTOM and name not in OWN_OPERATORS:
            raise FormatError(
                f"the model needs the operator {name[:80]!r} of a library; no library is ever loaded for a model"
            )


def _check_weights(reader: _Reader, model: int) -> None:
    """Weights lie in the file: in the FlatBuffer, or behind it where a buffer gives offset and size."""
    if groups := reader.tables(model, 8):
        names = [reader.string(group, 0) for group in groups]
        name = next((n for n in names if n), "")
        raise FormatError(f"the model has weights outside of its file ({name[:80]!r}); LiteRT is given one file only")
    for buffer in reader.tables(model, 4):
        offset, size = reader.scalar(buffer, 1, "Q"), reader.scalar(buffer, 2, "Q")
        if offset > 1 and offset + size > len(reader.data):  # 0 and 1 mean: in the FlatBuffer
            raise FormatError("not a TFLite model: a tensor's weights lie beyond the end of the file")


def _check_datatypes(reader: _Reader, model: int) -> None:
    """Hold back inputs and outputs of datatypes that no client can send: engines pass some of them off as INT8."""
    graphs = reader.tables(model, 2)
    called = {0, *(reader.scalar(signature, 4, "I") for signature in reader.tables(model, 7))}
    if max(called) >= len(graphs):
        raise FormatError(f"the TFLite model has a signature of subgraph {max(called)}; it has {len(graphs)}")
    for graph in (graphs[number] for number in sorted(called)):
        tensors = reader.tables(graph, 0)
        for index in (*reader.numbers(graph, 1), *reader.numbers(graph, 2)):
            if not 0 <= index < len(tensors):
                raise FormatError(f"the TFLite model names tensor {index}; its subgraph has {len(tensors)}")
            number = reader.scalar(tensors[index], 1, "b")
            if number not in SERVED_TYPES:
                kind = _TYPES[number] if 0 <= number < len(_TYPES) else f"type {number}"
                raise FormatError(f"{reader.string(tensors[index], 3)[:80]!r} is {kind}; no client can send or take it")


@dataclass
class _Reader:
    """Bounds-checked reads. Positions are absolute; a table is named by the position it begins at."""

    data: memoryview
    seen: set[tuple[str, int]] = field(default_factory=set)

    def walk(self, model: int) -> None:
        """Check every table that `_FIELDS` leads to, each once however many refer to it."""
        stack = [("model", model)]
        while stack:
            kind, table = stack.pop()
            if (kind, table) in self.seen:
                continue
            self.seen.add((kind, table))
            if len(self.seen) > _MAX_TABLES:
                raise FormatError(f"the TFLite model has more than {_MAX_TABLES} tensors, operators and buffers")
            stack += self._parts(kind, table)

    def _parts(self, kind: str, table: int) -> Iterator[tuple[str, int]]:
        """Check the fields of one table and yield the tables in it."""
        for number, (what, of) in _FIELDS[kind].items():
            if what == _TABLES:
                yield from ((str(of), part) for part in self.tables(table, number))
            elif what == _TABLE:
                if (part := self._referred(table, number)) is not None:
                    yield str(of), part
            else:
                self._vector(table, number, int(of))

    def at(self, code: str, position: int) -> int:
        """Return the position that the offset at `position` leads to."""
        target = position + int(self._unpack(code, position))
        if not 0 <= target <= len(self.data) - 4:
            raise FormatError("not a TFLite model: something lies beyond the end of the file")
        return target

    def scalar(self, table: int, number: int, code: str) -> int:
        """Return a number, 0 where the field is absent."""
        position = self._field(table, number)
        return 0 if position is None else self._unpack(code, position)

    def string(self, table: int, number: int) -> str:
        """Return a text, empty where the field is absent."""
        start, count = self._vector(table, number, 1)
        return bytes(self.data[start : start + count]).decode("utf-8", "replace")

    def numbers(self, table: int, number: int) -> list[int]:
        """Return the elements of a vector of 32-bit integers."""
        start, count = self._vector(table, number, 4)
        return [self._unpack("i", start + 4 * i) for i in range(count)]

    def tables(self, table: int, number: int) -> list[int]:
        """Return the tables in a vector."""
        start, count = self._vector(table, number, 4)
        if count > _MAX_TABLES:
            raise FormatError(f"the TFLite model has more than {_MAX_TABLES} tensors, operators or buffers")
        return [self.at("I", start + 4 * i) for i in range(count)]

    def _vector(self, table: int, number: int, width: int) -> tuple[int, int]:
        """Return where the elements begin and how many there are."""
        position = self._referred(table, number)
        if position is None:
            return 0, 0
        count = self._unpack("I", position)
        if count * width > len(self.data) - position - 4:
            raise FormatError("not a TFLite model: a vector is longer than the file")
        return position + 4, count

    def _referred(self, table: int, number: int) -> int | None:
        position = self._field(table, number)
        return None if position is None else self.at("I", position)

    def _field(self, table: int, number: int) -> int | None:
        """Return where a field of a table lies, None if the table has not got it."""
        vtable = table - self._unpack("i", table)
        if not 0 <= vtable <= len(self.data) - 4:
            raise FormatError("not a TFLite model: a table's description lies outside the file")
        slot = 4 + 2 * number
        if slot + 2 > self._unpack("H", vtable):
            return None
        distance = self._unpack("H", vtable + slot)
        return table + distance if distance else None

    def _unpack(self, code: str, position: int) -> int:
        try:
            return int(struct.unpack_from("<" + code, self.data, position)[0])
        except struct.error:
            raise FormatError("not a TFLite model: something lies beyond the end of the file") from None

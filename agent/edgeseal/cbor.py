"""Strict deterministic CBOR (RFC 8949 §4.2.1): one value has one encoding, and every other encoding is refused.

What edgeseal's formats need and no more: unsigned and negative integers of 64 bits, floats in their shortest form, byte
and text strings, arrays, maps, booleans, null. A map's keys are all text or all unsigned integers: for those, the order
"shorter first, then bytewise" that cbor2 writes and the bytewise order of §4.2.1 are the same order.
No tags, no bignums, no indefinite lengths, no NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import cbor2
import msgspec

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

Value: TypeAlias = "int | float | bytes | str | bool | list[Value] | dict[int, Value] | dict[str, Value] | None"

S = TypeVar("S", bound=msgspec.Struct)

MAX_DEPTH = 8  # the deepest format of ours nests 5 containers; a bomb needs thousands
MAX_UINT = 2**64 - 1
_PLAIN = frozenset({bool, bytes, str, type(None)})  # exact types: a subclass could encode as something else


def encode(value: object) -> bytes:
    """Return the one deterministic encoding of `value`.

    Raises ValueError for a value outside the subset above: that is our bug, never the input's.
    """
    # cbor2's plain encoding is the deterministic one of what `_check` calls settled, at a third of the cost.
    return cbor2.dumps(value, canonical=not _check(value, MAX_DEPTH))


def decode(data: bytes, *, max_length: int) -> Value:
    """Return the value `data` encodes; arrays become lists, maps become dicts.

    Raises FormatError if `data` is longer than `max_length`, is not CBOR, leaves bytes over, nests deeper than
    `MAX_DEPTH`, or differs in any byte from the deterministic encoding of what it decodes to.
    """
    if len(data) > max_length:
        raise FormatError(f"CBOR of {len(data)} bytes where at most {max_length} are allowed")
    try:
        value: Value = cbor2.loads(
            data, max_depth=MAX_DEPTH, allow_indefinite=False, allow_duplicate_keys=False, semantic_decoders={}
        )
        # Comparing with our own encoding catches everything at once: trailing bytes, long integers, unsorted keys.
        canonical = encode(value)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as e:
        raise FormatError(f"not deterministic CBOR: {e}") from e
    if canonical != data:
        raise FormatError(
            "not deterministic CBOR (RFC 8949 §4.2.1): the same value has a different, shorter or sorted encoding"
        )
    return value


def to_map(struct: msgspec.Struct) -> dict[int, object]:
    """Return an array-like struct as a map whose keys are the fields' positions: what `decode_map` reads back."""
    return dict(enumerate(msgspec.to_builtins(struct, builtin_types=(bytes,))))


def decode_map(data: bytes, schema: type[S], *, max_length: int, what: str) -> S:
    """Decode a map with keys 0, 1, 2, … into `schema`, an array-like msgspec struct with the fields in that order.

    `what` names the object in errors. Raises FormatError for anything that is not exactly that shape and those types.
    """
    value = decode(data, max_length=max_length)
    if not isinstance(value, dict) or set(value) != set(range(len(value))):
        raise FormatError(f"{what}: expected a CBOR map with keys 0, 1, 2, … without gaps")
    try:
        return msgspec.convert(list(value.values()), schema, strict=True)
    except msgspec.ValidationError as e:
        raise FormatError(f"{what}: {e}") from e


def _check(value: object, depth: int) -> bool:
    """Return whether `value` is settled: every map is in order and no float asks for its shortest form.

    Raises ValueError unless it lies in the subset and nests at most `depth` containers.
    """
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is int:
        if not -MAX_UINT - 1 <= value <= MAX_UINT:  # type: ignore[operator]
            raise ValueError("integer beyond 64 bits")
        return True
    if kind is float:
        if math.isnan(value):  # type: ignore[arg-type]
            raise ValueError("NaN has many encodings and no meaning here")
        return False
    if isinstance(value, dict):
        return _check_items(value.values(), depth) & _check_keys(value)
    if isinstance(value, list | tuple):
        return _check_items(value, depth)
    raise ValueError(f"{kind.__name__} has no place in these formats")


def _check_items(items: Iterable[object], depth: int) -> bool:
    if depth == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    settled = True
    for item in items:
        if type(item) not in _PLAIN and not _check(item, depth - 1):
            settled = False
    return settled


def _check_keys(value: dict[object, object]) -> bool:
    """Return whether the keys are in the order of RFC 8949 §4.2.1."""
    keys = list(value)
    kinds = set(map(type, keys))
    if kinds == {int} and min(cast("list[int]", keys)) >= 0:
        return keys == sorted(keys)  # type: ignore[type-var]
    if kinds - {str}:
        raise ValueError("map keys must be all text or all unsigned integers")
    return keys == sorted(keys, key=_text_order)  # type: ignore[arg-type]


def _text_order(key: str) -> tuple[int, bytes]:
    data = key.encode()
    return len(data), data

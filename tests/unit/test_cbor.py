"""Strict deterministic CBOR: one value, one encoding, and nothing but FormatError for everything else."""

from __future__ import annotations

import math
import struct
from typing import Annotated

import cbor2
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit import second_reader

from edgeseal import cbor
from edgeseal.errors import FormatError

LIMIT = 2**20
SCALARS = (
    st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.booleans()
    | st.none()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), inner, max_size=4)
        | st.dictionaries(st.integers(0, 2**64 - 1), inner, max_size=4)
    ),
    max_leaves=12,
)
# Bytes that look like CBOR: pieces of encodings, well or badly put together.
HEADS = st.sampled_from([bytes([b]) for b in range(256)])
PIECES = HEADS | SCALARS.map(cbor2.dumps) | st.binary(max_size=9)
ALMOST = st.lists(PIECES, min_size=1, max_size=12).map(b"".join)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES)
def test_round_trip(value: cbor.Value) -> None:
    if depth(value) > cbor.MAX_DEPTH:
        with pytest.raises(ValueError, match="nested deeper"):
            cbor.encode(value)
        return
    data = cbor.encode(value)
    again = cbor.decode(data, max_length=LIMIT)
    assert again == value
    assert repr(again) == repr(cbor.decode(cbor.encode(again), max_length=LIMIT))
    assert data == cbor.encode(again)


@given(st.binary(max_size=64) | ALMOST)
@example(b"\xf9\x80\x00")  # -0.0
@example(b"\xa2\x00\x00\x61a\x00")  # mixed keys
@example(b"\xa1\x20\x00")  # negative key
@example(b"\x9f\xff")
@example(b"\xf8\x14")  # false in two bytes
@example(b"\xc2\x40")
@example(b"\xd9\xd9\xf7\x00")  # self-described CBOR
@example(b"\xfa\x7f\x80\x00\x00")  # infinity in four bytes
@example(b"\x62\xed\xa0")
@example(b"\x63\xed\xa0\x80")  # a surrogate
@example(b"\xa2\x61b\x00\x61a\x00")
@example(b"\xd8\x1c\x81\xd8\x1d\x00")  # a cycle of shared references
def test_arbitrary_bytes_are_refused_or_canonical_and_two_decoders_agree(data: bytes) -> None:
    try:
        value = cbor.decode(data, max_length=LIMIT)
    except FormatError:
        with pytest.raises(second_reader.Refused):
            second_reader.Cbor(data).whole()
        return
    assert cbor.encode(value) == data
    assert repr(second_reader.Cbor(data).whole()) == repr(value)


@pytest.mark.parametrize(
    ("fault", "data"),
    [
        ("nothing", b""),
        ("trailing byte", b"\x00\x00"),
        ("indefinite array", b"\x9f\x00\xff"),
        ("indefinite text", b"\x7f\x61a\xff"),
        ("two-byte 7", b"\x18\x07"),
        ("nine-byte 7", b"\x1b" + bytes(7) + b"\x07"),
        ("duplicate key", b"\xa2\x00\x00\x00\x00"),
        ("unsorted", b"\xa2\x01\x00\x00\x00"),
        ("longer key first", b"\xa2\x62aa\x00\x61b\x00"),
        ("bignum", b"\xc2\x49\x01" + bytes(8)),
        ("small bignum", b"\xc2\x41\x01"),
        ("date", b"\xc0\x74" + b"2026-01-01T00:00:00Z"),
        ("set", b"\xd9\x01\x02\x81\x00"),
        ("NaN", b"\xf9\x7e\x00"),
        ("double 1.5", b"\xfb" + struct.pack(">d", 1.5)),
        ("undefined", b"\xf7"),
        ("simple value", b"\xf0"),
        ("break", b"\xff"),
        ("bad UTF-8", b"\x61\xff"),
        ("byte-string key", b"\xa1\x41a\x00"),
        ("array key", b"\xa1\x80\x00"),
        ("float key", b"\xa1\xf9\x3c\x00\x00"),
        ("null key", b"\xa1\xf6\x00"),
        ("boolean keys", b"\xa2\xf4\x00\xf5\x00"),
        ("half a length", b"\x59\x01"),
        ("2^64 - 1 bytes", b"\x5b" + b"\xff" * 8),
        ("2^64 - 1 items", b"\x9b" + b"\xff" * 8),
        ("2^64 - 1 entries", b"\xbb" + b"\xff" * 8),
        ("depth 9", b"\x81" * 9 + b"\x00"),
        ("depth 100,000", b"\x81" * 100_000 + b"\x00"),
        ("depth 100,000 of maps", b"\xa1\x00" * 100_000 + b"\x00"),
        ("depth 100,000 of tags", b"\xc6" * 100_000 + b"\x00"),
        ("depth 100,000 of open arrays", b"\x9f" * 100_000),
    ],
)
def test_other_encodings_and_bombs_refused(fault: str, data: bytes) -> None:
    del fault
    with pytest.raises(FormatError):
        cbor.decode(data, max_length=LIMIT)


def test_longer_than_allowed_refused_before_decoding() -> None:
    with pytest.raises(FormatError, match="3 bytes where at most 2"):
        cbor.decode(b"\xff\xff\xff", max_length=2)


class Strange(int):
    """Could encode as something else."""


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**64) - 1, math.nan, {1: 0, "a": 0}, {-1: 0}, {b"a": 0}, {True: 0}, {1.0: 0}, {1, 2}, Strange(3), 1j],
    ids=repr,
)
def test_values_outside_the_subset_are_our_bug(value: object) -> None:
    with pytest.raises(ValueError, match=r"integer|NaN|keys|place"):
        cbor.encode([value])


@pytest.mark.parametrize("value", [bytearray(b"a"), memoryview(b"a")], ids=["bytearray", "memoryview"])
def test_only_exact_types_encode(value: object) -> None:
    with pytest.raises(ValueError, match="no place"):
        cbor.encode(value)
    with pytest.raises(ValueError, match="no place"):
        cbor.encode([value])


class Pair(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=1)]
    data: bytes


def test_map_of_a_struct_round_trip() -> None:
    data = cbor.encode(cbor.to_map(Pair(1, b"x")))
    assert data == b"\xa2\x00\x01\x01\x41x"
    assert cbor.decode_map(data, Pair, max_length=10, what="pair") == Pair(1, b"x")


@pytest.mark.parametrize(
    "data",
    [b"\x82\x01\x41x",
     b"\xa1\x00\x01", b"\xa3\x00\x01\x01\x41x\x02\x00", b"\xa2\x00\x01\x02\x41x", b"\xa2\x00\x00\x01\x41x",
     b"\xa2\x00\x01\x01\x61x", b"\xa2\x61a\x01\x61b\x41x", b"\xa0", b"\xf6"],
    ids=["array", "key-missing", "key-more", "gap", "out-of-bounds", "text-for-bytes", "text-keys", "empty", "null"],
)  # fmt: skip
def test_map_of_another_shape_refused_by_name(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^pair: "):
        cbor.decode_map(data, Pair, max_length=100, what="pair")


@given(VALUES.filter(lambda value: depth(value) <= cbor.MAX_DEPTH))
def test_encoding_is_cbor2s_canonical_one_whatever_the_order_of_maps(value: cbor.Value) -> None:
    assert cbor.encode(value) == cbor2.dumps(value, canonical=True)
    assert cbor.encode(_turned(value)) == cbor.encode(value)


def _turned(value: cbor.Value) -> cbor.Value:
    """The same value with every map in another order."""
    if isinstance(value, dict):
        return {k: _turned(v) for k, v in reversed(value.items())}  # type: ignore[return-value]
    return [_turned(v) for v in value] if isinstance(value, list) else value

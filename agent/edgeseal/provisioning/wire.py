"""Group 64: how a message crosses a line that loses packets (docs/spec/provisioning.md §3).

    STATUS  read   {}                              -> {v, stage, serial, agent}
    PUT     write  {s, n, o, l, h, d}              -> {s, n, o} taken, {s, n, o, x: true} start anew,
                                                      {s, n, o, l, h, d} whole: the answer begins here
    GET     read   {s, n, o, c}                    -> {s, n, o, l, h, d}

s session, n number of the message in it, o offset, l length of the whole, h first 8 bytes of its SHA-384, d data,
c bytes wanted. Offsets are multiples of UNIT; data is whole units, or ends the message. Everything may be repeated.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, TypeVar

import msgspec

from edgeseal.errors import FormatError
from edgeseal.provisioning.messages import MAX_ANSWER, MAX_MESSAGE

GROUP: Final = 64
STATUS: Final = 0
PUT: Final = 1
GET: Final = 2
UNIT: Final = 96  # bytes; small enough for a bad cable, a multiple of 3 for base64
MAX_UNITS: Final = 8  # per packet: 768 bytes, 1.1 KB on the line
SESSION_LENGTH: Final = 12  # 4 of the station's id, 8 of its nonce
OWNER_LENGTH: Final = 4
CHECK_LENGTH: Final = 8
MAX_NUMBER: Final = 3

_Session = Annotated[bytes, msgspec.Meta(min_length=SESSION_LENGTH, max_length=SESSION_LENGTH)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_MESSAGE, multiple_of=UNIT)]
_Length = Annotated[int, msgspec.Meta(ge=1, le=MAX_MESSAGE)]
_AnswerLength = Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWER)]
_Check = Annotated[bytes, msgspec.Meta(min_length=CHECK_LENGTH, max_length=CHECK_LENGTH)]
_Data = Annotated[bytes, msgspec.Meta(max_length=UNIT * MAX_UNITS)]
S = TypeVar("S", bound=msgspec.Struct)


class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of the station's message."""

    s: _Session
    n: _Number
    o: _Offset
    l: _Length  # noqa: E741 - names on the wire are one letter
    h: _Check
    d: _Data


class Get(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question for a piece of the device's answer."""

    s: _Session
    n: _Number
    o: _Offset
    c: Annotated[int, msgspec.Meta(ge=1, le=UNIT * MAX_UNITS)]


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answer to both: `d` with `l` and `h` is a piece of the device's answer, `x` asks for the message anew."""

    s: _Session
    n: _Number
    o: _Offset
    l: _AnswerLength | None = None  # noqa: E741
    h: _Check | None = None
    d: _Data | None = None
    x: bool = False


def read(body: dict[str, Any], schema: type[S]) -> S:
    """Convert a packet's map.

    Raises FormatError.
    """
    try:
        return msgspec.convert(body, schema, strict=True)
    except msgspec.ValidationError as e:
        raise FormatError(f"group 64: {e}") from e


def write(message: msgspec.Struct) -> dict[str, Any]:
    """Inverse of `read`; what is unset does not travel."""
    found: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return {key: value for key, value in found.items() if value is not None and value is not False}


def check_value(message: bytes) -> bytes:
    """8 bytes that tell a message put together wrongly from a good one; not a defence against an attacker."""
    return hashlib.sha384(message).digest()[:CHECK_LENGTH]


class Assembly:
    """A message being put together from pieces in any order; both sides use it."""

    def __init__(self, length: int, check: bytes) -> None:
        """`length` was bounded by the schema."""
        self.length = length
        self.check = check
        self.missing = set(range(-(-length // UNIT)))
        self._data = bytearray(length)

    def add(self, offset: int, data: bytes) -> bool:
        """Take a piece in; False for one that does not lie on the grid."""
        end = offset + len(data)
        if not data or end > self.length or (len(data) % UNIT and end != self.length):
            return False
        self._data[offset:end] = data
        self.missing -= set(range(offset // UNIT, -(-end // UNIT)))
        return True

    def whole(self) -> bytes | None:
        """Return the message once nothing is missing.

        Raises FormatError if it does not have its check value: start anew.
        """
        if self.missing:
            return None
        message = bytes(self._data)
        if check_value(message) != self.check:
            raise FormatError("a message was put together wrongly")
        return message


def cut_piece(message: bytes, offset: int, count: int) -> bytes:
    """Return `count` bytes from `offset`, in whole units unless the message ends."""
    return message[offset : offset + max(UNIT, count // UNIT * UNIT)]

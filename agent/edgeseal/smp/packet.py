"""One SMP packet: 8 bytes of header, then a CBOR map with text keys (Zephyr, "SMP protocol specification").

    u8 (version << 3 | op) ‖ u8 flags ‖ u16 length of the map ‖ u16 group ‖ u8 sequence ‖ u8 command

Requests come from other people's tools, so the map need not be deterministic here; it is bounded all the same.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

import cbor2

from edgeseal import cbor
from edgeseal.errors import FormatError
from edgeseal.smp.lines import MAX_PACKET

_HEADER: Final = struct.Struct("!BBHHBB")
HEADER_LENGTH: Final = _HEADER.size
_OP_MASK: Final = 0b111
_VERSION_SHIFT: Final = 3
_VERSION_MASK: Final = 0b11
_DEPTH: Final = 4  # no map of ours or of group 0 nests deeper


class Op(IntEnum):
    """What a packet is; an answer's op is its request's plus one."""

    READ = 0
    READ_RSP = 1
    WRITE = 2
    WRITE_RSP = 3

    @property
    def is_request(self) -> bool:
        """Whether a server answers it."""
        return self in {Op.READ, Op.WRITE}


class Rc(IntEnum):
    """Result codes of mcumgr (`enum mcumgr_err_t`) that this device answers with."""

    OK = 0
    UNKNOWN = 1
    INVALID = 3
    BAD_STATE = 6
    NOT_SUPPORTED = 8
    BUSY = 10
    ACCESS_DENIED = 11


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet; `body` is its map. `version` 0 is the original protocol, 1 is "SMP version 2"."""

    op: Op
    group: int
    command: int
    body: dict[str, Any]
    sequence: int = 0
    version: int = 1

    def to_bytes(self) -> bytes:
        """Header and deterministic CBOR."""
        body = cbor.encode(self.body)
        first = self.version << _VERSION_SHIFT | self.op
        return _HEADER.pack(first, 0, len(body), self.group, self.sequence, self.command) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of `to_bytes`, for any CBOR encoding of a map with text keys.

        Raises FormatError.
        """
        if not HEADER_LENGTH < len(data) <= MAX_PACKET:
            raise FormatError(f"SMP packet of {len(data)} bytes; {HEADER_LENGTH + 1} to {MAX_PACKET} are possible")
        first, _flags, length, group, sequence, command = _HEADER.unpack_from(data)
        if length != len(data) - HEADER_LENGTH:
            raise FormatError(f"SMP header says {length} bytes, {len(data) - HEADER_LENGTH} came")
        try:
            op = Op(first & _OP_MASK)
        except ValueError as e:
            raise FormatError(f"SMP operation {first & _OP_MASK} is none") from e
        version = first >> _VERSION_SHIFT & _VERSION_MASK
        return cls(op, group, command, _decode_map(data[HEADER_LENGTH:]), sequence, version)

    def answer(self, body: dict[str, Any]) -> Packet:
        """Return the answer to this request."""
        return Packet(Op(self.op + 1), self.group, self.command, body, self.sequence, self.version)

    def failure(self, rc: Rc, reason: str = "") -> Packet:
        """Return an answer that says why not, in the form the request's protocol version has for it."""
        body: dict[str, Any] = {"rc": int(rc)}
        if self.version and self.group:
            body = {"err": {"group": self.group, "rc": int(rc)}}
        if reason:
            body["rsn"] = reason
        return self.answer(body)


def _decode_map(data: bytes) -> dict[str, Any]:
    stream = io.BytesIO(data)
    try:
        value = cbor2.load(stream, max_depth=_DEPTH, allow_duplicate_keys=False, semantic_decoders={}, read_size=1)
        cbor.encode(value)  # only to refuse tags and whatever else no map of SMP has
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as e:
        raise FormatError(f"SMP payload is not CBOR: {e}") from e
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FormatError("SMP payload is not a map with text keys")
    if stream.tell() != len(data):
        raise FormatError("SMP payload has bytes behind its map")
    return value

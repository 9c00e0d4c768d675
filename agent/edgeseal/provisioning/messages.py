"""What station and device say to each other, to the byte (docs/spec/provisioning.md §4).

A message is one byte, its kind, and a body: deterministic CBOR, or fixed-length cryptography of `transcript`. The
station speaks, the device answers; a message and its answer have one number.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, Literal, Self, TypeVar

import msgspec

from edgeseal import cbor
from edgeseal.enrolment import Request, SuiteNumber, Text
from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.suite import PublicKey

FORMAT: Final = 1
MAX_MESSAGE: Final = 1_114_112  # bytes of one message: 1 MiB of TUF root and what is around it
MAX_ANSWER: Final = 65_536  # a device has no more to say than who it is
NONCE_LENGTH: Final = 32
HOST_ENTROPY_LENGTH: Final = 64
PIN_LENGTH: Final = 48  # SHA-384 of a station's public key
STATION_ID_LENGTH: Final = 16
MLDSA65_PUBLIC: Final = 1952  # FIPS 204, table 2
MLDSA65_SIGNATURE: Final = 3309

Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_LENGTH, max_length=NONCE_LENGTH)]
Lines = Annotated[list[Text], msgspec.Meta(max_length=16)]
Versions = Annotated[dict[str, Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]], msgspec.Meta(max_length=16)]
Digest = Annotated[bytes, msgspec.Meta(min_length=PIN_LENGTH, max_length=PIN_LENGTH)]
S = TypeVar("S", bound="_Message")


class Kind(IntEnum):
    """First byte of a message."""

    HELLO = 1
    IDENTITY = 2
    CHALLENGE = 3
    PROOF = 4
    GRANT = 5
    CONFIRM = 6
    LOCK = 7
    LOCKED = 8
    RESET = 9
    RESET_NONCE = 10
    AUTHORISE = 11
    DESTROYED = 12
    REFUSED = 15


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A body with a format number in front."""

    def to_bytes(self) -> bytes:
        """Deterministic CBOR map, keys 0.. in the order of the fields."""
        return cbor.encode(cbor.to_map(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of `to_bytes`.

        Raises FormatError; IncompatibleError for a newer format.
        """
        message = cbor.decode_map(data, cls, max_length=MAX_MESSAGE, what=cls.__name__.lower())
        number = getattr(message, "format", FORMAT)
        if number != FORMAT:
            raise IncompatibleError(
                f"provisioning format {number}; this version speaks {FORMAT}",
                hint="install the same edgeseal on station and device",
            )
        _require_printable(message, cls.__name__.lower())
        return message


class Hello(_Message, frozen=True):
    """A station begins. `carried`: this device is a file that somebody carries, so nothing can be proven."""

    format: int
    batch: Text
    suite: SuiteNumber
    policy: Literal["mix", "require"]
    station: Annotated[bytes, msgspec.Meta(min_length=STATION_ID_LENGTH, max_length=STATION_ID_LENGTH)]
    nonce: Nonce
    entropy: Annotated[bytes, msgspec.Meta(min_length=HOST_ENTROPY_LENGTH, max_length=HOST_ENTROPY_LENGTH)]
    carried: bool = False


class Board(_Message, frozen=True):
    """What is printed on or burnt into a board; names as Raspberry Pi's factory tool has them, empty if unknown."""

    eth_mac: Text = ""
    mmc_cid: Text = ""
    rpi_duid: Text = ""
    board_revision: Text = ""


class EntropyReport(_Message, frozen=True):
    """What the device's key was drawn from: policy, how many healthy hardware sources took part, one line for each."""

    policy: Literal["off", "mix", "require"]
    hardware: Annotated[int, msgspec.Meta(ge=0, le=16)]
    sources: Lines
    calibration: Lines = []


class Identity(_Message, frozen=True):
    """Who answers. `request` is its enrolment request: suite, public key, serial number, hardware, agent version."""

    format: int
    provisioned: bool
    request: Annotated[bytes, msgspec.Meta(max_length=8192)]
    board: Board
    entropy: EntropyReport
    nonce: Nonce

    @property
    def asked(self) -> Request:
        """The request, with a public key that loads. Raises FormatError, IncompatibleError."""
        asked = Request.from_bytes(self.request)
        _require_printable(asked, "request")
        return asked

    @property
    def key(self) -> PublicKey:
        """The device's public key."""
        asked = self.asked
        return PublicKey(asked.suite, asked.public)


class Package(_Message, frozen=True):
    """What a grant message holds once unlocked.

    `root` is the TUF root, deflated; the sealed grant has its SHA-384 in place of it. `pin` names the public key that
    may authorise a factory reset.
    """

    sealed: Annotated[bytes, msgspec.Meta(max_length=16_384)]
    root: bytes
    pin: Digest
    station: Text
    batch: Text
    floors: Versions


class Reset(_Message, frozen=True):
    """A station asks for a factory reset."""

    format: int
    station: Annotated[bytes, msgspec.Meta(min_length=STATION_ID_LENGTH, max_length=STATION_ID_LENGTH)]
    nonce: Nonce


class ResetNonce(_Message, frozen=True):
    """What an authorisation must be made for: this identity, now."""

    kid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    serial: Text
    nonce: Nonce


class Authorisation(_Message, frozen=True):
    """The station's public key, which the device knows by its hash, and its signature over the transcript."""

    public: Annotated[bytes, msgspec.Meta(min_length=MLDSA65_PUBLIC, max_length=MLDSA65_PUBLIC)]
    signature: Annotated[bytes, msgspec.Meta(min_length=MLDSA65_SIGNATURE, max_length=MLDSA65_SIGNATURE)]


class Destroyed(_Message, frozen=True):
    """The identity `kid` is gone; `receipt` shows that its holder says so."""

    kid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    receipt: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Refused(_Message, frozen=True):
    """The other side goes no further."""

    code: Annotated[int, msgspec.Meta(ge=1, le=255)]
    reason: Text
    serial: Text


def _require_printable(message: msgspec.Struct, what: str) -> None:
    """Refuse control characters: these texts go to a technician's terminal, and to labels and tables.

    Raises FormatError.
    """
    pending: list[object] = [msgspec.to_builtins(message, builtin_types=(bytes,))]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and not value.isprintable():
            raise FormatError(f"{what}: a text with characters that cannot be printed")
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            pending += value


def frame(kind: Kind, body: bytes) -> bytes:
    """Put the kind in front."""
    return bytes([kind]) + body


def cut(message: bytes) -> tuple[Kind, bytes]:
    """Inverse of `frame`.

    Raises FormatError.
    """
    try:
        return Kind(message[0]), message[1:]
    except (IndexError, ValueError) as e:
        raise FormatError("a provisioning message of no known kind") from e

"""Bodies of API requests: read within a limit, then checked against a schema whose errors name the field."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec

from edgeseal.errors import EdgesealError, FormatError, TemporaryError, UsageError
from edgeseal.manifest import MAX_RELEASE
from edgeseal_host.fleet.wire import MAX_NAMES
from edgeseal_host.station.enrolments import SignedRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

S = TypeVar("S", bound=msgspec.Struct)

MAX_REASON: Final = 512
SILENCE_SECONDS: Final = 60
_Release = Annotated[int, msgspec.Meta(ge=1, le=MAX_RELEASE)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class TooLargeError(EdgesealError):
    """The body is longer than this request may have."""

    exit_code = 2


class Missing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST missing."""

    kind: Literal["chunks", "tables"]
    names: Annotated[list[_Hex], msgspec.Meta(max_length=MAX_NAMES)]


class Enrol(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST devices: an `enrolment.Record` in base64; from a station with its pin in hex and its signature in base64."""

    record: Annotated[str, msgspec.Meta(max_length=32_768)]
    station: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{96}\Z")] | None = None
    signature: Annotated[str, msgspec.Meta(max_length=8192)] | None = None

    def signed(self) -> SignedRecord | None:
        """Return the record with its signature, if it has one.

        Raises FormatError, UsageError if only one of pin and signature is there.
        """
        if self.station is None and self.signature is None:
            return None
        if self.station is None or self.signature is None:
            raise UsageError("request body: `station` and `signature` go together")
        record, signature = unbase64(self.record, "record"), unbase64(self.signature, "signature")
        return SignedRecord(record, bytes.fromhex(self.station), signature)


class Revoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST devices/NAME/revoke."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)] = ""


class Assign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST assignments: exactly one of device and group."""

    model: _Name
    release: _Release
    device: _Name | None = None
    group: _Name | None = None
    not_after: _Time | None = None


class Withdraw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST assignments/withdraw: exactly one of device and group."""

    model: _Name
    device: _Name | None = None
    group: _Name | None = None


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST tickets."""

    device: _Name
    model: _Name
    release: _Release


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Raises TemporaryError after a minute of silence: a peer that vanished must not hold an upload or a connection.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TemporaryError(f"nothing came for {SILENCE_SECONDS} seconds", hint="send the request again") from None
        yield piece


async def read(request: Request, limit: int) -> bytes:
    """Return the body.

    Raises TooLargeError as soon as it is clear that there is more than `limit`.
    """
    announced = request.headers.get("content-length", "0")
    if len(announced) > 18 or not announced.isdigit() or int(announced) > limit:  # noqa: PLR2004 - below 2**63
        raise TooLargeError(f"body of {announced[:20]} bytes; at most {limit} are allowed here")
    body = bytearray()
    async for piece in pieces(request):
        body += piece
        if len(body) > limit:
            raise TooLargeError(f"body of more than {limit} bytes")
    return bytes(body)


def parse(data: bytes, schema: type[S]) -> S:
    """Decode JSON into `schema`.

    Raises UsageError naming the field.
    """
    try:
        return msgspec.json.decode(data, type=schema)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise UsageError(f"request body: {e}", hint="server and client may differ in version") from e


def parse_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object of any content.

    Raises UsageError.
    """
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise UsageError(f"request body: {e}") from e


def unbase64(text: object, what: str) -> bytes:
    """Decode strict base64.

    Raises FormatError.
    """
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise FormatError(f"`{what}` must be a base64 string")


def envelopes_of(body: dict[str, Any]) -> dict[str, bytes]:
    """Return the content-key envelopes of a publication by target path.

    Raises FormatError.
    """
    value = body.get("envelopes", {})
    if not isinstance(value, dict):
        raise FormatError("`envelopes` must be an object of base64 strings")
    return {str(path): unbase64(text, "envelopes") for path, text in value.items()}

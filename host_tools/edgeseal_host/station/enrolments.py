"""Enrolment records that are carried to a fleet server: lines of JSON, each signed with the station's ML-DSA-65 key.

    {"format": "edgeseal/enrolments/1", "station": "pin, 48 bytes hex", "name": "line 1"}
    {"record": base64, "signature": base64}    one for each device

A record is docs/spec/session.md §13 (the PSK in it is sealed to the fleet server); its signature is over the record's
bytes under `CONTEXT`. Each line stands for itself: a file may be cut, joined and read twice.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from edgeseal.errors import FormatError, IncompatibleError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FORMAT: Final = "edgeseal/enrolments/1"
CONTEXT: Final = b"edgeseal enrolment record"  # FIPS 204 §5.2: a signature for this serves nothing else
MAX_FILE: Final = 256 * 2**20  # 20,000 devices
_MAX_LINE: Final = 65_536
_PIN: Final = 48


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """One line, unverified."""

    number: int
    record: bytes
    signature: bytes

    def check(self, public: bytes) -> None:
        """Raise IntegrityError unless the station with this public key signed the record."""
        try:
            MLDSA65PublicKey.from_public_bytes(public).verify(self.signature, self.record, CONTEXT)
        except (InvalidSignature, ValueError):
            raise IntegrityError("its signature is not this station's") from None


def write(records: Iterable[bytes], *, station: str, pin: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """Return a file; `sign` signs under `CONTEXT`."""
    lines = [json.dumps({"format": FORMAT, "station": pin.hex(), "name": station})]
    lines += [json.dumps({"record": _text(record), "signature": _text(sign(record))}) for record in records]
    return "\n".join([*lines, ""]).encode()


def read_header(data: bytes) -> tuple[bytes, str, list[bytes]]:
    """Return the station's pin, the name it gives itself, and the lines that follow.

    Raises FormatError, IncompatibleError.
    """
    first, *rest = data.split(b"\n")
    header = _object(first)
    if header.get("format") != FORMAT:
        raise IncompatibleError(
            "this is no file of enrolment records that this version reads", hint="edgeseal station carry makes one"
        )
    try:
        pin = bytes.fromhex(str(header.get("station", "")))
    except ValueError:
        pin = b""
    if len(pin) != _PIN:
        raise FormatError("the file does not say which station it is from")
    return pin, str(header.get("name", ""))[:128], [line for line in rest if line.strip()]


def read_line(number: int, line: bytes) -> SignedRecord:
    """Read one line.

    Raises FormatError.
    """
    found = _object(line)
    return SignedRecord(number, _bytes(found.get("record")), _bytes(found.get("signature")))


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > _MAX_LINE:
        raise FormatError(f"a line of {len(line)} bytes; at most {_MAX_LINE} are possible")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise FormatError("it is not JSON: was the file cut off?") from e
    if not isinstance(found, dict):
        raise FormatError("it is not a JSON object")
    return found


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "-", validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("expected `record` and `signature` in base64") from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()

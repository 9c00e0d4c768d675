"""Content keys: commitment, envelope for the fleet server, ticket for an air-gapped device (docs/spec/session.md §14).

A content key (CK, 32 random bytes per release) opens the sealed table of one release. Who may have it is decided
elsewhere; here is only how it travels.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError, IntegrityError
from edgeseal.session.messages import KID_LENGTH, LOCK_OVERHEAD, lock, t, u64, unlock
from edgeseal.suite import SUITES, PrivateKey, PublicKey, extract, hmac384, suite

if TYPE_CHECKING:
    from edgeseal.session.server import Ring

CK_LENGTH: Final = 32


def commitment(ck: bytes, model: str, release: int) -> bytes:
    """32 bytes in the signed manifest that bind CK to one release: the server cannot swap it."""
    return hmac384(ck, t(b"ck", model.encode(), u64(release)))[:32]


def check_commitment(ck: bytes, expected: bytes, model: str, release: int) -> None:
    """Raise IntegrityError unless `ck` is the key the manifest commits to."""
    if len(ck) != CK_LENGTH or not hmac.compare_digest(commitment(ck, model, release), expected):
        raise IntegrityError(
            f"the content key of {model} release {release} is not the one its signed manifest commits to",
            hint="the fleet server sent a wrong key; the release was not installed",
        )


def wrap(recipient: PublicKey, *, model: str, release: int, ck: bytes) -> bytes:
    """Envelope of CK for one wrap or recovery key: u8 suite ‖ kid ‖ Seal."""
    sealed = recipient.seal(_label(b"wrap", model, release), ck)
    return bytes([recipient.suite.number]) + recipient.kid + sealed


def unwrap(ring: Ring, envelope: bytes, *, model: str, release: int) -> bytes:
    """Inverse of `wrap` with whichever key of `ring` the envelope names.

    Raises FormatError for a malformed envelope, IntegrityError if no key of the ring opens it.
    """
    if len(envelope) < 1 + KID_LENGTH or envelope[0] not in SUITES:
        raise FormatError("content-key envelope is too short or of an unknown suite")
    expected = 1 + KID_LENGTH + SUITES[envelope[0]].seal_overhead + CK_LENGTH
    if len(envelope) != expected:
        raise FormatError(f"content-key envelope of {len(envelope)} bytes; its suite needs {expected}")
    key = ring.get((envelope[0], envelope[1 : 1 + KID_LENGTH]))
    if key is None:
        raise IntegrityError(
            "the content-key envelope is for a wrap key this server does not have",
            hint="publish with the fleet's current public.json",
        )
    return key.open(_label(b"wrap", model, release), envelope[1 + KID_LENGTH :])


def seal_ticket(device: PublicKey, psk: bytes, *, model: str, release: int, ck: bytes, not_after: int) -> bytes:
    """CK for one device without a network; `not_after` in Unix seconds."""
    label = _label(b"ticket", model, release)
    sealed = device.seal(label, ck + u64(not_after))
    return lock(device.suite.number, extract(label, psk), t(b"ticket-ad", device.raw), sealed)


def open_ticket(device: PrivateKey, psk: bytes, ticket: bytes, *, model: str, release: int) -> tuple[bytes, int]:
    """Inverse of `seal_ticket`: (CK, not_after).

    Raises FormatError for a wrong length, IntegrityError if it was made for another device, model or release.
    """
    number = device.suite.number
    expected = LOCK_OVERHEAD + suite(number).seal_overhead + CK_LENGTH + 8
    if len(ticket) != expected:
        raise FormatError(f"key ticket of {len(ticket)} bytes; a device of suite {number} needs {expected}")
    label = _label(b"ticket", model, release)
    plain = device.open(label, unlock(number, extract(label, psk), t(b"ticket-ad", device.public.raw), ticket))
    return plain[:CK_LENGTH], int.from_bytes(plain[CK_LENGTH:], "big")


def _label(purpose: bytes, model: str, release: int) -> bytes:
    return t(purpose, model.encode(), u64(release))

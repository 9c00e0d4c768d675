"""What binds a dialogue together: every message goes into one hash, and every key and proof depends on it.

    th := T(kind of message, th, message)     after every message, in order; T as in session.md §2 with its own version
    prk = Extract(th after CHALLENGE, c)      c: 32 bytes only the device's private key can get at

A message of another dialogue, another device or another place in this one therefore never verifies: replayed, reflected
and spliced transcripts are the same error. One class for both roles.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from edgeseal.errors import IntegrityError
from edgeseal.provisioning.messages import Kind
from edgeseal.session.messages import LOCK_OVERHEAD, lock, unlock
from edgeseal.suite import HASH_LENGTH, PrivateKey, PublicKey, expand, extract, hmac384, transcript

VERSION: Final = b"edgeseal/provisioning/1"
CHALLENGE_LENGTH: Final = 32
TAG_LENGTH: Final = 32
RECEIPT_LENGTH: Final = 32
CONFIRM_LENGTH: Final = RECEIPT_LENGTH + LOCK_OVERHEAD


def t(label: bytes, *parts: bytes) -> bytes:
    """Transcript hash with this protocol's version: 48 bytes."""
    return transcript(VERSION, label, *parts)


def seed(drawn: bytes, host: bytes, serial: str, length: int) -> bytes:
    """KEM seed of a device: secret because `drawn` is, different for every device even where `drawn` repeats."""
    parts = (drawn, host, serial.encode())
    return hashlib.shake_256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).digest(length)


def receipt(public: bytes, sealed: bytes, psk: bytes) -> bytes:
    """32 bytes that only who opened this very grant can make; the device keeps them, the station their hash."""
    return extract(t(b"receipt", public, sealed), psk)[:RECEIPT_LENGTH]


def commitment(receipt_: bytes) -> bytes:
    """Return what a station writes down of a receipt it has yet to see."""
    return t(b"commitment", receipt_)


def pin(station_public: bytes) -> bytes:
    """SHA-384-based name of a station's public key; its first 16 bytes are the station's id."""
    return t(b"station", station_public)


class Transcript:
    """The running hash `th`, and once the challenge is known, the keys. `suite` is the device key's."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.th = t(b"begin")
        self._prk = b""
        self._suite = 0

    def absorb(self, kind: Kind, message: bytes) -> None:
        """Take in a message that was sent or accepted."""
        self.th = t(kind.name.encode(), self.th, message)

    # Challenge and proof -----------------------------------------------------------------------------------------

    def challenge(self, device: PublicKey, c: bytes) -> bytes:
        """Seal 32 fresh bytes to the device; returns the body of CHALLENGE and takes it in."""
        sealed = device.seal(t(b"challenge", self.th), c)
        self._begin_keys(device.suite.number, sealed, c)
        return sealed

    def open_challenge(self, device: PrivateKey, sealed: bytes) -> None:
        """Device's half of `challenge`.

        Raises IntegrityError if it was made for another device or in another dialogue.
        """
        c = device.open(t(b"challenge", self.th), sealed)
        if len(c) != CHALLENGE_LENGTH:
            raise IntegrityError("the station's challenge has a wrong length")
        self._begin_keys(device.suite.number, sealed, c)

    def _begin_keys(self, suite: int, sealed: bytes, c: bytes) -> None:
        self.absorb(Kind.CHALLENGE, sealed)
        self._prk = extract(self.th, c)
        self._suite = suite

    def tag(self, label: bytes) -> bytes:
        """32 bytes that show knowledge of the challenge and of everything said so far (PROOF, LOCK, LOCKED)."""
        return hmac384(expand(self._prk, label, HASH_LENGTH), self.th)[:TAG_LENGTH]

    def check_tag(self, label: bytes, tag: bytes) -> None:
        """Raise IntegrityError unless `tag` is the other side's."""
        if not hmac.compare_digest(self.tag(label), tag):
            raise IntegrityError("a proof does not fit this dialogue: another device or another station answered")

    # Grant and confirmation --------------------------------------------------------------------------------------

    def lock(self, label: bytes, message: bytes) -> bytes:
        """Encrypt under the dialogue's key, bound to everything said so far."""
        return lock(self._suite, expand(self._prk, label, HASH_LENGTH), self.th, message)

    def unlock(self, label: bytes, locked: bytes) -> bytes:
        """Inverse of `lock`.

        Raises IntegrityError.
        """
        return unlock(self._suite, expand(self._prk, label, HASH_LENGTH), self.th, locked)

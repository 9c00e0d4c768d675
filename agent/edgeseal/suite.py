"""The two cipher suites, each one number without options, and the hash constructions built from them.

A suite is a property of keys; nothing is negotiated (session.md §3). Suite 1 is for devices without AES instructions
and hedges ML-KEM with X25519; suite 2 is CNSA 2.0's level. SHA-384 serves both.

Private keys are always derived from seeds that the caller brings: this module draws randomness only inside HPKE
encapsulation, where no library takes a seed.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from edgeseal.errors import FormatError, IncompatibleError, IntegrityError

KEY_LENGTH: Final = 32
TAG_LENGTH: Final = 16
NONCE: Final = bytes(12)  # every key seals one message, so the nonce carries no information
HASH_LENGTH: Final = 48  # SHA-384
_MLKEM768_PK: Final = 1184  # FIPS 203 §8, table 3

_HpkePrivate: TypeAlias = hpke.MLKEM768X25519PrivateKey | MLKEM1024PrivateKey
_HpkePublic: TypeAlias = hpke.MLKEM768X25519PublicKey | MLKEM1024PublicKey


@dataclass(frozen=True, slots=True)
class Suite:
    """Fixed algorithms and lengths (bytes) of one suite number."""

    number: int
    name: str
    seed_length: int
    public_length: int
    enc_length: int
    hpke: hpke.Suite
    aead: type[ChaCha20Poly1305 | AESGCM]

    @property
    def seal_overhead(self) -> int:
        """Bytes by which an HPKE sealing is longer than its plaintext."""
        return self.enc_length + TAG_LENGTH


SUITES: Final[dict[int, Suite]] = {
    1: Suite(
        number=1,
        name="MLKEM768-X25519 / HKDF-SHA384 / ChaCha20-Poly1305",
        seed_length=32,
        public_length=1216,
        enc_length=1120,
        hpke=hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA384, hpke.AEAD.CHACHA20_POLY1305),
        aead=ChaCha20Poly1305,
    ),
    2: Suite(
        number=2,
        name="ML-KEM-1024 / HKDF-SHA384 / AES-256-GCM",
        seed_length=64,
        public_length=1568,
        enc_length=1568,
        hpke=hpke.Suite(hpke.KEM.MLKEM1024, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM),
        aead=AESGCM,
    ),
}


def suite(number: int) -> Suite:
    """Return the suite with that number.

    Raises IncompatibleError for a number this version does not know.
    """
    try:
        return SUITES[number]
    except KeyError:
        known = ", ".join(str(n) for n in SUITES)
        raise IncompatibleError(
            f"cipher suite {number} is unknown here; this version has suites {known}",
            hint="update edgeseal on this machine",
        ) from None


class PublicKey:
    """A KEM public key that loaded: right length, valid ML-KEM encoding (FIPS 203 §7.2)."""

    def __init__(self, suite_number: int, raw: bytes) -> None:
        """Load `raw`.

        Raises FormatError for a wrong length or an encoding the library refuses.
        """
        self.suite = suite(suite_number)
        self.raw = bytes(raw)
        if len(raw) != self.suite.public_length:
            raise FormatError(f"public key of {len(raw)} bytes; suite {suite_number} needs {self.suite.public_length}")
        try:
            self._key = _load_public(suite_number, self.raw)
        except ValueError as e:
            raise FormatError(f"invalid KEM public key for suite {suite_number}: {e}") from e

    @property
    def kid(self) -> bytes:
        """16-byte key id (session.md §3)."""
        return kid(self.suite.number, self.raw)

    def seal(self, info: bytes, plaintext: bytes) -> bytes:
        """HPKE base mode, single shot, empty aad (RFC 9180 §6.1); returns enc ‖ ct.

        Raises FormatError for a key nobody can be sealed to (low-order X25519 point).
        """
        try:
            return self.suite.hpke.encrypt(plaintext, self._key, info)
        except ValueError as e:
            raise FormatError("this public key cannot be encrypted to (low-order X25519 point)") from e


class PrivateKey:
    """A KEM private key derived from its seed; the seed is what is stored (FIPS 203 §3.3 allows either)."""

    def __init__(self, suite_number: int, seed: bytes) -> None:
        """Derive the key pair.

        Raises FormatError for a seed of the wrong length.
        """
        self.suite = suite(suite_number)
        if len(seed) != self.suite.seed_length:
            raise FormatError(f"KEM seed of {len(seed)} bytes; suite {suite_number} needs {self.suite.seed_length}")
        self._key, raw = _derive_private(suite_number, bytes(seed))
        self.public = PublicKey(suite_number, raw)

    def open(self, info: bytes, sealed: bytes) -> bytes:
        """Inverse of `PublicKey.seal`.

        Raises IntegrityError, the same one whatever is wrong with `sealed`.
        """
        try:
            return self.suite.hpke.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError):
            raise IntegrityError("sealed message does not open with this key") from None


def _load_public(number: int, raw: bytes) -> _HpkePublic:
    if number == 1:
        return hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM768_PK]),
            X25519PublicKey.from_public_bytes(raw[_MLKEM768_PK:]),
        )
    return MLKEM1024PublicKey.from_public_bytes(raw)


def _derive_private(number: int, seed: bytes) -> tuple[_HpkePrivate, bytes]:
    """Return (library key, raw public key); suite 1 expands its seed as draft-connolly-cfrg-xwing-kem §5.2 does."""
    if number == 1:
        expanded = hashlib.shake_256(seed).digest(96)
        ml = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x = X25519PrivateKey.from_private_bytes(expanded[64:])
        raw = ml.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()
        return hpke.MLKEM768X25519PrivateKey(ml, x), raw
    key = MLKEM1024PrivateKey.from_seed_bytes(seed)
    return key, key.public_key().public_bytes_raw()


def aead_encrypt(number: int, key: bytes, aad: bytes | None, plaintext: bytes) -> bytes:
    """Encrypt the one message `key` will ever see; returns ciphertext ‖ tag."""
    return suite(number).aead(key).encrypt(NONCE, plaintext, aad)


def aead_decrypt(number: int, key: bytes, aad: bytes | None, ciphertext: bytes) -> bytes:
    """Inverse of `aead_encrypt`.

    Raises IntegrityError if the tag does not match.
    """
    try:
        return suite(number).aead(key).decrypt(NONCE, ciphertext, aad)
    except (InvalidTag, ValueError):
        raise IntegrityError("authentication tag does not match: wrong key, or the bytes were changed") from None


def hmac384(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-384 (RFC 2104)."""
    return hmac.digest(key, message, "sha384")


def extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with SHA-384 (RFC 5869 §2.2)."""
    return hmac384(salt, ikm)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-384 for one block, `length` <= 48 (RFC 5869 §2.3)."""
    if not 0 < length <= HASH_LENGTH:
        raise ValueError(f"expand gives 1..{HASH_LENGTH} bytes, not {length}")
    return hmac384(prk, info + b"\x01")[:length]


def transcript(version: bytes, label: bytes, *parts: bytes) -> bytes:
    """H(L(version) ‖ L(label) ‖ L(part)…) with L(x) = u32(len x) ‖ x: no two inputs share an encoding."""
    framed = [piece for part in (version, label, *parts) for piece in (len(part).to_bytes(4, "big"), part)]
    return hashlib.sha384(b"".join(framed)).digest()


X1_VERSION: Final = b"edgeseal/x1"


@lru_cache(maxsize=64)
def kid(suite_number: int, public_key: bytes) -> bytes:
    """16-byte id of a KEM public key (session.md §3)."""
    return transcript(X1_VERSION, b"kid", bytes([suite_number]), public_key)[:16]

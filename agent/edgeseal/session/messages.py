"""X1 messages to the byte, both directions (docs/spec/session.md §§2-6).

Not here: counters, registries, retries; see `server` and `device`. Every field but the padded body has a fixed length,
so there is no parser in front of authentication.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Final, Self

from edgeseal.errors import FormatError, IntegrityError
from edgeseal.suite import (
    HASH_LENGTH,
    KEY_LENGTH,
    SUITES,
    TAG_LENGTH,
    X1_VERSION,
    PrivateKey,
    PublicKey,
    aead_decrypt,
    aead_encrypt,
    expand,
    extract,
    hmac384,
    transcript,
)

PAD_BLOCK: Final = 256
MAX_PADDED: Final = 12_288
MAX_REQUEST_BODY: Final = MAX_PADDED - 2  # padding byte, flags
MAX_REPLY_BODY: Final = MAX_PADDED - 10  # padding byte, status, now
LOCK_NONCE: Final = 32
LOCK_OVERHEAD: Final = LOCK_NONCE + TAG_LENGTH
KID_LENGTH: Final = 16
PSK_LENGTH: Final = 32
S1_LENGTH: Final = 32
QKD_KEY_LENGTH: Final = 32
NO_QKD: Final = bytes(16)
CTR_LIMIT: Final = 2**63
M1_PREFIX: Final = 2 + KID_LENGTH
REFUSED: Final = b"\x00\x00"  # malformed, wrong key, unknown device, wrong PSK, QKD failure: byte-identical
KEY_UNKNOWN: Final = b"\x00\x01"


class Flags(IntFlag):
    """Request flags; any other bit is answered DENIED."""

    NONE = 0
    REKEY = 1
    RESYNCED = 2


class Status(IntEnum):
    """First byte of an authenticated reply."""

    OK = 0
    DENIED = 1
    STALE = 2
    REVOKED = 3


def t(label: bytes, *parts: bytes) -> bytes:
    """Transcript hash T of session.md §2."""
    return transcript(X1_VERSION, label, *parts)


def u64(value: int) -> bytes:
    """Big-endian 64-bit integer."""
    return value.to_bytes(8, "big")


def pad(message: bytes) -> bytes:
    """Append 0x80 and zeros up to the next multiple of 256: the length class is all an observer learns.

    Raises ValueError if the result would exceed 12,288 bytes.
    """
    padded = message + b"\x80" + bytes(-(len(message) + 1) % PAD_BLOCK)
    if len(padded) > MAX_PADDED:
        raise ValueError(f"message of {len(message)} bytes; at most {MAX_PADDED - 1} fit")
    return padded


def unpad(padded: bytes) -> bytes:
    """Inverse of `pad`, accepting its output only.

    Raises FormatError for any other length or ending.
    """
    message, marker, _ = padded.rpartition(b"\x80")
    zeros = len(padded) - len(message) - 1
    well_formed = marker and zeros < PAD_BLOCK and padded.endswith(bytes(zeros))
    if not well_formed or len(padded) % PAD_BLOCK or len(padded) > MAX_PADDED:
        raise FormatError("padding is not 0x80 followed by fewer than 256 zeros")
    return message


def lock(suite: int, prk: bytes, ad: bytes, message: bytes) -> bytes:
    """Deterministic authenticated encryption under `prk` (48 bytes longer than `message`).

    The nonce and through it the key depend on everything protected, so repeated randomness never reuses a key.
    """
    nonce = _lock_nonce(prk, ad, message)
    return nonce + aead_encrypt(suite, _lock_key(prk, nonce), ad, message)


def unlock(suite: int, prk: bytes, ad: bytes, locked: bytes) -> bytes:
    """Inverse of `lock`; the AEAD tag is the only check.

    Raises IntegrityError.
    """
    return aead_decrypt(suite, _lock_key(prk, locked[:LOCK_NONCE]), ad, locked[LOCK_NONCE:])


def _lock_nonce(prk: bytes, ad: bytes, message: bytes) -> bytes:
    return hmac384(expand(prk, b"n", HASH_LENGTH), t(b"n", ad, message))[:LOCK_NONCE]


def _lock_key(prk: bytes, nonce: bytes) -> bytes:
    return expand(prk, b"k" + nonce, KEY_LENGTH)


def request_base(suite: int) -> int:
    """Length of M1 without its padded body."""
    s = SUITES[suite]
    header = KID_LENGTH + s.public_length + S1_LENGTH + 8 + len(NO_QKD)
    return M1_PREFIX + s.seal_overhead + header + LOCK_OVERHEAD


def reply_base(suite: int) -> int:
    """Length of M2 without its padded body."""
    return 1 + LOCK_OVERHEAD + 2 * SUITES[suite].seal_overhead


def length_fits(length: int, base: int) -> bool:
    """Whether `length` is base + 256·i with 1 <= i <= 48; checked before any cryptography."""
    padded = length - base
    return padded % PAD_BLOCK == 0 and PAD_BLOCK <= padded <= MAX_PADDED


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a request that names the device; sealed to the server, bound into the lock."""

    kid_d: bytes
    e_public: bytes
    s1: bytes
    ctr: int
    qkd_id: bytes

    def to_bytes(self) -> bytes:
        """kid_D ‖ pk_e ‖ s1 ‖ u64 ctr ‖ qkd_id."""
        return self.kid_d + self.e_public + self.s1 + u64(self.ctr) + self.qkd_id

    @classmethod
    def cut(cls, suite: int, p1: bytes) -> tuple[Self, bytes, bytes]:
        """Return (header, its bytes, the locked rest) of an opened P1 whose length `length_fits` has checked."""
        cuts = [KID_LENGTH, SUITES[suite].public_length, S1_LENGTH, 8, len(NO_QKD)]
        fields: list[bytes] = []
        at = 0
        for n in cuts:
            fields.append(p1[at : at + n])
            at += n
        kid_d, e_public, s1, ctr, qkd_id = fields
        return cls(kid_d, e_public, s1, int.from_bytes(ctr, "big"), qkd_id), p1[:at], p1[at:]


@dataclass(frozen=True, slots=True)
class Reply:
    """An authenticated answer: status, server time (Unix seconds) and body."""

    status: Status
    now: int
    body: bytes


def th0(server: PublicKey) -> bytes:
    """Transcript of the server key a request is made for."""
    return _th0(server.suite.number, server.raw)


@lru_cache(maxsize=16)  # a server has a handful of keys and needs this at every request
def _th0(suite: int, server: bytes) -> bytes:
    return t(b"th0", bytes([suite]), server)


def request_lock(psk: bytes, th0_: bytes, device_public: bytes, header: bytes) -> tuple[bytes, bytes]:
    """(prk1, associated data) of a request's lock."""
    return extract(th0_, psk), t(b"request", device_public, header)


def reply_keys(psk: bytes, s1: bytes, qkd_key: bytes, th1: bytes) -> bytes:
    """Return prk2, the key material of a reply's lock."""
    return extract(th1, psk + s1 + qkd_key)


class PendingRequest:
    """A request in flight: M1, and what opens its one answer. Dropped after that answer or 60 s."""

    def __init__(  # noqa: PLR0913 - the protocol's inputs, all keyword-only
        self,
        *,
        server: PublicKey,
        device: PrivateKey,
        psk: bytes,
        e_seed: bytes,
        s1: bytes,
        ctr: int,
        flags: int,
        body: bytes,
        qkd_id: bytes = NO_QKD,
        qkd_key: bytes = b"",
    ) -> None:
        """Build M1 (session.md §5).

        Raises ValueError for a counter or body out of range, or keys of different suites.
        """
        number = device.suite.number
        if server.suite.number != number:
            raise ValueError("device and server key of a request have the same suite")
        if not 0 < ctr < CTR_LIMIT or len(s1) != S1_LENGTH or len(psk) != PSK_LENGTH:
            raise ValueError("counter, s1 or PSK out of range")
        self.ctr = ctr
        self.flags = Flags(flags)
        self._device, self._psk, self._s1, self._qkd_key = device, psk, s1, qkd_key
        self._ephemeral = PrivateKey(number, e_seed)
        header = Header(device.public.kid, self._ephemeral.public.raw, s1, ctr, qkd_id).to_bytes()
        th0_ = th0(server)
        prk1, ad = request_lock(psk, th0_, device.public.raw, header)
        p1 = header + lock(number, prk1, ad, pad(bytes([flags]) + body))
        self.m1 = bytes([1, number]) + server.kid + server.seal(th0_, p1)
        self.th1 = t(b"reply", th0_, self.m1)

    @property
    def tag(self) -> bytes:
        """16 bytes the registry keeps of the last accepted request; STALE quotes them."""
        return self.th1[:16]

    def open_reply(self, m2: bytes) -> Reply:
        """Open the answer to exactly this request (session.md §6).

        Raises IntegrityError for anything but a genuine M2; the two-byte error answers are the caller's to recognise.
        """
        suite = self._device.suite.number
        if not length_fits(len(m2), reply_base(suite)) or m2[0] != 2:  # noqa: PLR2004 - message type of M2
            raise IntegrityError("answer has no length or type an X1 reply can have")
        prk2 = reply_keys(self._psk, self._s1, self._qkd_key, self.th1)
        c_e = unlock(suite, prk2, self.th1, m2[1:])
        c_d = self._ephemeral.open(t(b"e", self.th1), c_e)
        return _parse_reply(self._device.open(t(b"d", self.th1), c_d))

    def rekeyed_psk(self, x: bytes) -> bytes:
        """PSK of the generation this REKEY request creates, from the server's 32 bytes x (session.md §9)."""
        return rekeyed_psk(self._psk, self.th1, x)


def _parse_reply(padded: bytes) -> Reply:
    plain = unpad(padded)
    if len(plain) < 9:  # noqa: PLR2004 - status and now
        raise IntegrityError("reply is shorter than status and time")
    try:
        status = Status(plain[0])
    except ValueError:
        raise IntegrityError(f"reply has unknown status {plain[0]}") from None
    return Reply(status, int.from_bytes(plain[1:9], "big"), plain[9:])


def rekeyed_psk(psk: bytes, th1: bytes, x: bytes) -> bytes:
    """Return psk' = Extract(T("rekey", th1), psk ‖ x)[0:32] (session.md §9)."""
    return extract(t(b"rekey", th1), psk + x)[:PSK_LENGTH]


def build_reply(*, suite: int, prk2: bytes, th1: bytes, ephemeral: PublicKey, device: PublicKey, reply: Reply) -> bytes:
    """Build M2 (session.md §6), innermost layer first.

    Raises FormatError for a key that cannot be sealed to; ValueError for a body over 12,278 bytes.
    """
    plain = pad(bytes([reply.status]) + u64(reply.now) + reply.body)
    c_d = device.seal(t(b"d", th1), plain)
    c_e = ephemeral.seal(t(b"e", th1), c_d)
    return b"\x02" + lock(suite, prk2, th1, c_e)

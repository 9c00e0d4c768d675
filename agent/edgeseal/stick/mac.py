"""HMAC-SHA-256 (RFC 2104) for stick and host: MicroPython has no hmac module, and its hash objects cannot be copied.

The tag shows that a frame comes from the paired stick and belongs to this session's nonce. It protects nobody from
a person who opens the stick and reads its flash.
"""

import hashlib

KEY_LENGTH = 32  # K_stick, and every session key
NONCE_LENGTH = 32
TAG_LENGTH = 16
_BLOCK = 64  # of SHA-256
_DOMAIN = b"ESQ1"


class Hmac:
    """HMAC-SHA-256 under one key, its two padded keys made once. Never prints its key."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        """Prepare for `key` of 1 to 64 bytes; raises ValueError for any other length."""
        if not 0 < len(key) <= _BLOCK:
            raise ValueError(f"an HMAC key of 1 to {_BLOCK} bytes is needed, not of {len(key)}")
        padded = key + bytes(_BLOCK - len(key))
        self._inner = bytes(b ^ 0x36 for b in padded)
        self._outer = bytes(b ^ 0x5C for b in padded)

    def digest(self, message: bytes | bytearray | memoryview) -> bytes:
        """Return the 32-byte HMAC of `message`."""
        inner = hashlib.sha256(self._inner)
        inner.update(message)
        outer = hashlib.sha256(self._outer)
        outer.update(inner.digest())
        return outer.digest()

    def tag(self, message: bytes | bytearray | memoryview) -> bytes:
        """Return the first 16 bytes of the HMAC: the MAC field of a frame over its header and payload."""
        return self.digest(message)[:TAG_LENGTH]


def session_key(k_stick: bytes, nonce: bytes, boot_id: int, serial: str) -> bytes:
    """Return K = HMAC(K_stick, "ESQ1" || nonce || boot_id as u32 little endian || serial).

    `serial` is the USB serial string (ASCII). It stands last and the rest has fixed lengths: one reading only.
    Raises ValueError for a key or nonce that is not 32 bytes long.
    """
    for name, value, length in (("K_stick", k_stick, KEY_LENGTH), ("nonce", nonce, NONCE_LENGTH)):
        if len(value) != length:
            raise ValueError(f"{name} must have {length} bytes, not {len(value)}")
    return Hmac(k_stick).digest(_DOMAIN + nonce + boot_id.to_bytes(4, "little") + serial.encode())


def tag(key: bytes, header_and_payload: bytes | bytearray | memoryview) -> bytes:
    """Return the 16-byte tag of one frame under a session key; for many frames keep an Hmac."""
    return Hmac(key).tag(header_and_payload)


def equal(a: bytes, b: bytes) -> bool:
    """Compare two tags in a time that does not depend on where they differ."""
    if len(a) != len(b):
        return False
    difference = 0
    for x, y in zip(a, b):
        difference |= x ^ y
    return difference == 0

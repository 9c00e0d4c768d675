"""Secrets inside the database, sealed by a key that lies outside of it: a stolen database opens nothing.

What a value is and whose is authenticated with it: moved to another row it does not open. Nonces are random, which is
safe for 2^32 values (NIST SP 800-38D §8.3 has the same bound for the same nonce). Not here: which key (data_key.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgeseal.errors import IntegrityError
from edgeseal.suite import expand, transcript

if TYPE_CHECKING:
    from pathlib import Path

KEY_LENGTH: Final = 32
_NONCE_LENGTH: Final = 12
_ID_LENGTH: Final = 16
_VERSION: Final = b"edgeseal/fleet-at-rest"


class Vault:
    """Seals and opens column values."""

    def __init__(self, key: bytes) -> None:
        """Use a 32-byte data key."""
        self._aead = ChaCha20Poly1305(expand(key, _VERSION, KEY_LENGTH))
        self.key_id = expand(key, _VERSION + b" id", _ID_LENGTH).hex()  # tells nothing about the key

    @classmethod
    def load(cls, path: Path) -> Vault:
        """Read the data key.

        Raises IntegrityError, OSError.
        """
        key = path.read_bytes()
        if len(key) != KEY_LENGTH:
            raise IntegrityError(
                f"{path.name} is {len(key)} bytes, expected {KEY_LENGTH}", hint="restore it from backup"
            )
        return cls(key)

    def seal(self, purpose: bytes, owner: bytes, value: bytes) -> bytes:
        """Return nonce ‖ ciphertext; `purpose` and `owner` name the column and the row."""
        nonce = os.urandom(_NONCE_LENGTH)
        return nonce + self._aead.encrypt(nonce, value, transcript(_VERSION, purpose, owner))

    def open(self, purpose: bytes, owner: bytes, sealed: bytes) -> bytes:
        """Inverse of `seal`.

        Raises IntegrityError for another row's value, changed bytes, or the wrong data key.
        """
        try:
            place = transcript(_VERSION, purpose, owner)
            return self._aead.decrypt(sealed[:_NONCE_LENGTH], sealed[_NONCE_LENGTH:], place)
        except (InvalidTag, ValueError):
            raise IntegrityError(
                f"a {purpose.decode()} in the registry does not open with this data key",
                hint="database and secrets directory belong together: restore both from the same backup",
            ) from None

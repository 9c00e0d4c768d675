"""The two ML-DSA-44 keys that sign snapshot and timestamp without a person: PKCS#8 files of mode 0600."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgeseal.durable import write_atomic
from edgeseal.errors import IntegrityError
from edgeseal_host.repository.metadata import NAME_FIELD

if TYPE_CHECKING:
    from pathlib import Path

SCHEME: Final = "ml-dsa-44/1"


def create(path: Path, name: str) -> CryptoSigner:
    """Make a key pair and its file."""
    signer = CryptoSigner.generate_mldsa(scheme=SCHEME)
    write_atomic(path, signer.private_bytes, mode=0o600)
    return _named(signer, name)


def load(path: Path, name: str) -> CryptoSigner:
    """Read a key pair back; `name` is what people see in messages.

    Raises IntegrityError for a damaged file, OSError.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        public = SSlibKey.from_crypto(key.public_key(), scheme=SCHEME)
        return _named(CryptoSigner(key, public), name)
    except (ValueError, TypeError) as e:
        # Not the reason: it could quote the file.
        raise IntegrityError(
            f"signing key {path.name} is damaged ({type(e).__name__})", hint="restore it from the backup of the secrets"
        ) from None


def _named(signer: CryptoSigner, name: str) -> CryptoSigner:
    signer.public_key.unrecognized_fields[NAME_FIELD] = name
    return signer

"""A signature in metadata is what docs/spec/trust.md §1 says, verified without securesystemslib."""

from __future__ import annotations

import hashlib
import json

import pqcrypto.sign.ml_dsa_44
import pqcrypto.sign.ml_dsa_65
import pqcrypto.sign.ml_dsa_87
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import CryptoSigner

VERIFIERS = {
    "ml-dsa-44/1": pqcrypto.sign.ml_dsa_44.verify,
    "ml-dsa-65/1": pqcrypto.sign.ml_dsa_65.verify,
    "ml-dsa-87/1": pqcrypto.sign.ml_dsa_87.verify,
}


@pytest.mark.parametrize("scheme", VERIFIERS)
def test_signature_and_key_id_by_hand(scheme: str) -> None:
    signer = CryptoSigner.generate_mldsa(scheme=scheme)
    signed = b'{"_type":"timestamp"}'
    signature = bytes.fromhex(signer.sign(signed).signature)
    key = signer.public_key.to_dict()
    raw = load_pem_public_key(key["keyval"]["public"].encode()).public_bytes_raw()  # type: ignore[union-attr]
    VERIFIERS[scheme](raw, b"tuf\x01" + hashlib.sha512(signed).digest(), signature)
    with pytest.raises(ValueError, match="verification failed"):
        VERIFIERS[scheme](raw, signed, signature)
    # Canonical JSON escapes nothing but the backslash and the quote: a PEM keeps its line ends.
    fields = {name: key[name] for name in ("keytype", "keyval", "scheme")}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).replace("\\n", "\n")
    assert hashlib.sha256(text.encode()).hexdigest() == signer.public_key.keyid

"""ML-DSA, ML-KEM and HPKE against an independent implementation and known answers: the library is the one we think."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cryptography_vectors
import pqcrypto.kem.ml_kem_768
import pqcrypto.kem.ml_kem_1024
import pqcrypto.sign.ml_dsa_44
import pqcrypto.sign.ml_dsa_65
import pqcrypto.sign.ml_dsa_87
import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa, mlkem
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from edgeseal.errors import IntegrityError
from edgeseal.suite import SUITES, PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = Path(cryptography_vectors.__file__).parent
SIGNATURES: list[Any] = [
    pytest.param(mldsa.MLDSA44PrivateKey, mldsa.MLDSA44PublicKey, pqcrypto.sign.ml_dsa_44, "44", id="ml-dsa-44"),
    pytest.param(mldsa.MLDSA65PrivateKey, mldsa.MLDSA65PublicKey, pqcrypto.sign.ml_dsa_65, "65", id="ml-dsa-65"),
    pytest.param(mldsa.MLDSA87PrivateKey, mldsa.MLDSA87PublicKey, pqcrypto.sign.ml_dsa_87, "87", id="ml-dsa-87"),
]
KEMS: list[Any] = [
    pytest.param(mlkem.MLKEM768PrivateKey, mlkem.MLKEM768PublicKey, pqcrypto.kem.ml_kem_768, "768", id="ml-kem-768"),
    pytest.param(
        mlkem.MLKEM1024PrivateKey, mlkem.MLKEM1024PublicKey, pqcrypto.kem.ml_kem_1024, "1024", id="ml-kem-1024"
    ),
]


def known_answers(path: Path) -> Iterator[dict[str, bytes]]:
    """Records of a NIST response file."""
    record: dict[str, bytes] = {}
    for line in path.read_text().splitlines():
        name, sign, value = line.partition(" = ")
        if name == "count" and record:
            yield record
            record = {}
        if sign and name not in {"count", "mlen", "smlen"}:
            record[name] = bytes.fromhex(value)
    yield record


@pytest.mark.parametrize(("private", "public", "other", "number"), SIGNATURES)
def test_ml_dsa_both_ways(private: Any, public: Any, other: Any, number: str) -> None:
    del number
    ours = private.generate()
    signature = ours.sign(b"message")
    other.verify(ours.public_key().public_bytes_raw(), b"message", signature)
    with pytest.raises(ValueError, match="verification failed"):
        other.verify(ours.public_key().public_bytes_raw(), b"massage", signature)
    public_bytes, secret = other.keygen()
    public.from_public_bytes(public_bytes).verify(other.sign(secret, b"message"), b"message")


@pytest.mark.parametrize(("private", "public", "other", "number"), SIGNATURES)
def test_ml_dsa_known_answers(private: Any, public: Any, other: Any, number: str) -> None:
    del other
    records = list(known_answers(VECTORS / "asymmetric" / "MLDSA" / f"kat_MLDSA_{number}_det_pure.rsp"))
    assert len(records) >= 10
    for record in records[:25]:
        key = private.from_seed_bytes(record["xi"])
        assert key.public_key().public_bytes_raw() == record["pk"]
        signature = record["sm"][: len(record["sm"]) - len(record["msg"])]
        public.from_public_bytes(record["pk"]).verify(signature, record["msg"], record["ctx"])


@pytest.mark.parametrize(("private", "public", "other", "number"), KEMS)
def test_ml_kem_both_ways(private: Any, public: Any, other: Any, number: str) -> None:
    del number
    ours = private.generate()
    ciphertext, secret = other.encaps(ours.public_key().public_bytes_raw())
    assert ours.decapsulate(ciphertext) == secret
    public_bytes, private_bytes = other.keygen()
    secret, ciphertext = public.from_public_bytes(public_bytes).encapsulate()
    assert other.decaps(private_bytes, ciphertext) == secret


@pytest.mark.parametrize(("private", "public", "other", "number"), KEMS)
def test_ml_kem_known_answers(private: Any, public: Any, other: Any, number: str) -> None:
    del public, other
    records = list(known_answers(VECTORS / "asymmetric" / "MLKEM" / f"kat_MLKEM_{number}.rsp"))
    assert len(records) >= 10
    for record in records[:25]:
        key = private.from_seed_bytes(record["d"] + record["z"])
        assert key.public_key().public_bytes_raw() == record["pk"]
        assert key.decapsulate(record["ct"]) == record["ss"]


# A second HPKE receiver, from RFC 9180 §5.1 and draft-connolly-cfrg-xwing-kem §5, out of component primitives.


def shared_secret(kem: int, seed: bytes, enc: bytes) -> bytes:
    """Decapsulate."""
    if kem == 0x42:
        return mlkem.MLKEM1024PrivateKey.from_seed_bytes(seed).decapsulate(enc)
    expanded = hashlib.shake_256(seed).digest(96)
    x = X25519PrivateKey.from_private_bytes(expanded[64:])
    ss_m = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).decapsulate(enc[:1088])
    ss_x = x.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    pk_x = x.public_key().public_bytes_raw()
    return hashlib.sha3_256(
        ss_m + ss_x + enc[1088:] + pk_x + bytes.fromhex("5c2e2f2f5e5c")
    ).digest()  # the draft's label, a drawing of an X-wing


def key_schedule(ids: tuple[int, int, int], hash_: str, secret: bytes, info: bytes, length: int) -> tuple[bytes, bytes]:
    """Key and nonce of the first message in base mode."""
    suite_id = b"HPKE" + b"".join(i.to_bytes(2, "big") for i in ids)

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite_id + label + ikm, hash_)

    def expand(prk: bytes, label: bytes, context: bytes, n: int) -> bytes:
        message = n.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + context
        return hmac.digest(prk, message + b"\x01", hash_)[:n]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    prk = extract(secret, b"secret", b"")
    return expand(prk, b"key", context, length), expand(prk, b"base_nonce", context, 12)


def test_second_hpke_receiver_against_the_drafts_vectors() -> None:
    """The vectors' messages carry additional data, which X1 does not use: so keys are compared, not messages."""
    tried = set()
    for vector in json.loads((VECTORS / "HPKE" / "hpke-pq-test-vectors.json").read_text()):
        kem, kdf, aead = vector["kem_id"], vector["kdf_id"], vector["aead_id"]
        if kem not in {0x42, 0x647A} or kdf not in {1, 2}:
            continue
        seed, enc = bytes.fromhex(vector["skRm"]), bytes.fromhex(vector["enc"])
        assert PrivateKey(2 if kem == 0x42 else 1, seed).public.raw.hex() == vector["pkRm"]
        secret = shared_secret(kem, seed, enc)
        assert secret.hex() == vector["shared_secret"]
        hash_, info = {1: "sha256", 2: "sha384"}[kdf], bytes.fromhex(vector["info"])
        key, nonce = key_schedule((kem, kdf, aead), hash_, secret, info, len(vector["key"]) // 2)
        assert (key.hex(), nonce.hex()) == (vector["key"], vector["base_nonce"])
        tried.add(kem)
    assert tried == {0x42, 0x647A}


@pytest.mark.parametrize(
    ("number", "ids", "cipher"), [(1, (0x647A, 2, 3), ChaCha20Poly1305), (2, (0x42, 2, 2), AESGCM)], ids=["1", "2"]
)
def test_second_hpke_receiver_opens_what_we_seal(number: int, ids: tuple[int, int, int], cipher: Any) -> None:
    seed = bytes(range(SUITES[number].seed_length))
    sealed = PrivateKey(number, seed).public.seal(b"info", b"message")
    enc, ciphertext = sealed[: SUITES[number].enc_length], sealed[SUITES[number].enc_length :]
    key, nonce = key_schedule(ids, "sha384", shared_secret(ids[0], seed, enc), b"info", 32)
    assert cipher(key).decrypt(nonce, ciphertext, b"") == b"message"


@pytest.mark.parametrize("number", SUITES)
def test_hpke_low_order_and_garbage_are_one_refusal(number: int) -> None:
    key = PrivateKey(number, bytes(SUITES[number].seed_length))
    sealed = key.public.seal(b"info", b"message")
    assert key.open(b"info", sealed) == b"message"
    for spoilt in (sealed[:-1], b"", bytes(len(sealed)), sealed[:1] + bytes([sealed[1] ^ 1]) + sealed[2:]):
        with pytest.raises(IntegrityError, match="does not open with this key"):
            key.open(b"info", spoilt)
    with pytest.raises(IntegrityError):
        key.open(b"other", sealed)

"""PKCS#8 under a passphrase with scrypt: PBES2 (RFC 8018 §6.2) with the scrypt parameters of RFC 7914 §7.

`cryptography` reads this form but writes PBKDF2 with 2,048 rounds only, which a graphics card tries by the million. So
the container is written here, and read by the library (and by openssl).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import textwrap
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

# 16 MiB: openssl refuses a container that asks for more than 32 MiB. `_P` makes up for it in time (about 0.3 s).
_N, _R, _P, _KEY_LENGTH = 2**14, 8, 8, 32
_AES_BLOCK: Final = 16
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")
_AES256_CBC: Final = bytes.fromhex("060960864801650304012a")


def to_pem(key: PrivateKeyTypes, passphrase: bytes | None) -> bytes:
    """Return the key as PKCS#8 in PEM, in clear if `passphrase` is None."""
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    der = _encrypted(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase)
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode()


def _encrypted(plain: bytes, passphrase: bytes) -> bytes:
    """EncryptedPrivateKeyInfo (RFC 5958 §3)."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(_AES_BLOCK)
    key = hashlib.scrypt(passphrase, salt=salt, n=_N, r=_R, p=_P, dklen=_KEY_LENGTH, maxmem=64 * 2**20)
    padder = PKCS7(algorithms.AES.block_size).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    data = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    kdf = _seq(_SCRYPT, _seq(_octets(salt), _int(_N), _int(_R), _int(_P), _int(_KEY_LENGTH)))
    scheme = _seq(_AES256_CBC, _octets(iv))
    return _seq(_seq(_PBES2, _seq(kdf, scheme)), _octets(data))


def _seq(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _octets(data: bytes) -> bytes:
    return _der(0x04, data)


def _int(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, content: bytes) -> bytes:
    """One DER element (X.690 §8.1)."""
    length = len(content)
    if length < 0x80:  # noqa: PLR2004 - X.690 §8.1.3.4, the short form
        return bytes([tag, length]) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content

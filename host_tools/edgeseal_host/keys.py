"""A directory of signing keys and family secrets, each named after whose it is.

    <name>.key        PKCS#8, seed form (RFC 9881), under a passphrase or not; mode 0600
    <name>.pub.json   what may be shown: a TUF key with its name, or for a family secret only the name

A family secret is 32 random bytes from which chunk keys are derived. Ed25519's PKCS#8 container (RFC 8410 §7) holds
exactly that, so one file format and one passphrase scheme serve both. Nothing is ever overwritten.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.exceptions import FormatError as CanonicalError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgeseal.durable import fsync_directory
from edgeseal.errors import FormatError, NotAuthorisedError, UsageError
from edgeseal_host.pkcs8 import to_pem
from edgeseal_host.repository.metadata import NAME_FIELD, key_id

if TYPE_CHECKING:
    from pathlib import Path

FAMILY: Final = "family"
KINDS: Final = ("ml-dsa-65", "ml-dsa-44", FAMILY)
MAX_FILE: Final = 65_536
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,63}")
_SCHEMES: Final = {"ml-dsa-65": "ml-dsa-65/1", "ml-dsa-44": "ml-dsa-44/1"}


@dataclass(frozen=True, slots=True)
class Entry:
    """What may be shown of a key: `keyid` is None for a family secret."""

    name: str
    kind: str
    keyid: str | None
    encrypted: bool


class KeyDirectory:
    """The keys in one directory."""

    def __init__(self, path: Path) -> None:
        """Take the directory, which need not exist before the first key."""
        self.path = path

    def new(self, name: str, kind: str, passphrase: bytes | None) -> Entry:
        """Make a key.

        Raises UsageError for an unusable name or one that is taken.
        """
        _check_name(name)
        for file in (f"{name}.key", f"{name}.pub.json"):  # before either is written: never halves of two keys
            if (self.path / file).exists():
                raise self._taken(file)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        private: MLDSA65PrivateKey | MLDSA44PrivateKey | Ed25519PrivateKey
        if kind == FAMILY:
            private, public = Ed25519PrivateKey.generate(), {"kind": FAMILY, "name": name}
        else:
            private = MLDSA65PrivateKey.generate() if kind == "ml-dsa-65" else MLDSA44PrivateKey.generate()
            key = SSlibKey.from_crypto(private.public_key(), scheme=_SCHEMES[kind])
            public = {"kind": kind, "name": name, "keyid": key.keyid, **key.to_dict(), NAME_FIELD: name}
        self._write(f"{name}.key", to_pem(private, passphrase), 0o600)
        self._write(f"{name}.pub.json", json.dumps(public, indent=2).encode() + b"\n", 0o644)
        fsync_directory(self.path)
        return self.show(name)

    def list(self) -> list[Entry]:
        """Return every key, by name."""
        return [self.show(p.name.removesuffix(".pub.json")) for p in sorted(self.path.glob("*.pub.json"))]

    def show(self, name: str) -> Entry:
        """Return what may be shown of one key.

        Raises UsageError if there is no such key.
        """
        public = self._public(name)
        encrypted = b"ENCRYPTED" in self._read(f"{name}.key")[:64] if (self.path / f"{name}.key").exists() else False
        keyid = None if public["kind"] == FAMILY else self.public(name).keyid
        return Entry(name, str(public["kind"]), keyid, encrypted)

    def public(self, name: str) -> Key:
        """Return the public half of a signing key as TUF has it, with its owner's name.

        Raises UsageError if there is no such key or it is a family secret.
        """
        fields = self._public(name)
        if fields["kind"] == FAMILY:
            raise UsageError(
                f"{name} is a family secret; it signs nothing", hint="edgeseal key new NAME makes a signing key"
            )
        fields.pop("name", None)
        scheme, keyid = _SCHEMES[fields.pop("kind")], fields.pop("keyid")
        try:
            key = Key.from_dict(keyid, fields)
            own = key_id(key)
        except (KeyError, TypeError, ValueError, CanonicalError) as e:
            raise FormatError(f"{name}.pub.json does not hold a TUF key: {e}") from e
        if own != keyid or key.scheme != scheme:  # one key under two ids would count twice
            raise FormatError(
                f"{name}.pub.json holds a {key.scheme} key with id {own[:12]}…, but calls it {scheme}, {keyid[:12]}…",
                hint="somebody has changed the file: get it again from the key's owner",
            )
        return key

    def signer(self, name: str, passphrase: bytes | None) -> CryptoSigner:
        """Return a signer.

        Raises UsageError if there is no such signing key, NotAuthorisedError for a missing or wrong passphrase.
        """
        public = self.public(name)
        private = self._private(name, passphrase)
        if not isinstance(public, SSlibKey) or not isinstance(private, MLDSA65PrivateKey | MLDSA44PrivateKey):
            raise UsageError(f"{name} is not an ML-DSA signing key")
        own = SSlibKey.from_crypto(private.public_key(), scheme=public.scheme)
        if own.keyval != public.keyval:
            raise FormatError(f"{name}.key and {name}.pub.json are not halves of one key", hint="restore them together")
        return CryptoSigner(private, public)

    def public_mldsa65(self, name: str) -> bytes:
        """Return the public half of an ML-DSA-65 key as FIPS 204 encodes it, 1,952 bytes.

        Raises UsageError for a key of another kind.
        """
        public = self.public(name)
        loaded = load_pem_public_key(str(public.keyval["public"]).encode())
        if not isinstance(loaded, MLDSA65PublicKey):
            raise UsageError(f"{name} is a {public.scheme} key; ml-dsa-65 is needed")
        return loaded.public_bytes_raw()

    def mldsa65(self, name: str, passphrase: bytes | None) -> MLDSA65PrivateKey:
        """Return an ML-DSA-65 key itself, for signatures under a context of their own (FIPS 204 §5.2).

        Raises UsageError for a key of another kind, NotAuthorisedError for a missing or wrong passphrase.
        """
        public = self.public_mldsa65(name)
        private = self._private(name, passphrase)
        if not isinstance(private, MLDSA65PrivateKey) or private.public_key().public_bytes_raw() != public:
            raise FormatError(f"{name}.key and {name}.pub.json are not halves of one key", hint="restore them together")
        return private

    def family(self, name: str, passphrase: bytes | None) -> bytes:
        """Return a family secret, 32 bytes.

        Raises UsageError if there is no such family, NotAuthorisedError for a missing or wrong passphrase.
        """
        if self._public(name)["kind"] != FAMILY:
            raise UsageError(
                f"{name} is a signing key, not a family secret", hint="edgeseal key new NAME --kind family"
            )
        private = self._private(name, passphrase)
        if not isinstance(private, Ed25519PrivateKey):
            raise FormatError(f"{name}.key does not hold a family secret")
        return private.private_bytes_raw()

    def needs_passphrase(self, name: str) -> bool:
        """Whether a key's file is under a passphrase."""
        return self.show(name).encrypted

    def _private(self, name: str, passphrase: bytes | None) -> object:
        data = self._read(f"{name}.key")
        encrypted = b"ENCRYPTED" in data[:64]
        try:
            return load_pem_private_key(data, passphrase if encrypted else None)
        except TypeError:
            raise NotAuthorisedError(
                f"{name} is under a passphrase", hint="give --passphrase-file, or run on a terminal"
            ) from None
        except UnsupportedAlgorithm:
            raise FormatError(f"{name}.key is damaged, or of another program") from None
        except ValueError:
            if encrypted:  # a wrong passphrase and damage look alike
                raise NotAuthorisedError(
                    f"{name} does not open with this passphrase", hint=f"or {name}.key is damaged: then restore it"
                ) from None
            raise FormatError(f"{name}.key is damaged: it holds no private key", hint="restore it") from None

    def _public(self, name: str) -> dict[str, Any]:
        _check_name(name)
        try:
            fields = json.loads(self._read(f"{name}.pub.json"))
        except ValueError as e:
            raise FormatError(f"{name}.pub.json is not JSON: {e}") from e
        if not isinstance(fields, dict) or fields.get("kind") not in KINDS:
            raise FormatError(f"{name}.pub.json is not a key of this version")
        if fields["kind"] != FAMILY and not isinstance(fields.get("keyid"), str):
            raise FormatError(f"{name}.pub.json does not hold a TUF key: it has no `keyid`")
        return fields

    def _read(self, file: str) -> bytes:
        try:
            with (self.path / file).open("rb") as f:
                return f.read(MAX_FILE)
        except FileNotFoundError:
            have = ", ".join(p.name.removesuffix(".pub.json") for p in sorted(self.path.glob("*.pub.json")))
            raise UsageError(f"there is no {file} in {self.path}", hint=f"keys there: {have or 'none'}") from None

    def _write(self, file: str, data: bytes, mode: int) -> None:
        """Create a file; a key that is there is never replaced."""
        try:
            fd = os.open(self.path / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise self._taken(file) from None
        with open(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

    def _taken(self, file: str) -> UsageError:
        return UsageError(
            f"{self.path / file} is there already", hint="keys are never overwritten; choose another name"
        )


def _check_name(name: str) -> None:
    """Raise UsageError for a name that is none, or leads out of the directory."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a key's name", hint="1 to 64 of letters, digits and @ . _ -")

"""A bundle directory: where a workstation keeps one built release until it is published.

    manifest.cbor                the manifest; written last, so a directory that has it is complete
    content.key                  CK sealed under the family secret: the directory alone reveals nothing
    tables/<2 hex>/<64 hex>      the sealed table
    chunks/<2 hex>/<64 hex>      the chunks

Not here: making a bundle (edgeseal_host.build) and checking one (edgeseal_host.audit).
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgeseal.contentkey import CK_LENGTH, check_commitment
from edgeseal.durable import TEMPORARY_PREFIX, write_atomic
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, IntegrityError, UsageError
from edgeseal.manifest import MAX_MANIFEST_LENGTH, MAX_TABLE_LENGTH, Manifest
from edgeseal.suite import KEY_LENGTH, SUITES, TAG_LENGTH, aead_decrypt, aead_encrypt
from edgeseal.table import Table, open_pinned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Kind: TypeAlias = Literal["tables", "chunks"]

MANIFEST: Final = "manifest.cbor"
CONTENT_KEY: Final = "content.key"
_MAGIC: Final = b"ESCK"
_FORMAT: Final = 1
_SALT_LENGTH: Final = 32
_HEADER_LENGTH: Final = len(_MAGIC) + 2 + _SALT_LENGTH
_LENGTH: Final = _HEADER_LENGTH + CK_LENGTH + TAG_LENGTH
_LABEL: Final = b"edgeseal/content-key/v1"


class BundleDirectory:
    """Reads and writes the files of one bundle directory; believes none of them without a hash or tag."""

    def __init__(self, root: Path) -> None:
        """`root` need not exist before something is written."""
        self.root = root

    def object_path(self, kind: Kind, sha256: bytes) -> Path:
        """Return where an object lies; the same path a web server gives it."""
        name = sha256.hex()
        return self.root / kind / name[:2] / name

    def put(self, kind: Kind, sha256: bytes, data: bytes) -> Path:
        """Store an object unless it is there whole; durable only after the caller has flushed file and directory."""
        path = self.object_path(kind, sha256)
        if path.is_file() and path.read_bytes() == data:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Equal pieces meet in two threads at once: each has its own temporary file, the last rename wins.
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{threading.get_ident():x}-{path.name}")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return path

    def objects(self, kind: Kind) -> Iterator[Path]:
        """Yield the files below tables/ or chunks/."""
        yield from sorted(path for path in (self.root / kind).glob("*/*") if path.is_file())

    def has_manifest(self) -> bool:
        """Whether a build has been completed here."""
        return (self.root / MANIFEST).exists()

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises UsageError if this is no complete bundle, else what `Manifest.from_bytes` raises.
        """
        try:
            return Manifest.from_bytes(read_bounded(self.root / MANIFEST, MAX_MANIFEST_LENGTH))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{self.root} holds no complete bundle: there is no {MANIFEST}",
                hint="give the directory that `edgeseal bundle build --out` wrote; run an interrupted build again",
            ) from None

    def table_bytes(self, manifest: Manifest) -> bytes:
        """Read the sealed table as it is; `open_pinned` checks it."""
        path = self.object_path("tables", manifest.table_sha256)
        try:
            return read_bounded(path, MAX_TABLE_LENGTH)
        except FileNotFoundError:
            raise IntegrityError(f"the table that the manifest names is missing: {path}") from None

    def table(self, manifest: Manifest, ck: bytes) -> Table:
        """Open the table.

        Raises IntegrityError unless key and table are those the manifest commits to.
        """
        check_commitment(ck, manifest.ck_commitment, manifest.model, manifest.release)
        return open_pinned(self.table_bytes(manifest), manifest, ck=ck)

    def content_key(self, manifest: Manifest, fs: bytes) -> bytes:
        """Return CK.

        Raises IntegrityError for another family secret, or if it is not the key the manifest commits to; UsageError
        if it is not there.
        """
        try:
            sealed = read_bounded(self.root / CONTENT_KEY, _LENGTH)
        except FileNotFoundError:
            raise UsageError(
                f"{self.root} holds no {CONTENT_KEY}: its table cannot be opened",
                hint="copy the whole directory that `edgeseal bundle build --out` wrote, or build the next release",
            ) from None
        ck = open_content_key(sealed, fs=fs, model=manifest.model, release=manifest.release)
        check_commitment(ck, manifest.ck_commitment, manifest.model, manifest.release)
        return ck

    def write_content_key(self, ck: bytes, *, fs: bytes, suite: int, model: str, release: int) -> None:
        """Seal CK and write it durably, readable by its owner only."""
        sealed = seal_content_key(ck, fs=fs, suite=suite, model=model, release=release)
        write_atomic(self.root / CONTENT_KEY, sealed)


def bundle_content_key(directory: Path, fs: bytes) -> bytes:
    """Return the content key of the bundle in `directory`, opened with the family secret."""
    bundle = BundleDirectory(directory)
    return bundle.content_key(bundle.manifest(), fs)


def seal_content_key(ck: bytes, *, fs: bytes, suite: int, model: str, release: int) -> bytes:
    """Return "ESCK" ‖ u8 format ‖ u8 suite ‖ salt ‖ AEAD(key(FS, salt, model, release), aad = all before, CK)."""
    salt = secrets.token_bytes(_SALT_LENGTH)
    header = _MAGIC + bytes([_FORMAT, suite]) + salt
    return header + aead_encrypt(suite, _key(fs, salt, model, release), header, ck)


def open_content_key(sealed: bytes, *, fs: bytes, model: str, release: int) -> bytes:
    """Inverse of `seal_content_key`.

    Raises FormatError, IncompatibleError, or IntegrityError for another family secret, model or release.
    """
    if len(sealed) != _LENGTH or sealed[:4] != _MAGIC:
        raise FormatError(f"{CONTENT_KEY}: {len(sealed)} bytes that are no sealed content key")
    number, suite = sealed[4], sealed[5]
    if number != _FORMAT or suite not in SUITES:
        raise IncompatibleError(f"{CONTENT_KEY}: format {number}, suite {suite} are unknown to this version")
    header = sealed[:_HEADER_LENGTH]
    try:
        return aead_decrypt(suite, _key(fs, header[6:], model, release), header, sealed[_HEADER_LENGTH:])
    except IntegrityError:
        raise IntegrityError(
            f"the content key of {model} release {release} does not open with this family secret",
            hint="use the family secret the bundle was built with",
        ) from None


def _key(fs: bytes, salt: bytes, model: str, release: int) -> bytes:
    return HKDF(SHA256(), KEY_LENGTH, salt, _LABEL + model.encode() + release.to_bytes(8, "big")).derive(fs)


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises FormatError for a longer one, before it is read.
    """
    with open(path, "rb") as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{path} is longer than the {limit} bytes allowed")
    return data


def fsync_file(path: Path) -> None:
    """Flush one file to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:
        raise EdgesealError(f"could not flush {path}: {e.strerror}") from e
    finally:
        os.close(fd)

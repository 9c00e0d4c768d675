"""Checking a bundle directory before it is published: everything a device will check, without writing anything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeseal.chunks import ChunkDecoder, check_stored
from edgeseal.errors import IntegrityError
from edgeseal.manifest import CHUNK_MAX
from edgeseal_host import accept
from edgeseal_host.bundle import BundleDirectory, read_bounded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.manifest import Manifest
    from edgeseal.table import FileEntry, Table


@dataclass(frozen=True, slots=True)
class Audit:
    """What was checked: counts and bytes."""

    manifest: Manifest
    files: int
    chunks: int
    plain_size: int


def audit(directory: Path, family_secret: bytes, *, progress: Callable[[int], None] = lambda _: None) -> Audit:
    """Open the table and every chunk, and put every file together again in memory, piece by piece.

    Raises UsageError if this is no complete bundle, IntegrityError or FormatError naming what is wrong.
    """
    bundle = BundleDirectory(directory)
    manifest = bundle.manifest()
    table = bundle.table(manifest, bundle.content_key(manifest, family_secret))
    _check_sums(manifest, table)
    decoder, plain = ChunkDecoder(manifest.suite), memoryview(bytearray(CHUNK_MAX))
    for entry in table.files:
        _check_file(bundle, table, entry, decoder, plain, progress)
    return Audit(manifest, len(table.files), len(table.chunks()), table.plain_size)


def _check_sums(manifest: Manifest, table: Table) -> None:
    stored = sum(table.chunks().values())
    if (table.plain_size, stored) != (manifest.plain_size, manifest.stored_size):
        raise IntegrityError(
            f"the manifest says {manifest.plain_size} and {manifest.stored_size} bytes, "
            f"its table {table.plain_size} and {stored}"
        )


def _check_file(
    bundle: BundleDirectory,
    table: Table,
    entry: FileEntry,
    decoder: ChunkDecoder,
    plain: memoryview,
    progress: Callable[[int], None],
) -> None:
    digest = hashlib.sha256()
    for record in table.pieces(entry):
        path = bundle.object_path("chunks", record.stored_sha256)
        try:
            stored = read_bounded(path, record.stored_length)
        except FileNotFoundError:
            raise IntegrityError(f"chunk {record.stored_sha256.hex()} of {entry.path} is missing: {path}") from None
        check_stored(record, stored)
        length = decoder.decode_into(record, stored, plain)
        digest.update(plain[:length])
        progress(length)
    if digest.digest() != entry.sha256:
        raise IntegrityError(f"{entry.path} does not come together to the file that was built")


def chunk_files(bundle: BundleDirectory, table: Table) -> dict[bytes, Path]:
    """Return where every chunk of the table lies.

    Raises IntegrityError for one that is missing or cut short: nothing of such a bundle may be published.
    """
    places = {name: bundle.object_path("chunks", name) for name in table.chunks()}
    for name, length in table.chunks().items():
        path = places[name]
        if not path.is_file() or path.stat().st_size != length:
            raise IntegrityError(
                f"chunk {name.hex()} of {length} bytes is missing or has another length: {path}",
                hint="edgeseal bundle verify checks all of it; build the bundle again into an empty directory",
            )
    return places


def describe(directory: Path, family_secret: bytes | None) -> dict[str, object]:
    """Return what `bundle inspect` shows: all that is public, and with the family secret the files. Never a key."""
    bundle = BundleDirectory(directory)
    manifest = bundle.manifest()
    about: dict[str, object] = {
        "model": manifest.model,
        "release": manifest.release,
        "suite": manifest.suite,
        "plain_size": manifest.plain_size,
        "stored_size": manifest.stored_size,
        "table": {"sha256": manifest.table_sha256.hex(), "length": manifest.table_length},
        "requirements": manifest.requirements,
        "provenance": manifest.provenance,
        "hints": [h.hex() for h in manifest.hints],
        "chunks": sum(1 for _ in bundle.objects("chunks")),
    }
    if family_secret is not None:
        table = bundle.table(manifest, bundle.content_key(manifest, family_secret))
        about["files"] = [{"path": f.path, "size": f.size, "sha256": f.sha256.hex()} for f in table.files]
        about["codecs"] = _codecs(table)
        about["acceptance"] = accept.describe(table.tests)
    return about


def _codecs(table: Table) -> dict[str, int]:
    names = ("raw", "zstd", "byte-group + zstd", "residual")
    counts: dict[str, int] = {}
    for record in table.records:
        counts[names[record.codec]] = counts.get(names[record.codec], 0) + 1
    return counts

"""Makes tests/vectors/bundle/*.cbor: one release per file, small, from fixed inputs, with its expected outcome.

    python tests/vectors/make_bundle.py DIRECTORY

Each file is deterministic CBOR {"case", "expect": "ok" | "refused", "ck", "manifest", "table", "chunks": [bytes, …],
"files": {path: bytes}}. Broken cases are named after their fault; everything around the fault is consistent (hashes,
lengths, commitments), so that a reader meets the fault itself. Compressed frames come from the installed zstd: a new
version may make other bytes, never other outcomes.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2

from edgeseal import cbor
from edgeseal.chunks import chunk_key, encode_piece
from edgeseal.contentkey import commitment
from edgeseal.manifest import Manifest
from edgeseal.suite import aead_encrypt
from edgeseal.table import FileEntry, Record, Table, table_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FS, CK, SALT = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
MODEL, RELEASE = "bearing", 7
FLOATS = b"".join(struct.pack("<f", 1.0 + i / 1000) for i in range(1500)) + b"xyz"
NOISE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(40))
TEXT = b"healthy inner outer ball " * 30


def pieces(suite: int) -> tuple[list[FileEntry], list[Record], list[bytes]]:
    """Two files: raw and grouped pieces in one, plain zstd in the other."""
    made = [
        encode_piece(piece, fs=FS, suite=suite, width=width) for piece, width in ((NOISE, 1), (FLOATS, 4), (TEXT, 1))
    ]
    records = [r for r, _ in made]
    model = NOISE + FLOATS
    files = [
        FileEntry("labels/names.txt", len(TEXT), 0o644, hashlib.sha256(TEXT).digest(), 0, 1),
        FileEntry("model.onnx", len(model), 0o644, hashlib.sha256(model).digest(), 1, 2),
    ]
    return files, [records[2], records[0], records[1]], [made[2][1], made[0][1], made[1][1]]


def seal(plain: bytes, suite: int, *, header: Callable[[bytes], bytes] = lambda h: h) -> bytes:
    """Seal a plaintext that may be wrong, under a header that may be wrong."""
    made = header(struct.pack(">4sBBHQ32s", b"ESTB", 1, suite, 0, len(plain), SALT))
    return made + aead_encrypt(suite, table_key(CK, SALT, MODEL, RELEASE), made, plain)


def case(name: str, expect: str, suite: int, table: bytes, chunks: list[bytes], **changes: bytes) -> tuple[str, bytes]:
    """Return file name and content of one case."""
    manifest = Manifest(
        model=MODEL,
        release=RELEASE,
        suite=suite,
        ck_commitment=commitment(CK, MODEL, RELEASE),
        table_sha256=hashlib.sha256(table).digest(),
        table_length=len(table),
        plain_size=len(NOISE + FLOATS + TEXT),
        stored_size=sum(map(len, chunks)),
        requirements={"format": "onnx"},
        provenance={"source": "made by make_bundle.py"},
    )
    data = changes.pop("manifest", None) or manifest.to_bytes()
    files = {"labels/names.txt": TEXT, "model.onnx": NOISE + FLOATS} if expect == "ok" else {}
    content = {"case": name, "expect": expect, "ck": changes.pop("ck", CK), "manifest": data, "table": table}
    return f"{name}.cbor", cbor.encode({**content, "chunks": chunks, "files": files})


def good(suite: int) -> tuple[str, bytes]:
    files, records, chunks = pieces(suite)
    return case(
        f"ok-suite-{suite}", "ok", suite, seal(Table(tuple(files), None, records).to_plaintext(), suite), chunks
    )


def broken_records() -> Iterator[tuple[str, bytes]]:
    """One record, or its file, is wrong."""
    files, records, chunks = pieces(1)
    first = records[1]
    changes: dict[str, Record | None] = {
        "record-codec-4": replace(first, codec=4),
        "record-width-3": replace(first, width=3),
        "record-plain-length-zero": replace(first, plain_length=0),
        "record-plain-length-too-large": replace(first, plain_length=2**20 + 1, stored_length=2**20 + 17),
        "record-stored-length-short": replace(first, stored_length=first.stored_length - 1),
        "record-wrong-piece-hash": replace(first, plain_sha256=bytes(32)),
        "record-wrong-key": replace(first, key=bytes(32)),
        "record-residual-without-alternate-flag": replace(first, codec=3),
    }
    for name, record in changes.items():
        assert record is not None
        plain = Table(tuple(files), None, [records[0], record, records[2]]).to_plaintext()
        yield case(name, "refused", 1, seal(plain, 1), chunks)


def broken_files() -> Iterator[tuple[str, bytes]]:
    """The index says something a device must not do."""
    files, records, chunks = pieces(1)
    for name, path in (
        ("path-absolute", "/etc/passwd"),
        ("path-dot-dot", "../model.onnx"),
        ("path-dot", "./model.onnx"),
        ("path-empty-part", "a//b"),
        ("path-backslash", "a\\b"),
        ("path-control-character", "a\nb"),
        ("path-part-too-long", "a" * 256),
        ("path-twice", "labels/names.txt"),
        ("path-below-a-file", "labels/names.txt/x"),
    ):
        wrong = [files[0], _renamed(files[1], path)]
        yield case(name, "refused", 1, seal(_plain(wrong, records), 1), chunks)
    one = list(_fields(files[1]))
    for name, position, value in (
        ("file-size-too-large", 1, one[1] + 1),
        ("file-setuid", 2, 0o4755),
        ("file-records-overlap", 4, 0),
        ("file-records-missing", 5, 3),
        ("file-records-gap", 5, 1),
    ):
        wrong_fields = [*one]
        wrong_fields[position] = value
        yield case(name, "refused", 1, seal(_plain_raw([list(_fields(files[0])), wrong_fields], records), 1), chunks)


def broken_around() -> Iterator[tuple[str, bytes]]:
    """Header, key, manifest, chunks and encoding."""
    files, records, chunks = pieces(1)
    plain = Table(tuple(files), None, records).to_plaintext()
    table = seal(plain, 1)
    yield case("wrong-content-key", "refused", 1, table, chunks, ck=bytes(32))
    yield case("header-magic", "refused", 1, seal(plain, 1, header=lambda h: b"ESTX" + h[4:]), chunks)
    yield case("header-flags", "refused", 1, seal(plain, 1, header=lambda h: h[:6] + b"\0\1" + h[8:]), chunks)
    yield case("header-suite", "refused", 1, seal(plain, 1, header=lambda h: h[:5] + b"\2" + h[6:]), chunks)
    yield case(
        "header-length", "refused", 1, seal(plain, 1, header=lambda h: h[:15] + bytes([h[15] ^ 1]) + h[16:]), chunks
    )
    yield case("table-trailing-bytes", "refused", 1, seal(plain + b"\0", 1), chunks)
    yield case("index-longer-than-table", "refused", 1, seal(b"\xff\xff\xff\xff" + plain[4:], 1), chunks)
    yield case("chunk-missing", "refused", 1, table, chunks[1:])
    yield case("chunk-flipped", "refused", 1, table, [chunks[0][:-1] + bytes([chunks[0][-1] ^ 1]), *chunks[1:]])
    yield case("manifest-trailing-byte", "refused", 1, table, chunks, manifest=_manifest(table, chunks) + b"\0")
    unsorted = cbor2.dumps(dict(reversed(list(cbor2.loads(_manifest(table, chunks)).items()))))
    yield case("manifest-unsorted", "refused", 1, table, chunks, manifest=unsorted)
    for name, key, value in (
        ("manifest-format-2", 0, 2),
        ("manifest-release-zero", 2, 0),
        ("manifest-suite-3", 3, 3),
        ("manifest-name-upper-case", 1, "Bearing"),
        ("manifest-name-of-a-role", 1, "root"),
        ("manifest-other-table", 5, {0: bytes(32), 1: len(table)}),
    ):
        yield case(name, "refused", 1, table, chunks, manifest=_manifest(table, chunks, {key: value}))


def broken_frames() -> Iterator[tuple[str, bytes]]:
    """Frames that the record's codec does not allow; keys and hashes are right."""
    import zstandard

    files, records, chunks = pieces(1)
    compress = zstandard.ZstdCompressor(level=1, write_content_size=True).compress
    bomb = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj().compress(TEXT)
    for name, frame in (
        ("frame-declares-more", compress(TEXT + b"x")),
        ("frame-declares-less", compress(TEXT[:-1])),
        ("frame-declares-nothing", bomb + zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)),
        ("frame-trailing-bytes", compress(TEXT) + b"\0"),
        ("frame-skippable-first", b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compress(TEXT)),
        ("frame-not-zstd", b"\0" * 60),
    ):
        key = chunk_key(FS, 1, frame)
        chunk = aead_encrypt(1, key, None, frame)
        record = replace(records[0], stored_sha256=hashlib.sha256(chunk).digest(), key=key, stored_length=len(chunk))
        plain = Table(tuple(files), None, [record, *records[1:]]).to_plaintext()
        yield case(name, "refused", 1, seal(plain, 1), [chunk, *chunks[1:]])


def _manifest(table: bytes, chunks: list[bytes], changes: dict[int, Any] | None = None) -> bytes:
    value = cbor2.loads(cbor2.loads(case("x", "ok", 1, table, chunks)[1])["manifest"])
    return cbor2.dumps({**value, **(changes or {})}, canonical=True)


def _fields(entry: FileEntry) -> tuple[Any, ...]:
    return entry.path, entry.size, entry.mode, entry.sha256, entry.first_record, entry.n_records


def _renamed(entry: FileEntry, path: str) -> FileEntry:
    return FileEntry(path, *_fields(entry)[1:])


def _plain(files: list[FileEntry], records: list[Record]) -> bytes:
    return _plain_raw([list(_fields(f)) for f in files], records)


def _plain_raw(files: list[list[Any]], records: list[Record]) -> bytes:
    index = cbor.encode({"files": files, "tests": None})
    return struct.pack(">I", len(index)) + index + b"".join(r.to_bytes() for r in records)


def everything() -> dict[str, bytes]:
    """Every case: file name -> content."""
    return dict([good(1), good(2), *broken_records(), *broken_files(), *broken_around(), *broken_frames()])


if __name__ == "__main__":
    for file_name, content in everything().items():
        (Path(sys.argv[1]) / file_name).write_bytes(content)

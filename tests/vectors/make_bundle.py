"""Write the bundle vectors, `tests/vectors/bundle/*.json`: `python tests/vectors/make_bundle.py`.

An independent writer: of docs/spec/bundle.md it knows the page, of edgeseal nothing. Every random byte comes from a
label, and zstd frames are put together by hand (RFC 8878 §3.1.1: raw and RLE blocks) except for one constant, so the
bytes do not depend on the version of a library.

One file is one case:

    what      one line for a person
    outcome   "opens", "refused" (exit code 3) or "incompatible" (exit code 6)
    at        the step that says so: manifest, requirements, key, table or chunk
    manifest, ck, table, chunks     hex; chunks by name
    files     what an opened bundle holds: path -> mode, size, SHA-256
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent / "bundle"
AEADS: dict[int, type[ChaCha20Poly1305 | AESGCM]] = {1: ChaCha20Poly1305, 2: AESGCM}
MIB = 2**20
# zstd 1.5.7, level 1, of TEXT: a frame with Huffman literals and sequences.
TEXT = b"".join(b"%d edgeseal " % (i % 7) for i in range(60))
TEXT_FRAME = bytes.fromhex(
    "28b52ffd609401fd020002450d0fc025072ed04cc17fc09b92c20af5944218334c008c2827b9cb49ee7292bb9ce42e27b9cb49ee7292bb"
    "9ce42e278431c304c008053a24e0d707724c8ec9313926c7e4983826c7e4981c9363724c8e9163724c8ec93139268799131d"
)


def noise(label: str, length: int) -> bytes:
    return hashlib.shake_256(b"edgeseal/bundle-vectors/" + label.encode()).digest(length)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# zstd by hand ---------------------------------------------------------------------------------------------------------


def zstd(
    *blocks: bytes | tuple[int, int], declared: int | None = None, window: int | None = None, dictionary: int = 0
) -> bytes:
    """Return one frame: a bytes block is raw, (byte, count) is run-length encoded.

    `window` is a Window_Descriptor byte instead of the single-segment flag.
    """
    length = sum(len(b) if isinstance(b, bytes) else b[1] for b in blocks) if declared is None else declared
    single = window is None
    descriptor = 0x80 | (0x20 if single else 0) | (1 if dictionary else 0)  # 0x80: content size of 4 bytes
    out = b"\x28\xb5\x2f\xfd" + bytes([descriptor])
    out += b"" if window is None else bytes([window])
    out += bytes([dictionary]) if dictionary else b""
    out += struct.pack("<I", length)
    for i, block in enumerate(blocks):
        size, kind, body = (len(block), 0, block) if isinstance(block, bytes) else (block[1], 1, bytes([block[0]]))
        out += (size << 3 | kind << 1 | (i == len(blocks) - 1)).to_bytes(3, "little") + body
    return out


def runs(byte: int, length: int) -> list[tuple[int, int]]:
    """Blocks hold at most 128 KiB."""
    return [(byte, min(131_072, length - at)) for at in range(0, length, 131_072)]


def grouped(piece: bytes, width: int) -> bytes:
    whole = len(piece) // width * width
    return b"".join(piece[i:whole:width] for i in range(width)) + piece[whole:]


# A bundle, part by part, so that each part can be spoilt --------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """One record and its chunk. What is None is what it should be."""

    plain: bytes
    codec: int = 0
    width: int = 1
    frame: bytes | None = None
    flags: int = 0
    tail: bytes = b""  # slots behind the record
    key: bytes | None = None
    piece_sha256: bytes | None = None
    plain_length: int | None = None
    stored_length: int | None = None
    hidden: bool = False  # an alternate: its file does not count it

    def chunk(self, suite: int) -> tuple[bytes, bytes]:
        frame = self.plain if self.frame is None else self.frame
        key = hmac.digest(noise("family", 32), b"edgeseal/chunk-key/v1" + bytes([suite]) + sha256(frame), "sha256")
        return key, AEADS[suite](key).encrypt(bytes(12), frame, None)

    def record(self, suite: int) -> bytes:
        key, stored = self.chunk(suite)
        return (
            sha256(stored)
            + (self.key or key)
            + (self.piece_sha256 or sha256(self.plain))
            + struct.pack(
                ">IIBBH",
                len(self.plain) if self.plain_length is None else self.plain_length,
                len(stored) if self.stored_length is None else self.stored_length,
                self.codec,
                self.width,
                self.flags,
            )
            + self.tail
        )


@dataclass(frozen=True)
class File:
    path: str
    pieces: tuple[Piece, ...]
    mode: int = 0o644
    changes: dict[int, Any] = field(default_factory=dict)  # index in the entry -> value

    @property
    def content(self) -> bytes:
        return b"".join(p.plain for p in self.pieces if not p.hidden)

    def entry(self, first: int) -> list[Any]:
        count = sum(not p.hidden for p in self.pieces)
        entry = [self.path, len(self.content), self.mode, sha256(self.content), first, count]
        for at, value in self.changes.items():
            entry[at] = value
        return entry


def identity(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Bundle:
    """`edit_…` functions spoil the bytes of a part after it is made and before the next part is made from it."""

    suite: int = 1
    files: tuple[File, ...] = (File("model.onnx", (Piece(noise("piece", 200)),)),)
    tests: Any = None
    model: str = "bearing"
    release: int = 7
    ck: bytes = noise("ck", 32)
    requirements: Any = field(default_factory=dict)
    hints: tuple[bytes, ...] = ()
    provenance: Any = field(default_factory=dict)
    manifest_changes: dict[int, Any] = field(default_factory=dict)
    edit_index: Callable[[bytes], bytes] = identity
    edit_records: Callable[[bytes], bytes] = identity
    edit_plaintext: Callable[[bytes], bytes] = identity
    edit_header: Callable[[bytes], bytes] = identity
    edit_sealed: Callable[[bytes], bytes] = identity
    edit_served: Callable[[bytes], bytes] = identity  # after the manifest has pinned the table
    edit_manifest: Callable[[bytes], bytes] = identity
    edit_chunks: Callable[[dict[str, bytes]], dict[str, bytes]] = dict
    given_ck: bytes | None = None

    def chunks(self) -> dict[str, bytes]:
        stored = [p.chunk(self.suite)[1] for f in self.files for p in f.pieces if not p.hidden]
        return {sha256(s).hex(): s for s in stored}

    def plaintext(self) -> bytes:
        entries, first = [], 0
        for file in self.files:
            entries.append(file.entry(first))
            first += sum(not p.hidden for p in file.pieces)
        index = self.edit_index(cbor2.dumps({"files": entries, "tests": self.tests}, canonical=True))
        records = self.edit_records(b"".join(p.record(self.suite) for f in self.files for p in f.pieces))
        return self.edit_plaintext(struct.pack(">I", len(index)) + index + records)

    def table(self) -> bytes:
        plain, salt = self.plaintext(), noise("salt", 32)
        prk = hmac.digest(salt, self.ck, "sha256")
        info = b"edgeseal/table/v1" + self.model.encode() + struct.pack(">Q", self.release) + b"\x01"
        header = self.edit_header(struct.pack(">4sBBHQ32s", b"ESTB", 1, self.suite, 0, len(plain), salt))
        aead = AEADS[self.suite](hmac.digest(prk, info, "sha256"))
        return self.edit_sealed(header + aead.encrypt(bytes(12), plain, header))

    def manifest(self, table: bytes) -> bytes:
        values: dict[int, Any] = {
            0: 1,
            1: self.model,
            2: self.release,
            3: self.suite,
            4: commitment(self.ck, self.model, self.release),
            5: {0: sha256(table), 1: len(table)},
            6: sum(len(f.content) for f in self.files),
            7: sum(map(len, self.chunks().values())),
            8: MIB,
            9: self.requirements,
            10: list(self.hints),
            11: self.provenance,
        }
        values.update(self.manifest_changes)
        return self.edit_manifest(cbor2.dumps(values, canonical=True))


def commitment(ck: bytes, model: str, release: int) -> bytes:
    parts = (b"edgeseal/x1", b"ck", model.encode(), struct.pack(">Q", release))
    framed = b"".join(struct.pack(">I", len(p)) + p for p in parts)
    return hmac.digest(ck, hashlib.sha384(framed).digest(), "sha384")[:32]


# Edits ----------------------------------------------------------------------------------------------------------------


def flipped(at: int) -> Callable[[bytes], bytes]:
    """Flip the lowest bit of the byte at `at`."""

    def edit(data: bytes) -> bytes:
        spoilt = bytearray(data)
        spoilt[at] ^= 1
        return bytes(spoilt)

    return edit


def put(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + new + data[at + len(new) :]


def swapped(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        if data.count(old) != 1:
            raise ValueError("what is to be replaced is not there exactly once")
        return data.replace(old, new)

    return edit


def appended(more: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data + more


# Cases ----------------------------------------------------------------------------------------------------------------

FLOATS = b"".join(struct.pack("<f", i / 8) for i in range(100))
ONE = Piece(noise("one", 300))
TWO = Piece(noise("two", 500))
RESIDUAL = Piece(
    ONE.plain, codec=3, width=4, flags=1, tail=noise("base", 32) + bytes(76), frame=noise("residual", 90), hidden=True
)


def good() -> Iterator[tuple[str, str, Bundle]]:
    for suite in (1, 2):
        yield f"raw-suite-{suite}", "one file, one piece, codec 0", Bundle(suite)
        text = Piece(TEXT, codec=1, frame=TEXT_FRAME)
        yield f"zstd-suite-{suite}", "codec 1, a frame with real sequences", bundle(text, suite=suite)
        for width in (2, 4, 8):
            piece = FLOATS + b"abc"
            frame = zstd((0, 200), grouped(piece, width)[200:], declared=len(piece))
            plain = ungrouped(bytes(200) + grouped(piece, width)[200:], width)
            one = Piece(plain, codec=2, width=width, frame=frame)
            yield f"grouped-{width}-suite-{suite}", f"codec 2, width {width}, and a rest", bundle(one, suite=suite)
        largest = Piece(b"w" * MIB, codec=1, frame=zstd(*runs(ord("w"), MIB)))
        rest = Piece(b"w", width=8)
        yield f"largest-piece-suite-{suite}", "2^20 bytes and one more", bundle(largest, rest, suite=suite)
        many = (
            File("a/model.onnx", (ONE, TWO, ONE)),
            File("a/model.onnx.data", (TWO,)),
            File("run", (Piece(b"#"),), 0o755),
            File("é/ü.bin", (Piece(b"\x00"),)),
        )
        yield f"many-files-suite-{suite}", "shared chunks, a mode, paths beyond ASCII", Bundle(suite, many)
        alternates = (File("model.onnx", (ONE, RESIDUAL, RESIDUAL, TWO)),)
        yield f"alternates-suite-{suite}", "two residuals of one piece; both may be ignored", Bundle(suite, alternates)
        tensor = ["FP32", [1, 2], struct.pack("<2f", 0.5, -1)]
        case = {"inputs": {"x": tensor}, "outputs": {"y": tensor}}
        full = Bundle(
            suite,
            tests={"v": 1, "cases": [case], "atol": 1e-3, "rtol": 0.5, "top1": False},
            requirements={"format": "onnx", "inputs": {"x": ["FP32", [-1, 2]]}, "rt": ["onnxruntime"]},
            hints=(noise("hint 1", 32), noise("hint 2", 32)),
            provenance={"commit": "c0ffee", "numbers": [-1, 2**64 - 1, 1.5, 1e300, True, None, b"\x00"]},
        )
        yield f"everything-suite-{suite}", "requirements, hints, provenance, acceptance vectors", full
    asked = {"threads": 64, "prepack": False, "spin": True, "providers": ["z" + "-9" * 15 + "x", "xnnpack", "cpu"]}
    yield "engine-everything", "all that a release can ask of its engine", Bundle(requirements={"engine": asked})
    yield "engine-nothing", "an empty map: nothing is asked", Bundle(requirements={"engine": {}})
    unknown = {"engines": {"threads": 0}, "runtime": {"graph": 1}}
    yield "requirements-unknown", "keys that readers pass over", Bundle(requirements=unknown)


def ungrouped(data: bytes, width: int) -> bytes:
    count = len(data) // width
    return b"".join(data[i : count * width : count] for i in range(count)) + data[count * width :]


def bundle(*pieces: Piece, path: str = "model.onnx", suite: int = 1, **others: Any) -> Bundle:
    return Bundle(suite, (File(path, pieces),), **others)


def bad_manifests() -> Iterator[tuple[str, str, str, Bundle]]:
    def edited(edit: Callable[[bytes], bytes]) -> Bundle:
        return Bundle(edit_manifest=edit)

    def changed(at: int, value: object) -> Bundle:
        return Bundle(manifest_changes={at: value})

    pinned = {0: noise("table", 32), 1: 400}
    refused: dict[str, tuple[str, Bundle]] = {
        "trailing-byte": ("a byte behind the map", edited(appended(b"\x00"))),
        "truncated": ("the last byte is missing", edited(lambda d: d[:-1])),
        "empty": ("no bytes", edited(lambda _: b"")),
        "array": ("an array instead of a map", edited(lambda d: b"\x98\x18" + d[1:])),
        "indefinite-map": ("the map has no length", edited(lambda d: b"\xbf" + d[1:] + b"\xff")),
        "long-integer": ("release 7 in two bytes", edited(swapped(b"\x02\x07\x03", b"\x02\x18\x07\x03"))),
        "long-length": ("the model's length in two bytes", edited(swapped(b"\x67bearing", b"\x78\x07bearing"))),
        "unsorted-keys": ("key 3 before key 2", edited(swapped(b"\x02\x07\x03\x01", b"\x03\x01\x02\x07"))),
        "duplicate-key": ("key 2 twice", edited(lambda d: b"\xad" + swapped(b"\x02\x07", b"\x02\x07\x02\x07")(d[1:]))),
        "missing-key": ("no key 11", edited(lambda d: b"\xab" + d[1:-2])),
        "extra-key": ("a key 12", changed(12, 0)),
        "text-key": ("a key that is text", edited(lambda d: b"\xad" + d[1:] + b"\x61x\x00")),
        "tag": ("a tagged release", edited(swapped(b"\x02\x07\x03", b"\x02\xc1\x07\x03"))),
        "bignum": ("a release of 2^64", edited(swapped(b"\x02\x07\x03", b"\x02\xc2\x49\x01" + bytes(8) + b"\x03"))),
        "undefined": ("undefined in the provenance", edited(lambda d: d[:-1] + b"\xa1\x61x\xf7")),
        "nan": ("not a number in the provenance", edited(lambda d: d[:-1] + b"\xa1\x61x\xf9\x7e\x00")),
        "long-float": ("1.5 in eight bytes", edited(lambda d: d[:-1] + b"\xa1\x61x\xfb\x3f\xf8" + bytes(6))),
        "bad-utf8": ("a model name that is not UTF-8", edited(swapped(b"bearing", b"b\xffaring"))),
        "too-deep": ("nine containers", edited(lambda d: d[:-1] + b"\xa1\x61x" + b"\x81" * 7 + b"\x00")),
        "bomb-depth": ("ten thousand arrays", edited(lambda d: d[:-1] + b"\xa1\x61x" + b"\x81" * 10_000 + b"\x00")),
        "bomb-count": ("an array of 2^62 items", edited(lambda d: d[:-1] + b"\xa1\x61x\x9b\x40" + bytes(7))),
        "bomb-length": ("a string of 2^62 bytes", edited(lambda d: d[:-1] + b"\xa1\x61x\x5b\x40" + bytes(7))),
        "too-long": (
            "65,537 bytes",
            Bundle(provenance={"x": bytes(65_537 - len(Bundle().manifest(Bundle().table())) - 5)}),
        ),
        "format-0": ("format 0", changed(0, 0)),
        "format-text": ("format as text", changed(0, "1")),
        "format-true": ("format true", changed(0, True)),  # noqa: FBT003 - true equals 1 in many languages
        "release-0": ("release 0", changed(2, 0)),
        "release-negative": ("release -1", changed(2, -1)),
        "release-2-63": ("release 2^63", changed(2, 2**63)),
        "release-float": ("release 7.0", changed(2, 7.0)),
        "suite-text": ("suite as text", changed(3, "1")),
        "commitment-short": ("31 bytes", changed(4, bytes(31))),
        "commitment-text": ("text", changed(4, "x" * 32)),
        "table-extra-key": ("a third entry", changed(5, {**pinned, 2: 0})),
        "table-hash-short": ("31 bytes", changed(5, {**pinned, 0: bytes(31)})),
        "table-length-0": ("an empty table", changed(5, {**pinned, 1: 0})),
        "table-too-long": ("a table of 32 MiB and one byte", changed(5, {**pinned, 1: 32 * MIB + 1})),
        "plain-size-0": ("no bytes of files", changed(6, 0)),
        "plain-size-2-63": ("plain size 2^63", changed(6, 2**63)),
        "stored-size-0": ("no bytes of chunks", changed(7, 0)),
        "requirements-array": ("an array", changed(9, [])),
        "requirements-number-keys": ("keys that are numbers", changed(9, {1: 2})),
        "hints-17": ("17 hints", changed(10, [noise(f"hint {i}", 32) for i in range(17)])),
        "hint-short": ("31 bytes", changed(10, [bytes(31)])),
        "hint-twice": ("the same hint twice", changed(10, [bytes(32), bytes(32)])),
        "provenance-null": ("null", changed(11, None)),
    }
    for name in (
        "",
        "Bearing",
        "a" * 65,
        "../x",
        "a/b",
        ".a",
        "a.",
        "-a",
        "a b",
        "a*",
        "b\u00e4r",
        "root",
        "timestamp",
        "a\n",
    ):
        label = {"": "empty", "../x": "dotdot", "a/b": "slash", "a*": "wildcard", "a b": "space", "a\n": "newline"}
        label |= {".a": "dot-first", "a.": "dot-last", "-a": "dash-first", "b\u00e4r": "not-ascii", "a" * 65: "long"}
        refused[f"name-{label.get(name, name).lower()}"] = (f"model name {name!r}", changed(1, name))
    for fault, (what, spoilt) in refused.items():
        yield f"manifest-{fault}", what, "refused", spoilt
    yield (
        "manifest-format-2",
        "a newer format, whatever else is in it",
        "incompatible",
        edited(lambda _: b"\xa1\x00\x02"),
    )
    yield "manifest-suite-3", "an unknown suite", "incompatible", changed(3, 3)
    yield "manifest-largest-piece", "pieces of 2 MiB", "incompatible", changed(8, 2 * MIB)


def bad_requirements() -> Iterator[tuple[str, str, str, Bundle]]:
    """What a release may not ask of its engine."""
    refused: dict[str, tuple[str, Any]] = {
        "null": ("null for the whole map", None),
        "array": ("an array", ["cpu"]),
        "threads-0": ("no threads", {"threads": 0}),
        "threads-65": ("65 threads", {"threads": 65}),
        "threads-huge": ("2^64 - 1 threads", {"threads": 2**64 - 1}),
        "threads-negative": ("-1 threads", {"threads": -1}),
        "threads-true": ("true for threads", {"threads": True}),
        "threads-float": ("1.5 threads", {"threads": 1.5}),
        "threads-null": ("null for threads", {"threads": None}),
        "prepack-1": ("1 for true", {"prepack": 1}),
        "prepack-null": ("null for prepack", {"prepack": None}),
        "spin-0": ("0 for false", {"spin": 0}),
        "spin-null": ("null for spin", {"spin": None}),
        "providers-empty": ("no provider", {"providers": []}),
        "providers-9": ("nine providers", {"providers": [f"p{i}" for i in range(9)]}),
        "providers-text": ("a provider without its array", {"providers": "cpu"}),
        "providers-twice": ("the same provider twice", {"providers": ["cpu", "cpu"]}),
        "provider-bytes": ("a provider in bytes", {"providers": [b"cpu"]}),
        "provider-empty": ("a provider without a name", {"providers": [""]}),
        "provider-long": ("33 letters", {"providers": ["x" * 33]}),
        "provider-capital": ("onnxruntime's own name", {"providers": ["CPUExecutionProvider"]}),
        "provider-path": ("a library's path", {"providers": ["/tmp/libevil.so"]}),
        "provider-newline": ("a line end behind the name", {"providers": ["cpu\n"]}),
    }
    for fault, (what, engine) in refused.items():
        yield f"engine-{fault}", what, "refused", Bundle(requirements={"engine": engine})
    later = {"threads": 2, "graph": "basic"}
    yield "engine-unknown-key", "a setting of a later version", "incompatible", Bundle(requirements={"engine": later})


def bad_tables() -> Iterator[tuple[str, str, str, Bundle]]:
    two = Bundle(files=(File("a", (ONE,)), File("b", (TWO,))))

    def files(*entries: File) -> Bundle:
        return Bundle(files=entries)

    def named(path: str) -> Bundle:
        return bundle(ONE, path=path)

    def entry(**changes: Any) -> Bundle:
        order = ("path", "size", "mode", "sha256", "first", "count")
        return files(File("a", (ONE,), changes={order.index(k): v for k, v in changes.items()}))

    def second(**changes: Any) -> Bundle:
        order = ("path", "size", "mode", "sha256", "first", "count")
        return files(File("a", (ONE,)), File("b", (TWO,), changes={order.index(k): v for k, v in changes.items()}))

    def index(edit: Callable[[bytes], bytes]) -> Bundle:
        return Bundle(edit_index=edit)

    refused: dict[str, tuple[str, Bundle]] = {
        "hash": ("another table than the manifest's", Bundle(edit_served=flipped(60))),
        "longer": ("a byte behind the table", Bundle(edit_served=appended(b"\x00"))),
        "shorter": ("the last byte is missing", Bundle(edit_served=lambda d: d[:-1])),
        "empty": ("no bytes", Bundle(edit_served=lambda _: b"")),
        "header-only": ("the header and nothing else", Bundle(edit_sealed=lambda d: d[:48])),
        "magic": ("starts with ESTC", Bundle(edit_header=put(0, b"ESTC"))),
        "suite-differs": ("header of suite 2, manifest of suite 1", Bundle(edit_header=put(5, b"\x02"))),
        "header-length": ("header that says one byte more", Bundle(edit_header=flipped(15))),
        "header-length-huge": ("header that says 2^63 bytes", Bundle(edit_header=put(8, b"\x80"))),
        "salt-bit": ("a bit of the salt", Bundle(edit_sealed=flipped(16))),
        "ciphertext-bit": ("a bit of the ciphertext", Bundle(edit_sealed=flipped(48))),
        "tag-bit": ("the last bit", Bundle(edit_sealed=flipped(-1))),
        "other-release": (
            "sealed for release 8, put in the place of release 7",
            Bundle(release=8, manifest_changes={2: 7, 4: commitment(noise("ck", 32), "bearing", 7)}),
        ),
        "other-model": (
            "sealed for model bearing, put in the place of model other",
            Bundle(manifest_changes={1: "other", 4: commitment(noise("ck", 32), "other", 7)}),
        ),
        "index-beyond-end": ("an index longer than the table", Bundle(edit_plaintext=put(0, b"\x7f\xff\xff\xff"))),
        "index-takes-records": ("an index that reaches into the records", Bundle(edit_plaintext=flipped(3))),
        "index-trailing-byte": ("a byte behind the index", index(appended(b"\x00"))),
        "index-extra-key": ("a third entry", index(lambda d: b"\xa3" + d[1:] + b"\x65zzzzz\x00")),
        "index-no-tests": ("no tests", index(lambda d: b"\xa1" + d[1:-7])),
        "index-array": ("an array instead of a map", index(lambda _: b"\x80")),
        "index-bomb-depth": ("tests of a thousand arrays", index(lambda d: d[:-1] + b"\x81" * 1000 + b"\x00")),
        "index-bomb-count": ("2^62 files", index(lambda _: b"\xa2\x65files\x9b\x40" + bytes(7))),
        "index-duplicate-key": ("files twice", index(lambda d: b"\xa3" + d[1:7] + b"\x80" + d[1:])),
        "no-files": ("no file", Bundle(edit_index=lambda _: b"\xa2\x65files\x80\x65tests\xf6")),
        "no-records": ("no record", Bundle(edit_records=lambda _: b"")),
        "half-record": ("half a record more", Bundle(edit_records=appended(bytes(54)))),
        "record-missing": ("the second file's record is not there", replace(two, edit_records=lambda d: d[:108])),
        "record-unused": ("a record that no file uses", Bundle(edit_records=appended(TWO.record(1)))),
        "record-unused-twice": ("the only record a second time, unused", Bundle(edit_records=lambda d: d + d)),
        "entry-short": ("an entry of five", index(swapped(b"\x86\x6amodel", b"\x85\x6amodel"))),
        "path-bytes": ("a path of bytes", entry(path=b"a")),
        "size-0": ("size 0", entry(size=0)),
        "size-differs": ("size 301, pieces of 300", entry(size=301)),
        "size-2-63": ("size 2^63", entry(size=2**63)),
        "mode-setuid": ("mode 0o4755", entry(mode=0o4755)),
        "mode-link": ("mode 0o120777", entry(mode=0o120777)),
        "mode-private": ("mode 0o600", entry(mode=0o600)),
        "file-hash-short": ("31 bytes", entry(sha256=bytes(31))),
        "count-0": ("no record", entry(count=0)),
        "count-beyond": ("two records where one is", entry(count=2)),
        "count-huge": ("2^62 records", entry(count=2**62)),
        "first-negative": ("first record -1", entry(first=-1)),
        "first-true": ("first record true", second(first=True)),
        "records-overlap": ("two files with the same record", second(first=0)),
        "records-gap": ("a record between two files", second(first=2)),
        "path-twice": ("the same path twice", second(path="a")),
        "path-below-file": ("a file that is also a directory", second(path="a/b")),
        "path-absolute": ("an absolute path", named("/etc/passwd")),
        "path-dotdot": ("a path that leaves the directory", named("a/../../b")),
        "path-dotdot-last": ("a path that ends with ..", named("a/..")),
        "path-dot": ("a part that is .", named("./a")),
        "path-empty": ("no path", named("")),
        "path-empty-part": ("two slashes", named("a//b")),
        "path-slash-last": ("a slash at the end", named("a/")),
        "path-backslash": ("a backslash", named("a\\b")),
        "path-nul": ("a zero byte", named("a\x00b")),
        "path-newline": ("a newline", named("a\nb")),
        "path-delete": ("byte 0x7f", named("a\x7f")),
        "path-long": ("1,025 bytes", named("/".join(["a" * 204] * 5) + "a")),
        "path-part-long": ("a part of 256 bytes that are 128 characters", named("é" * 128)),
        "path-deep": ("17 parts", named("/".join("abcdefghijklmnopq"))),
        "piece-0": ("a piece of no bytes", bundle(replace(ONE, plain_length=0))),
        "piece-too-long": ("a piece of 2^20 + 1 bytes", bundle(replace(ONE, plain_length=MIB + 1))),
        "stored-short": ("codec 0 and 15 bytes more", bundle(replace(ONE, stored_length=315))),
        "stored-long": ("codec 0 and 17 bytes more", bundle(replace(ONE, stored_length=317))),
        "stored-empty-frame": ("codec 1 and 16 bytes", bundle(replace(ONE, codec=1, stored_length=16))),
        "stored-larger": ("codec 1 and a longer frame", bundle(replace(ONE, codec=1, stored_length=317))),
        "stored-huge": ("2^32 - 1 stored bytes", bundle(replace(ONE, codec=1, stored_length=2**32 - 1))),
        "width-0": ("width 0", bundle(replace(ONE, width=0))),
        "width-3": ("width 3", bundle(replace(ONE, width=3))),
        "flags-unknown": ("flag bit 1", bundle(replace(ONE, flags=2))),
        "flags-high": ("flag bit 15", bundle(replace(ONE, flags=0x8000))),
        "residual-plain": ("a plain record with codec 3", bundle(replace(ONE, codec=3))),
        "alternate-not-residual": ("an alternate with codec 0", bundle(ONE, replace(RESIDUAL, codec=0, frame=None))),
        "alternate-first": ("an alternate before its plain record", bundle(RESIDUAL, ONE)),
        "alternate-no-base": ("an alternate without a base slot", bundle(ONE, replace(RESIDUAL, tail=b""))),
        "alternate-base-dirty": ("a base slot with a 1", bundle(ONE, replace(RESIDUAL, tail=bytes(107) + b"1"))),
        "alternate-other-piece": ("an alternate of another piece", bundle(TWO, RESIDUAL)),
        "alternate-other-length": ("an alternate of another length", bundle(ONE, replace(RESIDUAL, plain_length=299))),
        "plain-size-differs": ("manifest with one byte more", Bundle(manifest_changes={6: 201})),
        "stored-size-differs": ("manifest with one byte less", Bundle(manifest_changes={7: 215})),
        "stored-size-counts-twice": (
            "manifest that counts a shared chunk twice",
            bundle(ONE, ONE, manifest_changes={7: 2 * 316}),
        ),
    }  # fmt: skip
    for fault, (what, spoilt) in refused.items():
        yield f"table-{fault}", what, "refused", spoilt
    yield "table-format-2", "a newer table", "incompatible", Bundle(edit_header=put(4, b"\x02"))
    yield "table-header-flags", "a flag in the header", "incompatible", Bundle(edit_header=put(7, b"\x01"))
    yield "table-codec-4", "an unknown codec", "incompatible", bundle(replace(ONE, codec=4))


def bad_chunks() -> Iterator[tuple[str, str, str, Bundle]]:
    def chunks(edit: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Bundle:
        return bundle(ONE, TWO, edit_chunks=edit)

    def each(edit: Callable[[bytes], bytes]) -> Bundle:
        return chunks(lambda c: {name: edit(data) for name, data in c.items()})

    def framed(frame: bytes, length: int = 300, **others: Any) -> Bundle:
        return bundle(Piece(b"z" * length, codec=1, frame=frame, **others))

    def of_suite_2(c: dict[str, bytes]) -> dict[str, bytes]:
        return dict(zip(c, Bundle(2).chunks().values(), strict=True))

    half = zstd((ord("z"), 300))
    refused: dict[str, tuple[str, Bundle]] = {
        "bit": ("a bit of each chunk", each(flipped(0))),
        "tag-bit": ("the last bit of each chunk", each(flipped(-1))),
        "truncated": ("the last byte of each chunk is missing", each(lambda d: d[:-1])),
        "longer": ("a byte behind each chunk", each(appended(b"\x00"))),
        "empty": ("empty chunks", each(lambda _: b"")),
        "swapped": ("two chunks change places", chunks(lambda c: dict(zip(c, [*c.values()][::-1], strict=True)))),
        "doubled": ("the first chunk in both places", chunks(lambda c: dict.fromkeys(c, next(iter(c.values()))))),
        "other-key": ("a record with another chunk's key", bundle(replace(ONE, key=noise("key", 32)))),
        "other-piece": ("a record with another piece's hash", bundle(replace(ONE, piece_sha256=sha256(TWO.plain)))),
        "other-suite": ("chunk of suite 2 in a bundle of suite 1", Bundle(edit_chunks=of_suite_2)),
        "zstd-bomb": ("a frame that declares 1 GiB", framed(zstd(*runs(0, MIB), declared=2**30), MIB)),
        "zstd-declares-more": ("a frame that declares one byte more", framed(zstd((ord("z"), 300), declared=301))),
        "zstd-declares-less": ("a frame that declares one byte less", framed(zstd((ord("z"), 300), declared=299))),
        "zstd-holds-more": ("a frame that holds more than it declares", framed(zstd((ord("z"), 400), declared=300))),
        "zstd-holds-less": ("a frame that holds less than it declares", framed(zstd((ord("z"), 200), declared=300))),
        "zstd-no-size": ("a frame without its content size", framed(b"\x28\xb5\x2f\xfd\x00\x00" + half[9:])),
        "zstd-trailing": ("a byte behind the frame", framed(half + b"\x00")),
        "zstd-two-frames": ("two frames", framed(half + half)),
        "zstd-skippable": ("a skippable frame first", framed(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + half)),
        "zstd-truncated": ("a frame without its end", framed(half[:-1])),
        "zstd-not": ("no zstd at all", framed(noise("frame", 40))),
        "zstd-window": ("a window of 2 MiB", framed(zstd((ord("z"), 300), window=0x58))),
        "zstd-window-huge": ("a window of 3.75 TiB", framed(zstd((ord("z"), 300), window=0xFF))),
        "zstd-dictionary": ("a frame that needs a dictionary", framed(zstd((ord("z"), 300), dictionary=7))),
        "zstd-reserved-block": ("a block of the reserved type", framed(half[:9] + bytes([half[9] | 6]) + half[10:])),
        "ungrouped": (
            "codec 2 of a piece that was not grouped",
            bundle(Piece(FLOATS, codec=2, width=4, frame=zstd(FLOATS[:-200], (0, 200), declared=400))),
        ),
    }  # fmt: skip
    for fault, (what, spoilt) in refused.items():
        yield f"chunk-{fault}", what, "refused", spoilt


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and content of every file."""
    for name, what, made in good():
        yield name, document(made, what, "opens", "")
    groups = {
        "manifest": bad_manifests,
        "requirements": bad_requirements,
        "table": bad_tables,
        "chunk": bad_chunks,
    }
    for step, group in groups.items():
        for name, what, outcome, made in group():
            yield name, document(made, what, outcome, step)
    other = Bundle(given_ck=noise("another ck", 32))
    yield "key-other", document(other, "a content key that the manifest does not commit to", "refused", "key")
    short = Bundle(given_ck=noise("ck", 32)[:31])
    yield "key-short", document(short, "31 bytes", "refused", "key")
    padded = Bundle(given_ck=noise("ck", 32) + b"\x00")  # HMAC pads its key with zeros: the commitment is the same
    yield "key-padded", document(padded, "33 bytes, the last one zero", "refused", "key")


def document(made: Bundle, what: str, outcome: str, step: str) -> dict[str, Any]:
    """Return one case as it is stored."""
    table = made.table()
    manifest, served = made.manifest(table), made.edit_served(table)
    chunks = made.edit_chunks(made.chunks())
    out: dict[str, Any] = {"what": what, "outcome": outcome}
    out |= {"at": step} if step else {}
    out |= {"manifest": manifest.hex()}
    if step in {"manifest", "requirements"}:
        return out
    out |= {"ck": (made.given_ck or made.ck).hex(), "table": served.hex()}
    if step in {"key", "table"}:
        return out
    out |= {"chunks": {name: data.hex() for name, data in sorted(chunks.items())}}
    if outcome == "opens":
        out |= {"files": {f.path: [f.mode, len(f.content), sha256(f.content).hex()] for f in made.files}}
    return out


def rendered() -> dict[str, str]:
    """Return every file by name."""
    out: dict[str, str] = {}
    for name, content in cases():
        if f"{name}.json" in out:
            raise ValueError(f"two cases are called {name}")
        out[f"{name}.json"] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return out


def main() -> None:
    """Replace the directory's content."""
    HERE.mkdir(exist_ok=True)
    for old in HERE.glob("*.json"):
        old.unlink()
    for name, content in rendered().items():
        (HERE / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()

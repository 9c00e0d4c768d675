"""A second reader of manifest, sealed table and chunks, written from docs/spec/bundle.md alone.

It shares no code with edgeseal, not even the CBOR decoder: where the two disagree, one of them or the page is wrong.
For small bundles in memory; it is plain where edgeseal is fast.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

AEADS: dict[int, type[ChaCha20Poly1305 | AESGCM]] = {1: ChaCha20Poly1305, 2: AESGCM}
PIECE = 1_048_576
U63 = 2**63 - 1
Manifest: TypeAlias = dict[int, Any]
PROVIDER = re.compile("[a-z][a-z0-9-]{0,31}")
NAME = re.compile("[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


class Refused(Exception):  # noqa: N818 - the page's word
    """The bytes are not what the page allows."""


class Incompatible(Exception):  # noqa: N818 - as above
    """The bytes may be good for another version."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise Refused(what)


# Deterministic CBOR (session.md §2) -----------------------------------------------------------------------------------


class Cbor:
    """One strict pass; nothing is decoded first and compared later."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def whole(self) -> Any:
        value = self.item(0)
        require(self.at == len(self.data), "bytes left over")
        return value

    def take(self, count: int) -> bytes:
        require(count <= len(self.data) - self.at, "truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def argument(self, low: int) -> int:
        if low < 24:
            return low
        require(low < 28, "indefinite or reserved length")
        size = 1 << (low - 24)
        number = int.from_bytes(self.take(size), "big")
        require(number >= (24, 2**8, 2**16, 2**32)[low - 24], "number longer than needed")
        return number

    def item(self, depth: int) -> Any:
        initial = self.take(1)[0]
        major, low = initial >> 5, initial & 31
        if major == 7:
            return self.simple(low)
        number = self.argument(low)
        if major in {0, 1}:
            return number if major == 0 else -1 - number
        if major in {2, 3}:
            raw = self.take(number)
            return raw if major == 2 else text(raw)
        require(major != 6, "tag")
        require(depth < 8, "too deep")
        # Each item takes a byte at least, so a number of items beyond the data ends in "truncated" soon.
        if major == 4:
            return [self.item(depth + 1) for _ in range(number)]
        return self.map(number, depth)

    def map(self, number: int, depth: int) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        last = b""
        for _ in range(number):
            start = self.at
            key = self.item(depth + 1)
            encoded = self.data[start : self.at]
            require(encoded > last, "keys unsorted or twice")
            require(type(key) in {str, int}, "key that is neither text nor a number")
            last = encoded
            out[key] = self.item(depth + 1)
        kinds = {type(key) for key in out}
        require(kinds <= {str} or (kinds == {int} and min(out) >= 0), "keys neither all text nor all unsigned")
        return out

    def simple(self, low: int) -> Any:
        if low in {20, 21, 22}:
            return (False, True, None)[low - 20]
        require(low in {25, 26, 27}, "undefined or reserved simple value")
        size = 1 << (low - 24)
        raw = self.take(size)
        value = struct.unpack({2: ">e", 4: ">f", 8: ">d"}[size], raw)[0]
        require(not math.isnan(value), "NaN")
        for shorter, code in ((2, ">e"), (4, ">f")):
            if shorter < size:
                try:
                    require(struct.unpack(code, struct.pack(code, value))[0] != value, "float longer than needed")
                except OverflowError:
                    continue
        return value


def text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Refused("text that is not UTF-8") from e


def is_uint(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def is_bytes(value: object, length: int = 32) -> bool:
    return type(value) is bytes and len(value) == length


# Manifest (§2) --------------------------------------------------------------------------------------------------------


def read_manifest(data: bytes) -> Manifest:
    require(len(data) <= 65_536, "manifest too long")
    m: Any = Cbor(data).whole()
    require(isinstance(m, dict) and is_uint(m.get(0), 1, 2**64 - 1), "no format number")
    if m[0] != 1:
        raise Incompatible("format")
    require(list(m) == list(range(12)), "keys are not 0 to 11")
    require(type(m[1]) is str and NAME.fullmatch(m[1]), "model name")
    require(m[1] not in {"root", "targets", "snapshot", "timestamp"}, "reserved model name")
    require(is_uint(m[2], 1, U63), "release")
    require(type(m[3]) is int, "suite")
    require(is_bytes(m[4]), "commitment")
    require(type(m[5]) is dict and list(m[5]) == [0, 1], "table")
    require(is_bytes(m[5][0]) and is_uint(m[5][1], 1, 33_554_432), "table")
    require(is_uint(m[6], 1, U63) and is_uint(m[7], 1, U63), "sizes")
    require(type(m[8]) is int, "largest piece")
    require(type(m[10]) is list and len(m[10]) <= 16 and all(map(is_bytes, m[10])), "hints")
    require(len(set(m[10])) == len(m[10]), "hint twice")
    for free in (m[9], m[11]):
        require(type(free) is dict and all(type(key) is str for key in free), "free map")
    if m[3] not in AEADS or m[8] != PIECE:
        raise Incompatible("suite or largest piece")
    check_engine(m[9].get("engine", {}))
    out: Manifest = m
    return out


def check_engine(asked: Any) -> None:
    """§7."""
    require(type(asked) is dict, "engine is no map")
    if set(asked) - {"threads", "prepack", "spin", "providers"}:
        raise Incompatible("setting")
    require(is_uint(asked.get("threads", 1), 1, 64), "threads")
    require(type(asked.get("prepack", True)) is bool, "prepack")
    require(type(asked.get("spin", True)) is bool, "spin")
    providers = asked.get("providers", ["cpu"])
    require(type(providers) is list and 1 <= len(providers) <= 8, "providers")
    require(all(type(p) is str and PROVIDER.fullmatch(p) for p in providers), "provider")
    require(len(set(providers)) == len(providers), "provider twice")


# Content key (session.md §14) -----------------------------------------------------------------------------------------


def check_content_key(m: Manifest, ck: bytes) -> None:
    digest = hashlib.sha384()
    for part in (b"edgeseal/x1", b"ck", m[1].encode(), struct.pack(">Q", m[2])):
        digest.update(struct.pack(">I", len(part)) + part)
    require(len(ck) == 32 and hmac.digest(ck, digest.digest(), "sha384")[:32] == m[4], "commitment")


# Sealed table (§3) ----------------------------------------------------------------------------------------------------


@dataclass
class Record:
    name: bytes
    key: bytes
    piece: bytes
    plain: int
    stored: int
    codec: int
    width: int


def open_table(m: Manifest, ck: bytes, data: bytes) -> tuple[list[list[Any]], Any, list[Record]]:
    require(len(data) == m[5][1] and hashlib.sha256(data).digest() == m[5][0], "not the table that is pinned")
    require(len(data) >= 64 and data[:4] == b"ESTB", "no table")
    number, suite, flags, length = struct.unpack(">BBHQ", data[4:16])
    if number != 1 or flags:
        raise Incompatible("table format or flags")
    require(suite == m[3] and length == len(data) - 64, "header")
    key = hkdf_sha256(ck, data[16:48], b"edgeseal/table/v1" + m[1].encode() + struct.pack(">Q", m[2]))
    plain = aead_open(m[3], key, data[:48], data[48:])
    require(len(plain) >= 4, "no index")
    split = 4 + int.from_bytes(plain[:4], "big")
    require(split <= len(plain) and split - 4 <= 16 * 2**20, "index length")
    index = Cbor(plain[4:split]).whole()
    require(type(index) is dict and set(index) == {"files", "tests"} and type(index["files"]) is list, "index")
    records = read_records(plain[split:])
    check_files(index["files"], records)
    require(sum(record.plain for record in records) == m[6], "plain size")
    require(sum({r.name: r.stored for r in records}.values()) == m[7], "stored size")
    return index["files"], index["tests"], records


def read_records(area: bytes) -> list[Record]:
    require(area and len(area) % 108 == 0, "not whole records")
    slots = [area[i : i + 108] for i in range(0, len(area), 108)]
    out: list[Record] = []
    while slots:
        slot = slots.pop(0)
        plain, stored, codec, width, flags = struct.unpack(">IIBBH", slot[96:])
        record = Record(slot[:32], slot[32:64], slot[64:96], plain, stored, codec, width)
        if codec > 3:
            raise Incompatible("codec")
        require(flags in {0, 1} and (flags == 1) == (codec == 3) and width in {1, 2, 4, 8}, "flags, codec, width")
        require(1 <= plain <= PIECE, "plain length")
        require(stored == plain + 16 if codec == 0 else 17 <= stored <= plain + 16, "stored length")
        if flags:
            require(out and slots, "alternate that stands alone")
            base = slots.pop(0)
            require(not any(base[32:]), "base slot")
            require((out[-1].piece, out[-1].plain) == (record.piece, plain), "alternate of another piece")
        else:
            out.append(record)
    return out


def check_files(files: list[Any], records: list[Record]) -> None:
    require(files, "no files")
    following = 0
    paths: set[str] = set()
    for entry in files:
        require(type(entry) is list and len(entry) == 6, "file entry")
        path, size, mode, sha256, first, count = entry
        require(type(path) is str and is_bytes(sha256) and type(mode) is int, "file entry")
        require(mode in {0o644, 0o755} and is_uint(size, 1, U63), "mode or size")
        require(first == following and type(first) is int and is_uint(count, 1, len(records) - first), "records")
        following += count
        require(sum(r.plain for r in records[first:following]) == size, "size")
        check_path(path)
        require(path not in paths, "path twice")
        paths.add(path)
    require(following == len(records), "unused records")
    for path in paths:
        parts = path.split("/")
        require(not any("/".join(parts[:n]) in paths for n in range(1, len(parts))), "below another file")


def check_path(path: str) -> None:
    raw = path.encode()
    parts = raw.split(b"/")
    require(len(raw) <= 1024 and len(parts) <= 16, "path too long")
    require(all(p not in {b"", b".", b".."} and len(p) <= 255 for p in parts), "path part")
    require(not any(byte < 0x20 or byte in b"\\\x7f" for byte in raw), "path byte")


def hkdf_sha256(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    return hmac.digest(hmac.digest(salt, ikm, "sha256"), info + b"\x01", "sha256")


def aead_open(suite: int, key: bytes, ad: bytes | None, sealed: bytes) -> bytes:
    try:
        return AEADS[suite](key).decrypt(bytes(12), sealed, ad)
    except InvalidTag as e:
        raise Refused("authentication tag") from e


# Chunks (§4) ----------------------------------------------------------------------------------------------------------


def open_chunk(suite: int, record: Record, chunk: bytes) -> bytes:
    require(len(chunk) == record.stored and hashlib.sha256(chunk).digest() == record.name, "not the chunk named")
    piece = aead_open(suite, record.key, None, chunk)
    if record.codec:
        piece = decompress(piece, record.plain)
    if record.codec == 2:
        piece = ungroup(piece, record.width)
    require(len(piece) == record.plain and hashlib.sha256(piece).digest() == record.piece, "another piece")
    return piece


def decompress(frame: bytes, length: int) -> bytes:
    try:
        require(frame[:4] == b"\x28\xb5\x2f\xfd", "no zstd frame")
        header = zstandard.get_frame_parameters(frame)
        require(header.content_size == length and header.window_size <= PIECE and header.dict_id == 0, "zstd header")
        decoder = zstandard.ZstdDecompressor(max_window_size=PIECE).decompressobj()
        out = decoder.decompress(frame)
    except zstandard.ZstdError as e:
        raise Refused("zstd") from e
    require(decoder.eof and not decoder.unused_data, "not one whole zstd frame")
    return out


def ungroup(grouped: bytes, width: int) -> bytes:
    count = len(grouped) // width
    elements = (grouped[i : count * width : count] for i in range(count))
    return b"".join(elements) + grouped[count * width :]


def read_bundle(manifest: bytes, ck: bytes, table: bytes, chunks: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of a bundle by path."""
    m = read_manifest(manifest)
    check_content_key(m, ck)
    files, _, records = open_table(m, ck, table)
    out: dict[str, bytes] = {}
    for path, _, _, sha256, first, count in files:
        pieces = [open_chunk(m[3], r, chunks[r.name.hex()]) for r in records[first : first + count]]
        out[path] = b"".join(pieces)
        require(hashlib.sha256(out[path]).digest() == sha256, "file hash")
    return out

"""The sealed table: which chunks make up a release and the key of each (docs/spec/bundle.md).

A 48-byte header, then one AEAD ciphertext under a key derived from the content key (CK). Inside: a CBOR index of files
and acceptance vectors, then fixed-size records. Records stay in one buffer and are read when asked for, so a table
costs a device little more than its own length.

Not here: fetching or decoding chunks (edgeseal.chunks), cutting files into pieces (edgeseal_host.cutting), what the
acceptance vectors mean (edgeseal.runtime).
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, overload

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgeseal import cbor
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError
from edgeseal.manifest import CHUNK_MAX, MAX_TABLE_LENGTH
from edgeseal.suite import KEY_LENGTH, NONCE, TAG_LENGTH, aead_encrypt
from edgeseal.suite import suite as known_suite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgeseal.manifest import Manifest

MAGIC: Final = b"ESTB"
FORMAT: Final = 1
SALT_LENGTH: Final = 32
MAX_INDEX_LENGTH: Final = 16 * 2**20  # CBOR index: files and acceptance vectors
MAX_PATH_LENGTH: Final = 1024
MAX_COMPONENT_LENGTH: Final = 255  # NAME_MAX of every Linux file system
MAX_PATH_DEPTH: Final = 16
MODES: Final = (0o644, 0o755)  # as git: a regular file, executable or not; no link, device or setuid bit can be said
CODEC_RAW, CODEC_ZSTD, CODEC_GROUPED, CODEC_RESIDUAL = range(4)
WIDTHS: Final = (1, 2, 4, 8)
FLAG_ALTERNATE: Final = 1

_HEADER: Final = struct.Struct(">4sBBHQ32s")
_RECORD: Final = struct.Struct(">32s32s32sIIBBH")
_BASE: Final = struct.Struct(">32s76s")
RECORD_LENGTH: Final = _RECORD.size
_INDEX_PREFIX: Final = 4
_KEY_LABEL: Final = b"edgeseal/table/v1"

_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of a file and the chunk that holds it.

    `base` is set on alternates only: the SHA-256 of the plaintext piece that a residual is added to.
    """

    stored_sha256: bytes
    key: bytes = field(repr=False)
    plain_sha256: bytes
    plain_length: int
    stored_length: int
    codec: int
    width: int
    base: bytes | None = None

    def to_bytes(self) -> bytes:
        """Return 108 bytes, or 216 for an alternate: the record and its base slot."""
        flags = 0 if self.base is None else FLAG_ALTERNATE
        record = _RECORD.pack(
            self.stored_sha256,
            self.key,
            self.plain_sha256,
            self.plain_length,
            self.stored_length,
            self.codec,
            self.width,
            flags,
        )
        return record if self.base is None else record + _BASE.pack(self.base, b"")

    def check(self) -> None:
        """Raise FormatError for a length, codec or width out of bounds, IncompatibleError for an unknown codec."""
        _check_fields(self.plain_length, self.stored_length, self.codec, self.width, alternate=self.base is not None)


class FileEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file: pieces `first_record` … `first_record + n_records - 1` of the table, in order."""

    path: str
    size: _Size
    mode: int
    sha256: _Hash
    first_record: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    n_records: Annotated[int, msgspec.Meta(ge=1, le=2**32)]


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    files: Annotated[list[FileEntry], msgspec.Meta(min_length=1)]
    tests: Any


class Records(Sequence[Record]):
    """The plain records of a table, unpacked from its buffer on access."""

    __slots__ = ("_area", "_slots")

    def __init__(self, area: memoryview, slots: array[int] | None) -> None:
        """`slots[i]` is the slot of record i; None when there is no alternate and they are the same."""
        self._area = area
        self._slots = slots

    def __len__(self) -> int:
        return len(self._area) // RECORD_LENGTH if self._slots is None else len(self._slots)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return _record_at(self._area, position if self._slots is None else self._slots[position])


@dataclass(frozen=True, slots=True)
class Table:
    """What the sealed table says.

    `records` are the plain records: `records[f.first_record:][:f.n_records]` are the pieces of file `f`. `alternates`
    maps a record's index to other ways to make the same piece; nothing needs them. `tests` are the acceptance vectors.
    """

    files: Sequence[FileEntry]
    tests: object = field(repr=False)
    records: Sequence[Record]
    alternates: Mapping[int, tuple[Record, ...]] = field(default_factory=dict)

    @property
    def plain_size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    def pieces(self, entry: FileEntry) -> Iterator[Record]:
        """Yield the records of one file in order."""
        for i in range(entry.first_record, entry.first_record + entry.n_records):
            yield self.records[i]

    def chunks(self) -> dict[bytes, int]:
        """Name and stored length of every distinct chunk that the plain records need."""
        return {r.stored_sha256: r.stored_length for r in self.records}

    def to_plaintext(self) -> bytes:
        """Return the bytes under the AEAD: u32be length ‖ CBOR index ‖ records."""
        index = cbor.encode({"files": [list(msgspec.structs.astuple(f)) for f in self.files], "tests": self.tests})
        return b"".join([struct.pack(">I", len(index)), index, *self._slots()])

    def _slots(self) -> Iterator[bytes]:
        for i, record in enumerate(self.records):
            yield record.to_bytes()
            for alternate in self.alternates.get(i, ()):
                yield alternate.to_bytes()


def table_key(ck: bytes, salt: bytes, model: str, release: int) -> bytes:
    """HKDF-SHA256(CK, salt, label ‖ model ‖ u64be release); the fixed-length number ends the info unambiguously."""
    info = _KEY_LABEL + model.encode("ascii") + release.to_bytes(8, "big")
    return HKDF(SHA256(), KEY_LENGTH, salt, info).derive(ck)


def seal_table(table: Table, *, ck: bytes, suite: int, model: str, release: int, salt: bytes) -> bytes:
    """Return the sealed table; `salt` is 32 fresh random bytes.

    Raises what `open_table` would if the table breaks a rule of the format.
    """
    plain = table.to_plaintext()
    parse_plaintext(plain)  # one set of rules for both directions
    header = _HEADER.pack(MAGIC, FORMAT, suite, 0, len(plain), salt)
    return header + aead_encrypt(suite, table_key(ck, salt, model, release), header, plain)


def open_table(data: bytes | memoryview, *, ck: bytes, suite: int, model: str, release: int) -> Table:
    """Inverse of `seal_table`; `suite`, `model` and `release` are what the signed manifest says.

    Raises FormatError, IncompatibleError for a newer format, IntegrityError for a wrong key or changed bytes.
    """
    salt = _check_header(data, suite)
    view = memoryview(data)
    plain = bytearray(len(view) - _HEADER.size - TAG_LENGTH)
    aead = known_suite(suite).aead(table_key(ck, salt, model, release))
    try:
        aead.decrypt_into(NONCE, view[_HEADER.size :], view[: _HEADER.size], plain)
    except InvalidTag:
        raise IntegrityError(
            f"the table of {model} release {release} does not open with this content key",
            hint="the key belongs to another release, or the table was changed",
        ) from None
    return parse_plaintext(plain)


def open_pinned(data: bytes | memoryview, manifest: Manifest, *, ck: bytes) -> Table:
    """Open the table that a verified manifest pins, and hold it against everything the manifest says about it.

    The caller has checked `ck` against the manifest's commitment (edgeseal.contentkey).
    """
    if len(data) != manifest.table_length or hashlib.sha256(data).digest() != manifest.table_sha256:
        raise IntegrityError(
            f"the table of {manifest.model} release {manifest.release} is not the one its manifest names: "
            f"{len(data)} bytes, expected {manifest.table_length} bytes with SHA-256 {manifest.table_sha256.hex()}"
        )
    table = open_table(data, ck=ck, suite=manifest.suite, model=manifest.model, release=manifest.release)
    for what, found, promised in (
        ("files", table.plain_size, manifest.plain_size),
        ("chunks", sum(table.chunks().values()), manifest.stored_size),
    ):
        if found != promised:
            raise IntegrityError(f"the table's {what} add up to {found} bytes, the manifest says {promised}")
    return table


def parse_plaintext(plain: bytes | bytearray) -> Table:
    """Inverse of `Table.to_plaintext`; keeps `plain`, copies only the index.

    Raises FormatError and IncompatibleError.
    """
    view = memoryview(plain).toreadonly()
    index, area = _split(view)
    files, tests = _read_index(bytes(index))
    lengths, slots, alternates = _read_records(area)
    _check_files(files, lengths)
    return Table(files, tests, Records(area, slots if alternates else None), alternates)


def _check_header(data: bytes | memoryview, suite: int) -> bytes:
    """Return the salt. Nothing here is authentic yet, but the header is the AEAD's associated data."""
    shortest = _HEADER.size + _INDEX_PREFIX + 1 + RECORD_LENGTH + TAG_LENGTH
    if not shortest <= len(data) <= MAX_TABLE_LENGTH:
        raise FormatError(f"sealed table of {len(data)} bytes; allowed are {shortest} to {MAX_TABLE_LENGTH}")
    magic, number, found, flags, length, salt = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("not a sealed table: it does not start with ESTB")
    if number != FORMAT or flags:
        raise IncompatibleError(
            f"sealed table of format {number} with flags {flags:#x}; this version reads format {FORMAT}, no flags",
            hint="update edgeseal on this machine",
        )
    if found != suite:
        raise IntegrityError(f"sealed table of suite {found}; the manifest says suite {suite}")
    if length != len(data) - _HEADER.size - TAG_LENGTH:
        raise FormatError(f"sealed table of {len(data)} bytes says that {length} bytes are sealed in it")
    return bytes(salt)


def _split(view: memoryview) -> tuple[memoryview, memoryview]:
    """Return index and record area; everything is bounded by the bytes that are there before anything is made."""
    if len(view) < _INDEX_PREFIX:
        raise FormatError("table shorter than its first field")
    length = int.from_bytes(view[:_INDEX_PREFIX], "big")
    area = len(view) - _INDEX_PREFIX - length
    if length > MAX_INDEX_LENGTH or area < RECORD_LENGTH or area % RECORD_LENGTH:
        raise FormatError(
            f"table of {len(view)} bytes with an index of {length}: the rest is not one or more records "
            f"of {RECORD_LENGTH} bytes, or the index is longer than {MAX_INDEX_LENGTH}"
        )
    return view[_INDEX_PREFIX:-area], view[-area:]


def _read_index(data: bytes) -> tuple[tuple[FileEntry, ...], object]:
    value = cbor.decode(data, max_length=MAX_INDEX_LENGTH)
    try:
        index = msgspec.convert(value, _Index, strict=True)
    except msgspec.ValidationError as e:
        raise FormatError(f"table index: {e}") from e
    return tuple(index.files), index.tests


def _read_records(area: memoryview) -> tuple[array[int], array[int], dict[int, tuple[Record, ...]]]:
    """Check every record; return plain lengths and slots of the plain records, and the alternates by record index."""
    lengths, slots = array("I"), array("I")
    alternates: dict[int, tuple[Record, ...]] = {}
    total, slot = len(area) // RECORD_LENGTH, 0
    while slot < total:
        *_, plain_length, stored_length, codec, width, flags = _RECORD.unpack_from(area, slot * RECORD_LENGTH)
        if flags & ~FLAG_ALTERNATE:
            raise FormatError(f"table record {slot} has unknown flags {flags:#06x}")
        _check_fields(plain_length, stored_length, codec, width, alternate=bool(flags))
        if flags:
            alternate = _read_alternate(area, slot, slots)
            alternates[len(slots) - 1] = (*alternates.get(len(slots) - 1, ()), alternate)
            slot += 2
        else:
            slots.append(slot)
            lengths.append(plain_length)
            slot += 1
    return lengths, slots, alternates


def _read_alternate(area: memoryview, slot: int, slots: array[int]) -> Record:
    """Read an alternate: it stands behind the plain record of the same piece, and its base slot follows it."""
    if not slots or (slot + 2) * RECORD_LENGTH > len(area):
        raise FormatError("a table's alternate record has no plain record before it or no base slot after it")
    plain = _record_at(area, slots[-1])
    base, rest = _BASE.unpack_from(area, (slot + 1) * RECORD_LENGTH)
    if any(rest):
        raise FormatError("the unused bytes of a table's base slot are not zero")
    alternate = _record_at(area, slot, base)
    if (alternate.plain_sha256, alternate.plain_length) != (plain.plain_sha256, plain.plain_length):
        raise FormatError("a table's alternate record makes another piece than the plain record before it")
    return alternate


def _record_at(area: memoryview, slot: int, base: bytes | None = None) -> Record:
    stored, key, plain, plain_length, stored_length, codec, width, _ = _RECORD.unpack_from(area, slot * RECORD_LENGTH)
    return Record(stored, key, plain, plain_length, stored_length, codec, width, base)


def _check_fields(plain_length: int, stored_length: int, codec: int, width: int, *, alternate: bool) -> None:
    if codec > CODEC_RESIDUAL:
        raise IncompatibleError(
            f"a chunk with codec {codec}; this version knows 0 to {CODEC_RESIDUAL}",
            hint="update edgeseal on this machine",
        )
    # Only a residual has a base, and only an alternate names one: the plain record always stands by itself.
    if alternate != (codec == CODEC_RESIDUAL):
        raise FormatError(f"a table's {'alternate' if alternate else 'plain'} record has codec {codec}")
    if width not in WIDTHS:
        raise FormatError(f"a chunk's element width is {width}; allowed are 1, 2, 4 and 8")
    if not 1 <= plain_length <= CHUNK_MAX:
        raise FormatError(f"a piece of {plain_length} bytes; allowed are 1 to {CHUNK_MAX}")
    # A publisher keeps a compressed frame only if it is smaller, so none is longer than the raw one.
    shortest = plain_length + TAG_LENGTH if codec == CODEC_RAW else TAG_LENGTH + 1
    if not shortest <= stored_length <= plain_length + TAG_LENGTH:
        raise FormatError(f"a chunk of {stored_length} stored bytes for a piece of {plain_length} with codec {codec}")


def _check_files(files: Sequence[FileEntry], lengths: array[int]) -> None:
    """Hold the files against the records: they take all of them in order, no gap, no overlap, and sizes add up."""
    following = 0
    for entry in files:
        check_path(entry.path)
        if entry.mode not in MODES:
            raise FormatError(f"{entry.path}: file mode {entry.mode:#o}; allowed are 0o644 and 0o755")
        if entry.first_record != following or entry.n_records > len(lengths) - following:
            raise FormatError(f"{entry.path}: its records overlap another file's, leave a gap, or are not there")
        following += entry.n_records
        size = sum(lengths[entry.first_record : following])
        if size != entry.size:
            raise FormatError(f"{entry.path}: {entry.size} bytes, but its pieces add up to {size}")
    if following != len(lengths):
        raise FormatError(f"a table with {len(lengths)} records, of which its files use {following}")
    check_paths(entry.path for entry in files)


def check_path(path: str) -> None:
    """Raise FormatError unless `path` is relative, plain and stays below the directory it is joined to."""
    components = path.split("/")
    if (
        len(path.encode()) > MAX_PATH_LENGTH
        or len(components) > MAX_PATH_DEPTH
        or any(c in {"", ".", ".."} or len(c.encode()) > MAX_COMPONENT_LENGTH for c in components)
        or any(ord(c) < 0x20 or c in "\\\x7f" for c in path)  # noqa: PLR2004 - the control characters of ASCII
    ):
        raise FormatError(
            f"file path {path[:120]!r} is not allowed",
            hint="relative, '/' between the parts, no '.', '..', backslash or control character",
        )


def check_paths(paths: Iterable[str]) -> None:
    """Raise FormatError if two paths cannot exist together: the same one twice, or a file that is also a directory."""
    # Sorted part by part, whatever lies below a path stands right behind it.
    split = sorted(path.split("/") for path in paths)
    for one, other in pairwise(split):
        if other[: len(one)] == one:
            raise FormatError(f"file path {'/'.join(other)!r} is there twice or lies below another file")

"""The manifest: the small public file, pinned by signed TUF metadata, that binds one release of one model together.

Deterministic CBOR, at most 64 KiB (docs/spec/bundle.md). It names the sealed table by hash and commits to the content
key that opens it. It carries no plaintext hash: that would let anybody confirm a guessed model.

Not here: who signed it (edgeseal.trust) and what the table says (edgeseal.table).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, TypeVar, cast

import msgspec

from edgeseal import cbor
from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.names import check_model_name
from edgeseal.suite import suite as known_suite

FORMAT: Final = 1
MAX_MANIFEST_LENGTH: Final = 64 * 1024
MAX_TABLE_LENGTH: Final = (
    32 * 2**20
)  # a device holds the table in memory; at 108 bytes per MiB this is 290 GiB of model
MAX_RELEASE: Final = 2**63 - 1  # SQLite and JSON readers keep signed 64-bit integers
MAX_HINTS: Final = 16
CHUNK_MAX: Final = 2**20

S = TypeVar("S", bound=msgspec.Struct)

_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Release = Annotated[int, msgspec.Meta(ge=1, le=MAX_RELEASE)]


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Types and bounds of the map's values in the order of its keys 0..11."""

    format: int
    model: str
    release: _Release
    suite: int
    ck_commitment: _Hash
    table: dict[int, int | bytes]
    plain_size: _Size
    stored_size: _Size
    chunk_max: int
    requirements: dict[str, object]
    hints: Annotated[list[_Hash], msgspec.Meta(max_length=MAX_HINTS)]
    provenance: dict[str, object]


class _TableReference(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    sha256: _Hash
    length: Annotated[int, msgspec.Meta(ge=1, le=MAX_TABLE_LENGTH)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One release of one model.

    `plain_size`: bytes of all files. `stored_size`: bytes of all distinct chunks as stored, without the table.
    `hints`: table hashes of earlier releases whose chunks are worth looking for on the device.
    """

    model: str
    release: int
    suite: int
    ck_commitment: bytes
    table_sha256: bytes
    table_length: int
    plain_size: int
    stored_size: int
    chunk_max: int = CHUNK_MAX
    requirements: dict[str, object] = field(default_factory=dict)
    hints: list[bytes] = field(default_factory=list)
    provenance: dict[str, object] = field(default_factory=dict)

    @property
    def target_path(self) -> str:
        """Where TUF lists this manifest (trust.md)."""
        return f"models/{self.model}/{self.release}.cbor"

    def to_bytes(self) -> bytes:
        """Return the one encoding; raises what `from_bytes` would if a field is out of bounds."""
        values = (
            FORMAT,
            self.model,
            self.release,
            self.suite,
            self.ck_commitment,
            {0: self.table_sha256, 1: self.table_length},
            self.plain_size,
            self.stored_size,
            self.chunk_max,
            self.requirements,
            self.hints,
            self.provenance,
        )
        data = cbor.encode(dict(enumerate(values)))
        Manifest.from_bytes(data)  # one set of rules for both directions
        return data

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Inverse of `to_bytes`.

        Raises FormatError for anything the format does not allow, IncompatibleError for a newer format, an unknown
        suite or another chunk size.
        """
        value = cbor.decode(data, max_length=MAX_MANIFEST_LENGTH)
        if not isinstance(value, dict):
            raise FormatError("manifest: expected a CBOR map")
        entries = cast("dict[object, object]", value)
        _check_format(entries.get(0))
        if list(entries) != list(range(len(_Wire.__struct_fields__))):
            raise FormatError("manifest: expected exactly the keys 0 to 11")
        wire = _convert(list(entries.values()), _Wire)
        return _from_wire(wire)


def _check_format(number: object) -> None:
    """Look at the number first: a newer format may differ in everything else."""
    if type(number) is not int or number < 1:
        raise FormatError("manifest: key 0 must be the format number")
    if number != FORMAT:
        raise IncompatibleError(
            f"manifest format {number}; this version reads format {FORMAT}", hint="update edgeseal on this machine"
        )


def _convert(value: object, schema: type[S]) -> S:
    try:
        return msgspec.convert(value, schema, strict=True)
    except msgspec.ValidationError as e:
        raise FormatError(f"manifest: {e}") from e


def _from_wire(wire: _Wire) -> Manifest:
    if list(wire.table) != [0, 1]:
        raise FormatError("manifest: key 5 must be the map {0: sha256, 1: length} of the table")
    table = _convert(list(wire.table.values()), _TableReference)
    check_model_name(wire.model)
    known_suite(wire.suite)
    if wire.chunk_max != CHUNK_MAX:
        raise IncompatibleError(
            f"manifest: pieces of up to {wire.chunk_max} bytes; this version uses {CHUNK_MAX}",
            hint="update edgeseal on this machine",
        )
    if len(set(wire.hints)) != len(wire.hints):
        raise FormatError("manifest: the same earlier table is named twice")
    return Manifest(
        model=wire.model,
        release=wire.release,
        suite=wire.suite,
        ck_commitment=wire.ck_commitment,
        table_sha256=table.sha256,
        table_length=table.length,
        plain_size=wire.plain_size,
        stored_size=wire.stored_size,
        chunk_max=wire.chunk_max,
        requirements=wire.requirements,
        hints=wire.hints,
        provenance=wire.provenance,
    )

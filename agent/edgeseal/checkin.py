"""What a device and its fleet server say inside X1: the device's report up, orders and content keys down.

A report is a complete statement, never a delta: a lost reply makes the device say it again (docs/spec/session.md §7).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from edgeseal import cbor
from edgeseal.contentkey import CK_LENGTH
from edgeseal.errors import IncompatibleError
from edgeseal.session.messages import MAX_REPLY_BODY, MAX_REQUEST_BODY

FORMAT: Final = 1
MAX_MODELS: Final = 32  # per device: keeps report and orders inside one padded message
MAX_SOURCES: Final = 8  # noise sources of one device

Text = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class ModelState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a device runs of one model: `state` is active, fetched, failed, rolled-back or none.

    `gate` are the figures with which the release passed the acceptance gate there, in words.
    """

    release: Count
    state: Text
    gate: Annotated[str, msgspec.Meta(max_length=128)] = ""


class Failure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A release this device did not activate, and why."""

    model: Text
    release: Count
    reason: Annotated[str, msgspec.Meta(max_length=512)]


class SourceHealth(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a device's noise source is (edgeseal.entropy.snapshot): `qcnr_db` is None where it cannot be measured."""

    name: Text
    state: Text
    source_class: Text
    evidence: Text
    reason: Text
    qcnr_db: float | None
    alarms: Count
    bytes_mixed: Count


class Report(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A device's whole state. Sizes in bytes; `metadata` are TUF role versions; `entropy` the record of sources.

    `problem` says why metadata are refused or a release could not be restored, empty if neither is so. `sources` are
    the configured noise sources.
    """

    format: int
    agent: Text
    hardware: Text
    runtimes: Annotated[list[Text], msgspec.Meta(max_length=16)]
    models: Annotated[dict[str, ModelState], msgspec.Meta(max_length=MAX_MODELS)]
    failed: Annotated[list[Failure], msgspec.Meta(max_length=8)]
    metadata: Annotated[dict[str, Count], msgspec.Meta(max_length=64)]
    entropy: Annotated[dict[str, str], msgspec.Meta(max_length=16)]
    free_disk: Count
    free_ram: Count
    problem: Text = ""
    sources: Annotated[list[SourceHealth], msgspec.Meta(max_length=MAX_SOURCES)] = []

    def to_bytes(self) -> bytes:
        """Deterministic CBOR map, keys 0.. in the order of the fields."""
        return cbor.encode(cbor.to_map(self))

    @staticmethod
    def from_bytes(data: bytes) -> Report:
        """Inverse of `to_bytes`.

        Raises FormatError; IncompatibleError for a newer format.
        """
        return _known(cbor.decode_map(data, Report, max_length=MAX_REQUEST_BODY, what="device report"))


class Assignment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which release a device shall run: the manifest's TUF target path, SHA-256 and length.

    The device trusts none of it: it takes path and hash only if its own verified TUF metadata say the same.
    """

    model: Text
    path: Text
    sha256: Hash
    length: Count
    release: Count
    not_after: Count


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A content key for one release, to be dropped at `not_after` (Unix seconds)."""

    model: Text
    release: Count
    ck: Annotated[bytes, msgspec.Meta(min_length=CK_LENGTH, max_length=CK_LENGTH)]
    not_after: Count

    def __repr__(self) -> str:
        """Never the key."""
        return f"Grant(model={self.model!r}, release={self.release})"


class Orders(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a device shall run, keys for it, and how often to poll and to report (seconds)."""

    format: int
    assignments: Annotated[list[Assignment], msgspec.Meta(max_length=MAX_MODELS)]
    keys: Annotated[list[Grant], msgspec.Meta(max_length=MAX_MODELS)]
    poll_seconds: Count
    report_seconds: Count

    def to_bytes(self) -> bytes:
        """Deterministic CBOR map, keys 0.. in the order of the fields."""
        return cbor.encode(cbor.to_map(self))

    @staticmethod
    def from_bytes(data: bytes) -> Orders:
        """Inverse of `to_bytes`.

        Raises FormatError; IncompatibleError for a newer format.
        """
        return _known(cbor.decode_map(data, Orders, max_length=MAX_REPLY_BODY, what="fleet orders"))


M = TypeVar("M", Report, Orders)


def _known(message: M) -> M:
    if message.format != FORMAT:
        raise IncompatibleError(f"check-in format {message.format}; this version speaks {FORMAT}")
    return message

"""What the key store's slots hold (edgeseal.keystore): the records, and nothing about how they are sealed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self, TypeVar

import msgspec

from edgeseal import cbor
from edgeseal.contentkey import CK_LENGTH
from edgeseal.errors import FormatError
from edgeseal.session.device import Generation, Identity

FORMAT: Final = 1

Lines = Annotated[list[str], msgspec.Meta(max_length=16)]
S = TypeVar("S", bound=msgspec.Struct)


class StoredIdentity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An identity with what enrolment brought: k_rng, and the record of every seed's sources."""

    format: int
    device: str
    current: list[Any]
    former: list[Any] | None
    ceiling: Annotated[int, msgspec.Meta(ge=0)]
    resynced: bool
    refusals: Annotated[int, msgspec.Meta(ge=0)]
    k_rng: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    sources: dict[str, Lines]

    def __repr__(self) -> str:
        """Never a secret."""
        return f"StoredIdentity(device={self.device!r})"

    @classmethod
    def make(cls, identity: Identity, *, k_rng: bytes, sources: dict[str, list[str]]) -> Self:
        """Put together what is stored."""
        return cls(
            FORMAT,
            identity.device,
            _generation_list(identity.current),
            None if identity.former is None else _generation_list(identity.former),
            identity.ceiling,
            identity.resynced,
            identity.refusals,
            k_rng,
            sources,
        )

    def identity(self) -> Identity:
        """Return the identity. Raises FormatError."""
        return Identity(
            device=self.device,
            current=_generation(self.current),
            former=None if self.former is None else _generation(self.former),
            ceiling=self.ceiling,
            resynced=self.resynced,
            refusals=self.refusals,
        )


class _Generation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    suite: int
    seed: bytes
    psk: bytes
    accepted_at: int | None
    provisioned: bool


class Pending(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A key pair that waits for its enrolment grant."""

    format: int
    suite: int
    seed: bytes
    sources: Lines
    hardware: Annotated[int, msgspec.Meta(ge=0)] = 0  # healthy hardware sources that took part

    def __repr__(self) -> str:
        """Never the seed."""
        return f"Pending(suite={self.suite})"


class Provenance(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which station made this device what it is, and what its key was drawn from (edgeseal.provisioning).

    `grant` is the SHA-384 of the sealed grant, `pin` names the key that may authorise a factory reset.
    """

    format: int
    kid: bytes
    grant: bytes
    receipt: bytes
    pin: bytes
    station: str
    batch: str
    hardware: Annotated[int, msgspec.Meta(ge=0)]
    sources: Lines


class ContentKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A content key held, to be dropped at `not_after` (Unix seconds)."""

    model: str
    release: Annotated[int, msgspec.Meta(ge=1)]
    ck: Annotated[bytes, msgspec.Meta(min_length=CK_LENGTH, max_length=CK_LENGTH)]
    not_after: Annotated[int, msgspec.Meta(ge=0)]

    def __repr__(self) -> str:
        """Never the key."""
        return f"ContentKey(model={self.model!r}, release={self.release})"


class ContentKeys(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All content keys held."""

    format: int
    keys: list[ContentKey]


def _generation_list(generation: Generation) -> list[Any]:
    return [
        generation.suite,
        generation.seed,
        generation.psk,
        generation.accepted_at,
        generation.provisioned,
    ]


def _generation(values: list[Any]) -> Generation:
    try:
        wire = msgspec.convert(values, _Generation, strict=True)
    except msgspec.ValidationError as e:
        raise FormatError(f"identity: {e}") from e
    return Generation(wire.suite, wire.seed, wire.psk, wire.accepted_at, wire.provisioned)


def decode(payload: bytes, schema: type[S], what: str) -> S:
    """Read one record. Raises FormatError."""
    return cbor.decode_map(payload, schema, max_length=2**20, what=what)

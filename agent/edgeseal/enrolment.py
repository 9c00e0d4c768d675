"""How a device gets its place in a fleet: request, grant and record (docs/spec/session.md, "Enrolment").

    device      -> workstation   Request  its public key and who it is; nothing secret
    workstation -> device        Grant    PSK, k_rng, fleet and TUF root, sealed to the device's public key
    workstation -> fleet server  Record   public key and PSK, the PSK sealed to the server's enrolment key

The device's private key never leaves it; opening the grant proves that the device holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Self

import msgspec

from edgeseal import cbor
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError
from edgeseal.session.messages import KID_LENGTH, PSK_LENGTH, t
from edgeseal.suite import SUITES, PrivateKey, PublicKey

if TYPE_CHECKING:
    from edgeseal.session.server import Ring

FORMAT: Final = 1
MAX_REQUEST: Final = 8_192
MAX_GRANT: Final = 1_048_576  # a root with many ML-DSA keys is 30 KB; tuf itself allows 512 KB
MAX_RECORD: Final = 16_384

Text = Annotated[str, msgspec.Meta(max_length=256)]
DeviceId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
SuiteNumber = Annotated[int, msgspec.Meta(ge=1, le=255)]
Psk = Annotated[bytes, msgspec.Meta(min_length=PSK_LENGTH, max_length=PSK_LENGTH)]


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a fresh device tells about itself."""

    format: int
    suite: SuiteNumber
    public: Annotated[bytes, msgspec.Meta(max_length=4096)]
    serial: Text
    hardware: Text
    agent: Text
    entropy: Annotated[list[Text], msgspec.Meta(max_length=16)]

    def to_bytes(self) -> bytes:
        """Deterministic CBOR map, keys 0.. in the order of the fields."""
        return cbor.encode(cbor.to_map(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of `to_bytes`, with a public key that loads.

        Raises FormatError; IncompatibleError for a newer format or suite.
        """
        request = cbor.decode_map(data, cls, max_length=MAX_REQUEST, what="enrolment request")
        _require_known(request.format)
        PublicKey(request.suite, request.public)
        return request


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that a device needs to know; travels sealed. `time_floor` in Unix seconds."""

    format: int
    device: DeviceId
    suite: SuiteNumber
    psk: Psk
    k_rng: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    fleet_url: Text
    root: bytes
    time_floor: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

    def __repr__(self) -> str:
        """Never the secrets."""
        return f"Grant(device={self.device!r}, suite={self.suite}, fleet_url={self.fleet_url!r})"

    def seal(self, device: PublicKey) -> bytes:
        """u8 format ‖ kid_D ‖ Seal(pk_D, T("grant", pk_D), CBOR)."""
        plain = cbor.encode(cbor.to_map(self))
        return bytes([FORMAT]) + device.kid + device.seal(t(b"grant", device.raw), plain)

    @classmethod
    def open(cls, device: PrivateKey, sealed: bytes) -> Self:
        """Inverse of `seal`.

        Raises IntegrityError if the grant was made for another device's request, FormatError, IncompatibleError.
        """
        if not 1 + KID_LENGTH < len(sealed) <= MAX_GRANT:
            raise FormatError(f"enrolment grant of {len(sealed)} bytes is truncated or too large")
        _require_known(sealed[0])
        if sealed[1 : 1 + KID_LENGTH] != device.public.kid:
            raise IntegrityError(
                "this enrolment grant was made for another device's request",
                hint="give the workstation this device's own request file",
            )
        plain = device.open(t(b"grant", device.public.raw), sealed[1 + KID_LENGTH :])
        grant = cbor.decode_map(plain, cls, max_length=MAX_GRANT, what="enrolment grant")
        _require_known(grant.format)
        if grant.suite != device.suite.number:
            raise FormatError(f"enrolment grant is for suite {grant.suite}, the device has {device.suite.number}")
        return grant


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the registry keeps of a device; the PSK travels sealed."""

    format: int
    device: DeviceId
    serial: Text
    hardware: Text
    group: Text
    suite: SuiteNumber
    public: Annotated[bytes, msgspec.Meta(max_length=4096)]
    enrol_suite: SuiteNumber
    enrol_kid: Annotated[bytes, msgspec.Meta(min_length=KID_LENGTH, max_length=KID_LENGTH)]
    sealed_psk: Annotated[bytes, msgspec.Meta(max_length=4096)]

    @classmethod
    def make(
        cls, *, device: str, serial: str, hardware: str, group: str, key: PublicKey, psk: bytes, enrol: PublicKey
    ) -> Self:
        """Build a record with `psk` sealed to the fleet server's enrolment key `enrol`."""
        sealed = enrol.seal(_psk_label(device, key.raw), psk)
        return cls(
            FORMAT, device, serial, hardware, group, key.suite.number, key.raw, enrol.suite.number, enrol.kid, sealed
        )

    def to_bytes(self) -> bytes:
        """Deterministic CBOR map, keys 0.. in the order of the fields."""
        return cbor.encode(cbor.to_map(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of `to_bytes`, with a public key that loads.

        Raises FormatError; IncompatibleError for a newer format or suite.
        """
        record = cbor.decode_map(data, cls, max_length=MAX_RECORD, what="enrolment record")
        _require_known(record.format)
        PublicKey(record.suite, record.public)
        return record

    def psk(self, ring: Ring) -> bytes:
        """Open the sealed PSK with the enrolment key it names.

        Raises IntegrityError for an unknown key, or a PSK sealed for another device.
        """
        key = ring.get((self.enrol_suite, self.enrol_kid)) if self.enrol_suite in SUITES else None
        if key is None:
            raise IntegrityError(
                "the enrolment record is sealed to a key this fleet server does not have",
                hint="enrol with this fleet's current public.json",
            )
        psk = key.open(_psk_label(self.device, self.public), self.sealed_psk)
        if len(psk) != PSK_LENGTH:
            raise FormatError(f"PSK of {len(psk)} bytes; {PSK_LENGTH} are needed")
        return psk


def _psk_label(device: str, public: bytes) -> bytes:
    """Bind the PSK to its device and key: a record cannot be cut up and recombined."""
    return t(b"enrol", device.encode(), public)


def _require_known(format_: int) -> None:
    if format_ != FORMAT:
        raise IncompatibleError(f"enrolment format {format_}; this version reads {FORMAT}", hint="update edgeseal")

"""What a station gives, what it must remember, and what it asks of whoever remembers (docs/spec/provisioning.md §6).

An `Offer` is everything about one device that outlives a dialogue: the grant sealed to the device, the record sealed to
the fleet server, the commitment to the device's receipt. Nothing in it is secret to its reader.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

import msgspec

from edgeseal.enrolment import FORMAT as GRANT_FORMAT
from edgeseal.enrolment import DeviceId, Grant, Record, SuiteNumber, Text
from edgeseal.errors import FormatError, IntegrityError
from edgeseal.provisioning import transcript
from edgeseal.provisioning.messages import STATION_ID_LENGTH, Board, Digest, Identity, Package, _Message
from edgeseal.provisioning.verdict import Code, RefusalError
from edgeseal.session.messages import PSK_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgeseal.suite import PublicKey

K_RNG_LENGTH: Final = 32
ROOT_DIGEST: Final = 48
MAX_ROOT: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class Order:
    """What a batch wants of every device.

    `hardware` names the boards allowed (empty: any); `pin` is `transcript.pin` of the station's ML-DSA-65 public key;
    `root` the TUF root.json, checked by the caller; `floors` the lowest version per TUF role; `time_floor` in Unix
    seconds. `carried` only where the device is a file (edgeseal.provisioning.carried).
    """

    batch: str
    suite: int
    policy: Literal["mix", "require"]
    hardware: tuple[str, ...]
    station: str
    pin: bytes
    fleet_url: str
    root: bytes
    enrol: PublicKey
    time_floor: int
    floors: Mapping[str, int] = field(default_factory=dict)
    carried: bool = False

    @property
    def station_id(self) -> bytes:
        """First 16 bytes of the pin."""
        return self.pin[:STATION_ID_LENGTH]

    @property
    def root_digest(self) -> bytes:
        """What a sealed grant has in place of the root."""
        return hashlib.sha384(self.root).digest()


@dataclass(frozen=True, slots=True)
class Place:
    """The name and group of a device that is new."""

    device: str
    group: str = ""


class Offer(_Message, frozen=True):
    """One device's grant and record, durable before the grant leaves the station. `floors` and root are the batch's."""

    format: int
    device: DeviceId
    group: Text
    batch: Text
    serial: Text
    suite: SuiteNumber
    kid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    sealed: Annotated[bytes, msgspec.Meta(max_length=1_048_576)]
    record: Annotated[bytes, msgspec.Meta(max_length=16_384)]
    commitment: Digest
    root: Digest

    def accepts(self, receipt: bytes) -> bool:
        """Whether `receipt` shows that its maker opened this grant."""
        return hmac.compare_digest(transcript.commitment(receipt), self.commitment)


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A device that confirmed. `again` says that it had done so before, `carried` that nothing was proven."""

    offer: Offer
    identity: Identity
    again: bool = False
    carried: bool = False

    @property
    def board(self) -> Board:
        """Serial numbers of the board."""
        return self.identity.board


class Book(Protocol):
    """A station's memory. Each call returns when what it was told is durable; RefusalError stops the device."""

    def admit(self, identity: Identity) -> Place | Offer:
        """Name a device that proved its key, or return the offer made to this very key before.

        Raises RefusalError: a key or serial number seen before, a device nobody expects.
        """

    def granted(self, offer: Offer, identity: Identity) -> None:
        """Keep the offer: the grant leaves next. Called once for each new offer.

        Where several stations share one memory, this is where a key that another one has taken meanwhile is refused.
        """

    def provisioned(self, result: Provisioned) -> None:
        """Note that the device has confirmed; called again if it confirms again."""

    def locked(self, result: Provisioned) -> None:
        """Note that the device answers no station any more."""

    def finished(self, serial: str) -> bool:
        """Whether the device of this serial number was provisioned here. Unproven: good for a message, no more."""


def make_offer(order: Order, place: Place, identity: Identity, *, random: Callable[[int], bytes]) -> Offer:
    """Make PSK and k_rng, and forget them: they leave sealed to the device and to the fleet server only.

    Raises RefusalError for a name or group no device can have.
    """
    asked, key = identity.asked, identity.key
    psk, k_rng = random(PSK_LENGTH), random(K_RNG_LENGTH)
    root = order.root if order.carried else order.root_digest
    grant = Grant(GRANT_FORMAT, place.device, asked.suite, psk, k_rng, order.fleet_url, root, order.time_floor)
    sealed = grant.seal(key)
    record = Record.make(
        device=place.device,
        serial=asked.serial,
        hardware=asked.hardware,
        group=place.group,
        key=key,
        psk=psk,
        enrol=order.enrol,
    ).to_bytes()
    _check_record(record)
    return Offer(
        format=GRANT_FORMAT,
        device=place.device,
        group=place.group,
        batch=order.batch,
        serial=asked.serial,
        suite=asked.suite,
        kid=key.kid,
        sealed=sealed,
        record=record,
        commitment=transcript.commitment(transcript.receipt(key.raw, sealed, psk)),
        root=order.root_digest,
    )


def _check_record(record: bytes) -> None:
    """Read the record by the fleet server's own rules, before anything of it is kept."""
    try:
        Record.from_bytes(record)
    except FormatError as e:
        raise RefusalError(
            Code.OPERATOR,
            f"this cannot be registered: {e.message}",
            remedy="names have 1 to 64 of a-z 0-9 . _ -, first a letter or digit; texts at most 256 characters",
        ) from e


def pack(order: Order, offer: Offer) -> Package:
    """Return what a grant message carries."""
    root = zlib.compress(order.root, 9)
    return Package(offer.sealed, root, order.pin, order.station, order.batch, dict(order.floors))


def unpack_root(package: Package, grant: Grant) -> bytes:
    """Return the TUF root that the sealed grant names.

    Raises FormatError for a deflated bomb, IntegrityError if it is another root.
    """
    inflate = zlib.decompressobj()
    try:
        root = inflate.decompress(package.root, MAX_ROOT)
    except zlib.error as e:
        raise FormatError(f"the TUF root cannot be inflated: {e}") from e
    if not inflate.eof or inflate.unused_data:
        raise FormatError(f"the TUF root is truncated, or larger than {MAX_ROOT} bytes")
    if not hmac.compare_digest(hashlib.sha384(root).digest(), grant.root):
        raise IntegrityError("the TUF root is not the one the grant names")
    return root

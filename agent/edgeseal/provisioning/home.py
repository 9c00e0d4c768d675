"""What the dialogue asks of the device it runs on: who it is, and to keep things. The only door to the disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from edgeseal.enrolment import Grant
    from edgeseal.provisioning.messages import Board, Destroyed, EntropyReport, Package
    from edgeseal.suite import PrivateKey


class Stage(StrEnum):
    """What a device is to the line."""

    FRESH = "fresh"
    PROVISIONED = "provisioned"  # has its identity and still answers the station that gave it
    LOCKED = "locked"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an identity came from: its first key id, the digest of the sealed grant, the receipt, the station's pin."""

    kid: bytes
    grant: bytes
    receipt: bytes
    pin: bytes


class Home(Protocol):
    """A device's durable side. Every method may be called again after a crash at any point of any other."""

    serial: str
    hardware: str
    agent: str
    board: Board

    def stage(self) -> Stage:
        """Return how far this device is."""

    def new_key(self, suite: int, policy: Literal["mix", "require"], host: bytes) -> tuple[PrivateKey, EntropyReport]:
        """Make a key pair from OS, hardware sources and `host` and make it durable; or return the one that waits.

        One that waits and was made without a hardware source does not serve policy `require`.
        Raises RefusalError (ENTROPY).
        """

    def own_key(self) -> tuple[PrivateKey, EntropyReport]:
        """Return the key pair that was provisioned and its report. Raises RefusedError if it is no longer in use."""

    def origin(self) -> Origin | None:
        """Return where the identity came from, None if it was enrolled by hand."""

    def become(self, key: PrivateKey, grant: Grant, root: bytes, package: Package, origin: Origin) -> None:
        """Make the identity durable, in one step that either happened or did not."""

    def lock(self) -> None:
        """Answer no station any more, durably."""

    def destroy(self, last: Destroyed) -> None:
        """Destroy identity, keys, profile and trust so that no cut of the power brings any back; keep `last`."""

    def destroyed(self) -> Destroyed | None:
        """Return what the last factory reset destroyed, if this device is fresh since then."""

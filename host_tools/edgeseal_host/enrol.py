"""Answering a device's enrolment request: the dialogue of the manufacturing line with a file in the device's place.

PSK and k_rng are made by the station's half of that dialogue and leave only sealed, never to be shown. What it made
waits on disk under a hidden name until the registry has the record:

    refused (name or key taken, no right)     it is dropped: nothing has happened
    no answer (network, kill, power cut)      it is kept: the same call sends the same record again
    registered                                the grant gets its name

So no full disk or lost answer leaves a device registered whose PSK nobody has. Not here: talking to a device on a line
or to the fleet server.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.enrolment import Record, Request
from edgeseal.errors import EdgesealError, FormatError, RefusedError, TemporaryError, UsageError
from edgeseal.provisioning import Code, Offer, Order, Place, Provisioned, Station
from edgeseal.provisioning.carried import Carried
from edgeseal.provisioning.messages import PIN_LENGTH
from edgeseal.suite import PublicKey
from edgeseal_host.bundle import read_bounded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.provisioning import Identity
    from edgeseal_host.fleet.public import FleetPublic

MAX_OFFER: Final = 2 * 2**20  # a grant with the largest TUF root, and its record


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One device's place in one fleet; `root` is the first TUF root it will trust, checked by the caller."""

    request: Request
    name: str
    group: str
    fleet: FleetPublic
    root: bytes

    @property
    def key(self) -> PublicKey:
        """The device's public key."""
        return PublicKey(self.request.suite, self.request.public)

    def complete(self, out: Path, register: Callable[[bytes], None], *, now: int) -> None:
        """Write the grant to `out` once `register` has taken the record.

        Raises UsageError for a name or group that no device can have, else what `register` raises.
        """
        waiting = out.with_name(f".{out.name}.{self._digest()}.offer")
        offer = _read_back(waiting)
        if offer is None:
            offer = self._converse(now)
            write_atomic(waiting, offer.to_bytes())
        try:
            register(offer.record)
        except TemporaryError:
            raise
        except EdgesealError:
            waiting.unlink(missing_ok=True)
            raise
        write_atomic(out, offer.sealed)
        waiting.unlink(missing_ok=True)
        fsync_directory(out.parent)

    def _converse(self, now: int) -> Offer:
        """Hold the dialogue with the request in memory; return what the station made."""
        order = Order(
            batch="",
            suite=self.request.suite,
            policy="mix",
            hardware=(),
            station="",
            pin=bytes(PIN_LENGTH),  # no station: nobody can reset this device over a line
            fleet_url=self.fleet.url,
            root=self.root,
            enrol=self.fleet.enrol,
            time_floor=now,
            carried=True,
        )
        book = _OneDevice(Place(self.name, self.group))
        device = Carried(self.request, clock=time.monotonic)
        station = Station(order, book, random=os.urandom, clock=time.monotonic)
        while station.verdict is None:
            device.feed(station.outgoing())
            station.feed(device.outgoing())
        if station.verdict.code is Code.OPERATOR:
            raise UsageError(station.verdict.reason, hint=station.verdict.remedy)
        if station.result is None:
            raise RefusedError(station.verdict.reason, hint=station.verdict.remedy)
        return station.result.offer

    def _digest(self) -> str:
        """Tell one enrolment from another, so that only the very same one is taken up again."""
        texts = (self.name.encode(), self.group.encode(), self.fleet.url.encode())
        parts = (self.request.public, *texts, self.root, self.fleet.enrol.kid)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


class _OneDevice:
    """The station's book of one enrolment: nothing leaves this process before `Enrolment.complete` has kept it."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def admit(self, _identity: Identity) -> Place:
        """Give the name that was asked for."""
        return self._place

    def granted(self, offer: Offer, identity: Identity) -> None:
        """Keep nothing: the offer comes back as the dialogue's result."""

    def provisioned(self, result: Provisioned) -> None:
        """Keep nothing."""

    def locked(self, result: Provisioned) -> None:
        """Never comes: a file is not locked."""

    def finished(self, _serial: str) -> bool:
        """Never asked: a file refuses nothing."""
        return False


def check_record(data: bytes) -> Record:
    """Return the record, read by the server's own rules.

    Raises UsageError for one that no registry would take.
    """
    try:
        return Record.from_bytes(data)
    except FormatError as e:
        raise UsageError(
            f"this cannot be registered: {e.message}", hint="--name: 1 to 64 of a-z 0-9 . _ -, first a letter or digit"
        ) from e


def _read_back(waiting: Path) -> Offer | None:
    """Return what was made for the same enrolment if its answer was lost."""
    return Offer.from_bytes(read_bounded(waiting, MAX_OFFER)) if waiting.exists() else None

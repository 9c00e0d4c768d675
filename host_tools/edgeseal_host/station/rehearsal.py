"""A throw-away station, fleet and batch for simulated devices: a run that needs nothing and that proves nothing.

Nothing of it can be mistaken for production: station, batch, devices and serial numbers have `simulated` in their
names, the fleet's address resolves nowhere (RFC 2606 §2), and the private halves of the fleet's keys are gone before
the first record is sealed to them.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from edgeseal.servers import ServerKey
from edgeseal.suite import PrivateKey, suite
from edgeseal_host.fleet.public import FleetPublic
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.repository.metadata import LIFETIME, TOP_LEVEL, now_utc
from edgeseal_host.station.batch import Batch, What
from edgeseal_host.station.directory import StationDirectory
from edgeseal_host.station.names import Naming
from edgeseal_host.station.simulation import HARDWARE

if TYPE_CHECKING:
    from collections.abc import Iterator

STATION: Final = "simulated station"
URL: Final = "https://simulated.invalid"
PREFIX: Final = "simulated-"
_KEY: Final = "simulated-station"


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """`hardware` is what the simulated devices say they are."""

    directory: StationDirectory
    batch: Batch
    hardware: str

    @property
    def key(self) -> str:
        """Name of the station's key; it has no passphrase."""
        return _KEY


@contextmanager
def rehearsal(batch: Batch | None = None, *, keep: Path | None = None) -> Iterator[Rehearsal]:
    """Make a station for simulated devices, below `keep` or in a directory that is removed at the end.

    With a batch, its names, boards and policies are rehearsed; its fleet is not touched. Raises RefusedError if there
    is a station in `keep`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeseal-simulated-") as temporary:
        place = keep or Path(temporary)
        directory = StationDirectory(place, KeyDirectory(place / "keys"))
        directory.create(STATION, _KEY, None)
        pretended = _pretended(batch or _own_batch())
        yield Rehearsal(directory, pretended, next(iter(pretended.what.hardware), HARDWARE))


def _own_batch() -> Batch:
    what = What(name="batch", entropy="require")
    fleet, root = _fleet(what.suite)
    return Batch(what, Naming("{serial}", what.name), fleet, root, {"root": 1})


def _pretended(batch: Batch) -> Batch:
    """Return the batch with everything in it that could be taken for real replaced."""
    name = f"{PREFIX}{batch.name}"[:128]
    pattern = batch.naming.pattern
    if not pattern.startswith(("{serial}", PREFIX)):  # a simulated serial number begins with the word already
        pattern = PREFIX + pattern
    naming = replace(batch.naming, pattern=pattern, batch=name)
    fleet, root = _fleet(batch.what.suite)
    what = msgspec.structs.replace(batch.what, name=name)
    return Batch(what, naming, fleet, root, {"root": 1})


def _fleet(number: int) -> tuple[FleetPublic, bytes]:
    """Return the public files of a fleet that nobody can run, and its TUF root, signed as a real one is."""
    offline, online = CryptoSigner.generate_mldsa(), CryptoSigner.generate_mldsa()
    kem = PrivateKey(number, os.urandom(suite(number).seed_length)).public
    expires = now_utc() + LIFETIME["root"]
    session = (ServerKey(number, kem.raw, int(expires.timestamp())),)
    fleet = FleetPublic(URL, session, kem, kem, online.public_key, online.public_key)
    root = Root(expires=expires, consistent_snapshot=True)
    for role in TOP_LEVEL:
        root.add_key(offline.public_key if role in {"root", "targets"} else online.public_key, role)
    signed = Metadata(root)
    signed.sign(offline)
    return fleet, signed.to_bytes()

"""Answering a device's enrolment request: PSK and k_rng are made here and leave only sealed, never to be shown.

The grant waits on disk under a hidden name until the registry has the record that goes with it:

    refused (name or key taken, no right)     both are dropped: nothing has happened
    no answer (network, kill, power cut)      both are kept: the same call sends the same record again
    registered                                the grant gets its name

So no full disk or lost answer leaves a device registered whose PSK nobody has. Not here: talking to the device or to
the fleet server.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.enrolment import FORMAT, MAX_RECORD, Grant, Record, Request
from edgeseal.errors import EdgesealError, FormatError, TemporaryError, UsageError
from edgeseal.session.messages import PSK_LENGTH
from edgeseal.suite import PublicKey
from edgeseal_host.bundle import read_bounded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal_host.fleet.public import FleetPublic

K_RNG_LENGTH: Final = 32


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
        grant, record = (out.with_name(f".{out.name}.{self._digest()}.{kind}") for kind in ("grant", "record"))
        data = _read_back(grant, record) or self._make(grant, record, now)
        try:
            register(data)
        except TemporaryError:
            raise
        except EdgesealError:
            grant.unlink(missing_ok=True)
            record.unlink(missing_ok=True)
            raise
        grant.rename(out)
        record.unlink(missing_ok=True)
        fsync_directory(out.parent)

    def _make(self, grant: Path, record: Path, now: int) -> bytes:
        psk, k_rng = os.urandom(PSK_LENGTH), os.urandom(K_RNG_LENGTH)
        asked, key = self.request, self.key
        made = Record.make(
            device=self.name,
            serial=asked.serial,
            hardware=asked.hardware,
            group=self.group,
            key=key,
            psk=psk,
            enrol=self.fleet.enrol,
        ).to_bytes()
        check_record(made)
        sealed = Grant(FORMAT, self.name, asked.suite, psk, k_rng, self.fleet.url, self.root, now).seal(key)
        write_atomic(grant, sealed)
        write_atomic(record, made)  # last: whoever finds it finds the grant too
        return made

    def _digest(self) -> str:
        """Tell one enrolment from another, so that only the very same one is taken up again."""
        texts = (self.name.encode(), self.group.encode(), self.fleet.url.encode())
        parts = (self.request.public, *texts, self.root, self.fleet.enrol.kid)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


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


def _read_back(grant: Path, record: Path) -> bytes | None:
    """Return the record of the same enrolment if its answer was lost."""
    if not record.exists() or not grant.exists():
        return None
    return read_bounded(record, MAX_RECORD)

"""A station's directory, and its key.

station.json     format, the station's name, its key's name     journal.db, journal.head   everything that happened
batch.toml       an example to begin with                        station.lock               one run at a time

The ML-DSA-65 key is in the key directory (edgeseal_host.keys), under a passphrase.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from edgeseal.durable import locked, write_atomic
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError, RefusedError, TemporaryError, UsageError
from edgeseal.provisioning import pin
from edgeseal_host.station import chain
from edgeseal_host.station.batch import EXAMPLE
from edgeseal_host.station.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal_host.keys import KeyDirectory

FORMAT: Final = 1
KIND: Final = "ml-dsa-65"


@dataclass(frozen=True, slots=True)
class StationKey:
    """The public half of a station's key: `raw` is FIPS 204's encoding, 1,952 bytes."""

    name: str
    raw: bytes

    @property
    def pin(self) -> bytes:
        """What devices keep of it."""
        return pin(self.raw)

    def check(self, signature: bytes, message: bytes) -> bool:
        """Whether this station signed the end of a run."""
        try:
            MLDSA65PublicKey.from_public_bytes(self.raw).verify(signature, message, chain.CONTEXT)
        except (InvalidSignature, ValueError):
            return False
        return True


class StationDirectory:
    """One station's files."""

    def __init__(self, path: Path, keys: KeyDirectory) -> None:
        """Name the directories; nothing is read yet."""
        self.path = path
        self.keys = keys
        self.file = path / "station.json"
        self.journal_file = path / "journal.db"
        self.batch_file = path / "batch.toml"

    def create(self, name: str, key: str, passphrase: bytes | None) -> StationKey:
        """Make key, journal and example.

        Raises RefusedError if there is a station already: its journal can never be made again.
        """
        self._remove_unfinished()
        if self.file.exists() or self.journal_file.exists():
            raise RefusedError(f"{self.path} holds a station already", hint="choose another --station directory")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys.new(key, KIND, passphrase)
        if not self.batch_file.exists():
            write_atomic(self.batch_file, EXAMPLE.encode(), mode=0o644)
        made = StationKey(name, self.keys.public_mldsa65(key))
        journal = Journal(self.journal_file, now=_now)
        journal.append(chain.OPENED, detail={"station": name, "pin": made.pin.hex()})
        journal.close()
        body = {"format": FORMAT, "name": name, "key": key}
        write_atomic(self.file, json.dumps(body).encode() + b"\n", mode=0o644)
        return made

    def _remove_unfinished(self) -> None:
        """Remove the journal of a `create` that was killed before its last step: it has its first entry alone."""
        if self.file.exists() or not self.journal_file.exists():
            return
        journal = Journal(self.journal_file, now=_now)
        entries = journal.head.n if journal.head else 0
        journal.close()
        if entries <= 1:
            for name in ("journal.db", "journal.db-wal", "journal.db-shm", "journal.head"):
                (self.path / name).unlink(missing_ok=True)

    def _read(self) -> tuple[str, str]:
        try:
            body = json.loads(self.file.read_bytes())
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} is not a station's directory", hint="edgeseal station init makes one"
            ) from None
        except ValueError as e:
            raise FormatError(f"station.json is damaged: {e}", hint="restore it from backup") from e
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise IncompatibleError(f"station.json is of another format; this version reads {FORMAT}")
        return str(body["name"]), str(body["key"])

    @property
    def name(self) -> str:
        """The station's name. Raises UsageError if there is no station."""
        return self._read()[0]

    @property
    def key_name(self) -> str:
        """Its key's name in the key directory."""
        return self._read()[1]

    def public(self) -> StationKey:
        """Return the public half of the station's key."""
        name, key = self._read()
        return StationKey(name, self.keys.public_mldsa65(key))

    def is_running(self) -> bool:
        """Whether somebody writes the journal now."""
        try:
            with locked(self.path / "station.lock"):
                return False
        except TemporaryError:
            return True

    @contextmanager
    def journal(self, *, alone: bool = True) -> Iterator[Journal]:
        """Open the journal, checked from its first entry to its last; `alone` for whoever writes.

        Raises IntegrityError if somebody changed it, TemporaryError if a run is going on.
        """
        public = self.public()
        if not self.journal_file.exists():
            raise UsageError(
                f"{self.journal_file} is not there", hint="restore it from backup: no run without its memory"
            )
        if not alone:
            with self._opened(public) as journal:
                yield journal
            return
        try:
            with locked(self.path / "station.lock"), self._opened(public) as journal:
                yield journal
        except TemporaryError as e:
            if "station.lock" not in e.message:
                raise
            raise TemporaryError("a run of this station is going on", hint="end it first (Ctrl-C)") from None

    @contextmanager
    def _opened(self, public: StationKey) -> Iterator[Journal]:
        journal = Journal(self.journal_file, now=_now)
        try:
            journal.verify(public.check)
            _check_owner(journal, public)
            yield journal
        finally:
            journal.close()


def _check_owner(journal: Journal, public: StationKey) -> None:
    """Raise IntegrityError for the journal of another station: nothing this one signs would fit into it."""
    opened = journal.last(chain.OPENED)
    details = opened.details() if opened is not None else {}
    if details.get("pin") != public.pin.hex():
        raise IntegrityError(
            f"journal.db is that of {details.get('station') or 'no station'}, the key is that of {public.name}",
            hint="restore journal, journal.head, station.json and key from the same backup",
        )


def _now() -> int:
    return int(time.time())

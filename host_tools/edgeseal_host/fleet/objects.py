"""The directory of public files: chunks, tables, metadata and targets, written durably and never changed.

An upload becomes visible only when all of it is there and its SHA-256 is its name; until then it grows in `incoming/`,
and an interrupted one goes on where it stopped. Not here: who may upload, and what the metadata says.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from edgeseal.durable import fsync_directory, sweep, write_atomic
from edgeseal.errors import IntegrityError, NoSpaceError, TemporaryError, UsageError
from edgeseal_host.fleet.wire import KINDS, MAX_OBJECT, Kind

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

TIMESTAMP: Final = "metadata/timestamp.json"
INCOMING_KEPT: Final = 7 * 86_400  # seconds an interrupted upload may wait
SPARE: Final = 64 * 2**20  # bytes that stay free: the database must go on working when uploads fill the disk

# Everything that is ever served, as one grammar: nothing else can name a file.
_SERVED: Final = re.compile(
    r"(?:chunks|tables)/([0-9a-f]{2})/\1[0-9a-f]{62}"
    r"|metadata/(?:timestamp|[1-9][0-9]{0,18}\.[a-z0-9](?:[a-z0-9._-]{0,70}[a-z0-9])?)\.json"
    r"|targets/(?:fleet|models/[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?)/[0-9a-f]{64}\.[a-z0-9][a-z0-9._-]{0,62}"
)


def is_served(name: str) -> bool:
    """Whether `name` is the name of a public file: relative, no dots to climb by."""
    return _SERVED.fullmatch(name) is not None and ".." not in name.split("/")


class ObjectDirectory:
    """All public files below one directory."""

    def __init__(self, directory: Path) -> None:
        """Use an existing directory."""
        self.directory = directory
        self._incoming = directory / "incoming"
        self._busy: set[Path] = set()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def prepare(self) -> None:
        """Make the folders, drop uploads that nobody finished for a week."""
        for name in (*KINDS, "metadata", "targets", "incoming"):
            (self.directory / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        oldest = time.time() - INCOMING_KEPT
        for partial in self._incoming.iterdir():
            if partial.stat().st_mtime < oldest:
                partial.unlink()
        fsync_directory(self.directory)

    def sweep(self) -> None:
        """Remove what a killed server left half written; only while no other process writes here."""
        for top in ("metadata", "targets"):
            for folder in (self.directory / top, *(d for d in (self.directory / top).rglob("*") if d.is_dir())):
                sweep(folder)

    def path(self, kind: Kind, sha256: bytes) -> Path:
        """Where an object lies."""
        name = sha256.hex()
        return self.directory / kind / name[:2] / name

    def length(self, kind: Kind, sha256: bytes) -> int | None:
        """Length of a stored object; None if it is not there."""
        try:
            return self.path(kind, sha256).stat().st_size
        except FileNotFoundError:
            return None

    def has_file(self, name: str) -> bool:
        """Whether a metadata or target file is there."""
        return (self.directory / name).is_file()

    def read_file(self, name: str) -> bytes:
        """Return a metadata or target file."""
        return (self.directory / name).read_bytes()

    def write_file(self, name: str, data: bytes) -> None:
        """Write a metadata or target file durably."""
        path = self.directory / name
        self._make_parents(path.parent)
        write_atomic(path, data, mode=0o644)

    def partial(self, kind: Kind, sha256: bytes) -> int:
        """Bytes of an interrupted upload that are already here."""
        try:
            return self._partial(kind, sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def receive(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Incoming:
        """Go on with an upload at `offset`, of `length` bytes in all.

        Raises UsageError for impossible numbers, TemporaryError if another request is uploading the same object or the
        offset is not where the last one stopped, NoSpaceError.
        """
        if not 0 < length <= MAX_OBJECT[kind] or not 0 <= offset < length:
            raise UsageError(f"{kind}: offset {offset}, length {length}; an object has 1 to {MAX_OBJECT[kind]} bytes")
        self._check_space(length - offset)
        return Incoming(self, kind, sha256, offset, length)

    def _partial(self, kind: Kind, sha256: bytes) -> Path:
        return self._incoming / f"{kind}-{sha256.hex()}"

    def _check_space(self, need: int) -> None:
        free = os.statvfs(self.directory)
        have = free.f_bavail * free.f_frsize
        if have < need + SPARE:
            raise NoSpaceError(
                f"the fleet server's disk has {have} bytes left; this upload needs {need} and {SPARE} must stay free",
                hint="free some space on the fleet server",
            )

    def _make_parents(self, directory: Path) -> None:
        """Make folders so that their names survive a power cut; nobody uses one before it is flushed."""
        with self._making:
            absent = [d for d in (directory, *directory.parents) if not d.is_dir()]
            for folder in reversed(absent):
                folder.mkdir(mode=0o755)
                fsync_directory(folder.parent)

    def _claim(self, path: Path) -> None:
        with self._lock:
            if path in self._busy:
                raise TemporaryError("another request is uploading the same object", hint="wait for it to end")
            self._busy.add(path)

    def _release(self, path: Path) -> None:
        with self._lock:
            self._busy.discard(path)


class Incoming:
    """One request's part of an upload; a context manager that keeps what arrived."""

    def __init__(self, objects: ObjectDirectory, kind: Kind, sha256: bytes, offset: int, length: int) -> None:
        """Claim the upload and open its file; use `ObjectDirectory.receive`."""
        self._objects, self._kind, self._sha256, self._length = objects, kind, sha256, length
        self._partial = objects._partial(kind, sha256)  # noqa: SLF001 - one module
        objects._claim(self._partial)  # noqa: SLF001
        try:
            self._at = self._begin(offset)
            self._file = open(self._partial, "ab")  # noqa: SIM115 - closed by __exit__
        except BaseException:
            objects._release(self._partial)  # noqa: SLF001
            raise

    def _begin(self, offset: int) -> int:
        here = self._objects.partial(self._kind, self._sha256)
        if offset == 0:
            self._partial.unlink(missing_ok=True)
        elif offset != here:
            raise TemporaryError(
                f"this upload stopped at {here}, it cannot go on at {offset}", hint="ask for the offset"
            )
        return offset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        finally:
            self._objects._release(self._partial)  # noqa: SLF001

    def write(self, piece: bytes) -> None:
        """Append bytes.

        Raises UsageError if more come than were announced.
        """
        if self._at + len(piece) > self._length:
            raise UsageError(f"more than the announced {self._length} bytes arrived")
        self._file.write(piece)
        self._at += len(piece)

    def finish(self) -> bool:
        """Make the object visible if it is complete; False if bytes are missing.

        Raises IntegrityError if it is another object than its name says; nothing of it is kept.
        """
        self._file.flush()
        if self._at < self._length:
            return False
        with self._partial.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").digest()
        if found != self._sha256:
            self._partial.unlink()
            raise IntegrityError(
                f"the uploaded bytes have SHA-256 {found.hex()}, their name says {self._sha256.hex()}",
                hint="nothing was stored; upload again from the beginning",
            )
        os.fsync(self._file.fileno())
        final = self._objects.path(self._kind, self._sha256)
        self._objects._make_parents(final.parent)  # noqa: SLF001
        self._partial.replace(final)
        fsync_directory(final.parent)
        return True

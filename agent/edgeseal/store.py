"""Chunks and sealed tables on the device's disk, as they were served: encrypted, named by their SHA-256, immutable.

    <directory>/chunks/<2 hex>/<64 hex>       <directory>/tables/<2 hex>/<64 hex>
    …/<64 hex>.part                           what came of an object before the connection broke

An object is flushed before it gets its name; names are flushed together (`flush`), because a name that is lost costs
one download. Whether the bytes are still right is asked when they are decrypted: a tag says more than a hash.

Not here: who needs which object (edgeseal.install) and where they come from (edgeseal.transport.objects).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgeseal.durable import TEMPORARY_PREFIX, fsync_directory, write_whole
from edgeseal.errors import IntegrityError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Kind: TypeAlias = Literal["chunks", "tables"]
KINDS: Final[tuple[Kind, ...]] = ("chunks", "tables")
_PART: Final = ".part"
_NAME_LENGTH: Final = 64
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DAMAGED: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})  # worn flash, a broken file system


def object_name(kind: Kind, sha256: bytes) -> str:
    """Relative path of an object: the same on every server, disk and archive."""
    name = sha256.hex()
    return f"{kind}/{name[:2]}/{name}"


class ObjectStore:
    """The objects in one directory; safe to use from several threads of one process."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call."""
        self.directory = directory
        self._unflushed: set[Path] = set()
        self._lock = threading.Lock()

    def path(self, kind: Kind, sha256: bytes) -> Path:
        """Return where an object lies or would lie."""
        return self.directory / object_name(kind, sha256)

    def has(self, kind: Kind, sha256: bytes, length: int) -> bool:
        """Whether the object is there with that length in bytes."""
        try:
            return self.path(kind, sha256).stat().st_size == length
        except FileNotFoundError:
            return False

    def read(self, kind: Kind, sha256: bytes, *, limit: int) -> bytes:
        """Return an object's bytes, at most `limit` + 1 of them.

        Raises FileNotFoundError, IntegrityError if the disk cannot read it.
        """
        with _readable(kind, sha256), self.path(kind, sha256).open("rb") as f:
            return f.read(limit + 1)

    def read_into(self, kind: Kind, sha256: bytes, buffer: memoryview) -> int:
        """Read an object to the start of `buffer` and return how many bytes came.

        Raises FileNotFoundError, IntegrityError if the disk cannot read it.
        """
        with _readable(kind, sha256):
            fd = os.open(self.path(kind, sha256), os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(buffer) and (n := os.readv(fd, [buffer[done:]])):
                    done += n
                return done
            finally:
                os.close(fd)

    def put(self, kind: Kind, sha256: bytes, data: bytes | bytearray | memoryview) -> None:
        """Store an object after checking its name; durable after the next `flush`.

        Raises IntegrityError, NoSpaceError, OSError. Nothing remains of what could not be stored whole.
        """
        if hashlib.sha256(data).digest() != sha256:
            raise IntegrityError(f"{kind[:-1]} {sha256.hex()}: {len(data)} bytes came that are not it")
        path = self.path(kind, sha256)
        try:
            self._make(path.parent)
            write_whole(path, data, writer=f"{threading.get_native_id()}-")
        except OSError as e:
            if e.errno in _FULL:
                raise NoSpaceError(
                    f"no room on disk for {kind[:-1]} {sha256.hex()} of {len(data):,} bytes: {e.strerror}",
                    hint=f"free some space below {self.directory}; what has come is kept",
                ) from e
            raise
        self._part(path).unlink(missing_ok=True)
        with self._lock:
            self._unflushed.add(path.parent)

    def flush(self) -> None:
        """Make the names of everything stored so far durable."""
        with self._lock:
            directories, self._unflushed = self._unflushed, set()
        for directory in directories:
            fsync_directory(directory)

    def discard(self, kind: Kind, sha256: bytes) -> None:
        """Remove an object that turned out to be damaged, so that it is fetched again."""
        self.path(kind, sha256).unlink(missing_ok=True)

    # Interrupted downloads -----------------------------------------------------------------------------------------

    def partial(self, kind: Kind, sha256: bytes, *, length: int) -> bytearray:
        """Return what came of an object before; empty if nothing did, or more than the object has."""
        try:
            with self._part(self.path(kind, sha256)).open("rb") as f:
                data = bytearray(f.read(length + 1))
        except FileNotFoundError:
            return bytearray()
        return data if len(data) < length else bytearray()

    def keep_partial(self, kind: Kind, sha256: bytes, data: bytearray) -> None:
        """Keep what came of an object, if that is possible: never in the way of the error that broke the download.

        Not flushed: if it is lost or damaged the object is fetched from its start.
        """
        path = self.path(kind, sha256)
        try:
            self._make(path.parent)
            self._part(path).write_bytes(data)
        except OSError:
            with contextlib.suppress(OSError):
                self._part(path).unlink(missing_ok=True)

    def drop_partial(self, kind: Kind, sha256: bytes) -> None:
        """Forget what came of an object: it was not that object."""
        self._part(self.path(kind, sha256)).unlink(missing_ok=True)

    # Housekeeping --------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for kind in KINDS:
            for leftover in (self.directory / kind).glob(f"*/{TEMPORARY_PREFIX}*"):
                leftover.unlink(missing_ok=True)

    def collect(self, keep: Iterable[tuple[Kind, bytes]]) -> int:
        """Remove every object that is not in `keep`, and every partial one; return the bytes freed."""
        wanted = {(kind, sha256.hex()) for kind, sha256 in keep}
        freed = 0
        for kind, path in self._files():
            if (kind, path.name) not in wanted:
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed

    def usage(self) -> int:
        """Return the bytes of all objects."""
        return sum(path.stat().st_size for _, path in self._files())

    def free(self) -> int:
        """Return the bytes that this process may still write to the disk."""
        place = self.directory
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def _files(self) -> Iterator[tuple[Kind, Path]]:
        for kind in KINDS:
            for path in (self.directory / kind).glob("*/*"):
                if len(path.name.removesuffix(_PART)) == _NAME_LENGTH:
                    yield kind, path

    def _make(self, directory: Path) -> None:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock:  # a new directory is only as durable as its name in the one above
                self._unflushed |= {directory.parent, self.directory, self.directory.parent}

    @staticmethod
    def _part(path: Path) -> Path:
        return path.with_name(path.name + _PART)


@contextlib.contextmanager
def _readable(kind: Kind, sha256: bytes) -> Iterator[None]:
    """Say of a bad sector what it is: a damaged object, which can be fetched again."""
    try:
        yield
    except OSError as e:
        if e.errno not in _DAMAGED:
            raise
        raise IntegrityError(f"{kind[:-1]} {sha256.hex()} cannot be read: {e.strerror}") from e

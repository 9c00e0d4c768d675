"""A directory or an uncompressed tar on removable media, as a set of regular files by name.

Links are not followed in any part of a path, and anything but a regular file does not exist: whoever prepared the
medium must not be able to point the agent at its own files.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from edgeseal import ustar
from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path


class Archive:
    """The files of one directory or tar. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Take the directory or tar. Nothing is read before the first call."""
        self.path = path
        self._index: dict[str, ustar.Member] | None = None

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """Return a stream at the start of a file, and its size in bytes.

        Raises FileNotFoundError, OSError, FormatError for an archive that is not acceptable.
        """
        if self.path.is_dir():
            return _open_beneath(self.path, name)
        member = self.index().get(name)
        if member is None:
            raise FileNotFoundError(name)
        stream = self.path.open("rb")
        stream.seek(member.offset)
        return stream, member.size

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes.

        Raises as `open` does, and FormatError for a longer one.
        """
        stream, size = self.open(name)
        with stream:
            if size > limit:
                raise FormatError(f"{name} has {size} bytes; {limit} are allowed")
            return stream.read(size)

    def names(self, below: str) -> list[str]:
        """Return the names of the files below a directory of the archive, sorted."""
        if self.path.is_dir():
            found = (self.path / below).rglob("*")
            return sorted(str(p.relative_to(self.path)) for p in found if p.is_file() and not p.is_symlink())
        return sorted(name for name in self.index() if name.startswith(below + "/"))

    def index(self) -> dict[str, ustar.Member]:
        """Return where the files of a tar are."""
        if self._index is None:
            self._index = ustar.index(self.path)
        return self._index


def _open_beneath(directory: Path, name: str) -> tuple[BinaryIO, int]:
    """Open a regular file below `directory` without following a link in any part of the way."""
    parts = name.split("/")
    if not all(parts) or ".." in parts or "." in parts:
        raise FormatError(f"{name!r} does not stay inside the archive")
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts[:-1]:
        fd = _open_at(fd, part, os.O_DIRECTORY)
    stream = open(_open_at(fd, parts[-1], os.O_NONBLOCK), "rb")  # noqa: SIM115 - the caller closes it
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode):
        return stream, status.st_size
    stream.close()
    raise FileNotFoundError(name)


def _open_at(directory: int, name: str, flags: int) -> int:
    """Open `name` in an open directory, which is closed. A link raises OSError (ELOOP)."""
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=directory)
    finally:
        os.close(directory)

"""Files that survive a power cut: written whole, flushed, then renamed into place; and one lock per directory.

Everything that must be either the old or the new state after a power cut goes through here. Not for bulk data whose
loss is harmless.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgeseal.errors import TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"  # what a crash may leave behind; `sweep` removes it at the next start


def fsync_directory(path: Path) -> None:
    """Flush directory entries: without it a rename may be lost although the file's data is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data` so that after a crash it is wholly the old or wholly the new file.

    Raises OSError; the old file is then untouched and no temporary file remains.
    """
    write_whole(path, data, mode=mode)
    fsync_directory(path.parent)


def write_whole(path: Path, data: bytes | bytearray | memoryview, *, mode: int = 0o600, writer: str = "") -> None:
    """As `write_atomic`, but the new name is not durable before its directory is flushed (`fsync_directory`).

    `writer` tells apart those who may write the same path at once.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{writer}{path.name}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(directory: Path) -> None:
    """Remove what a killed `write_atomic` left in `directory`."""
    for leftover in directory.glob(TEMPORARY_PREFIX + "*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive flock on `path` (created if missing); the kernel drops it when the process dies.

    Raises TemporaryError when another process holds it and `wait` is false.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise TemporaryError(
                f"{path.name} is held by another edgeseal process", hint="wait for it to end"
            ) from None
        yield
    finally:
        os.close(fd)

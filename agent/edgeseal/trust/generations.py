"""Generations of metadata on disk: a refresh works on a staged copy, which becomes the next generation by one rename.

    generation-<n>/                 the highest n counts; it was flushed before it got this name
        root.json -> root_history/<v>.root.json
        timestamp.json snapshot.json targets.json <role, percent-encoded>.json
        complete/                   only if the last refresh failed on the way: the last set that belongs together
    staging/                        a refresh in progress, or what a power cut left of one

What is in the files is not looked at here.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Final

from edgeseal.durable import fsync_directory
from edgeseal.errors import EdgesealError, NoSpaceError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STAGING: Final = "staging"
COMPLETE: Final = "complete/"
_PREFIX: Final = "generation-"
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_READS: Final = 5  # a reader without the lock may meet one commit, hardly five

_Mark = tuple[str, int, int]


class Generations:
    """The generations in one directory. Writers hold the lock of `Trust`; readers need none."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call."""
        self._directory = directory
        self._last: tuple[_Mark, dict[str, bytes]] | None = None

    def read(self, *, again: bool = False) -> Mapping[str, bytes]:
        """Return the committed files by relative name; empty before the first commit.

        A generation never changes, so it is read once: a pass asks a dozen times. `again` is for whoever repairs
        what a bad card has damaged since.
        """
        for _ in range(_READS):
            current = self._current()
            if current is None:
                return {}
            try:
                mark = _mark(current)
                if again or self._last is None or self._last[0] != mark:
                    self._last = (mark, read_tree(current))
            except FileNotFoundError:
                continue  # replaced while we read
            return self._last[1]
        return {}

    def stage(self) -> Path:
        """Return a fresh staging directory holding a copy of the committed generation."""
        self.sweep()
        staging = self._directory / STAGING
        current = self._current()
        if current is None:
            staging.mkdir(mode=0o700)
        else:
            shutil.copytree(current, staging, symlinks=True)
        return staging

    def commit(self) -> None:
        """Flush the staged files, then make them the next generation. Raises OSError; nothing has changed then."""
        staging = self._directory / STAGING
        _fsync_tree(staging)
        staging.rename(self._directory / f"{_PREFIX}{self._newest() + 1}")
        fsync_directory(self._directory)

    def sweep(self) -> None:
        """Remove staging and every generation but the newest."""
        shutil.rmtree(self._directory / STAGING, ignore_errors=True)
        newest = self._newest()
        for number, path in self._numbered():
            if number != newest:
                shutil.rmtree(path, ignore_errors=True)

    def _current(self) -> Path | None:
        newest = self._newest()
        return self._directory / f"{_PREFIX}{newest}" if newest else None

    def _newest(self) -> int:
        return max((number for number, _ in self._numbered()), default=0)

    def _numbered(self) -> list[tuple[int, Path]]:
        try:
            found = [path for path in self._directory.iterdir() if path.name.startswith(_PREFIX)]
        except FileNotFoundError:
            return []
        return [(int(n), path) for path in found if (n := path.name.removeprefix(_PREFIX)).isdecimal()]


def _mark(generation: Path) -> _Mark:
    """Tell a generation from one that was put in its place under the same name, as restoring a card does."""
    status = generation.stat()
    return generation.name, status.st_ino, status.st_mtime_ns


def read_tree(directory: Path) -> dict[str, bytes]:
    """Return every regular file or link to one below `directory` by relative name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if not path.is_dir()}


def keep_complete(staging: Path, before: Mapping[str, bytes]) -> None:
    """Note in `staging` that what is staged does not belong together, and keep the last set that does.

    `before` is the committed generation. Its own kept set, if it has one, was copied into staging already.
    """
    kept = staging / COMPLETE
    if kept.exists():
        return
    kept.mkdir()
    for name, data in before.items():
        if "/" not in name and name != "root.json":
            (kept / name).write_bytes(data)


def drop_complete(staging: Path) -> None:
    """Note in `staging` that what is staged belongs together."""
    shutil.rmtree(staging / COMPLETE, ignore_errors=True)


def storage_error(error: OSError) -> EdgesealError:
    """Return our error for a failing disk."""
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            f"no space left for metadata: {error.strerror}",
            hint="about 1 MB is needed; what is installed keeps running",
        )
    if error.errno == errno.EROFS:
        return TemporaryError("the state directory is read-only", hint="check the card, remount it read-write")
    return TemporaryError(
        f"metadata could not be stored: {error}", hint="nothing was changed; what is installed keeps running"
    )


def _fsync_tree(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            _fsync_tree(path)
        elif not path.is_symlink():  # the name of a link is in the directory, its target in root_history
            _fsync_file(path)
    fsync_directory(directory)


def _fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

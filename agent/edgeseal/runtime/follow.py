"""What should be served: for each model in the repository the release that `current` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeseal.runtime.repository import CURRENT, ModelRepository

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Release:
    """One release as it lies there. `stamp` tells it from another directory of the same number."""

    model: str
    number: int
    directory: Path
    stamp: Stamp

    def is_there(self) -> bool:
        """Whether it can still be loaded: the agent removes what it has replaced for good."""
        try:
            return stamp(self.directory) == self.stamp
        except OSError:
            return False

    def size(self) -> int:
        """Return the bytes of its files."""
        return sum(p.lstat().st_size for p in self.directory.rglob("*"))


def wanted(repository: ModelRepository, before: Mapping[str, Release]) -> dict[str, Release]:
    """Return what should be served now. `before` goes on for a model whose link points at what is not there yet."""
    found = {}
    for model in repository.models():
        release = repository.current(model)
        if release is not None:
            directory = repository.path(model, release)
            try:
                found[model] = Release(model, release, directory, stamp(directory))
            except FileNotFoundError:
                release = None  # replaced between the two lines above
        if release is None and model in before and (repository.root / model / CURRENT).is_symlink():
            found[model] = before[model]
    return found


def stamp(directory: Path) -> Stamp:
    """Return what changes when something else is put in a directory's place."""
    found = directory.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns

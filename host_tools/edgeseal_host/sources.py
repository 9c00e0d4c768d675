"""Which files a bundle is made of, under which names, in which order.

Not here: what is in them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError, UsageError
from edgeseal.runtime.engine_settings import check_names
from edgeseal.table import check_path, check_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MODEL_STEM: Final = "model"  # Triton, OVMS and edgeseal-serve look for model.onnx


@dataclass(frozen=True, slots=True)
class Source:
    """A regular, non-empty file and the name it has on the device."""

    name: str
    path: Path
    size: int
    mode: int


def collect(paths: Iterable[Path]) -> list[Source]:
    """Return the files of a bundle, sorted by name.

    One file alone is called `model` with its own suffix, because that is what runtimes look for; otherwise files keep
    their names, and files below a directory their path relative to it. Links to files are followed: on the device
    there are none. Raises UsageError for anything that cannot be in a bundle.
    """
    given = list(paths)
    named = list(_named(given))
    if not named:
        raise UsageError("no file to build a bundle from", hint="name a model file, or a directory that holds one")
    sources = sorted((_source(name, path) for name, path in named), key=lambda s: os.fsencode(s.name))
    try:
        for source in sources:
            check_path(source.name)
        check_paths(source.name for source in sources)
        check_names(source.name for source in sources)
    except (FormatError, UnicodeEncodeError) as e:
        raise UsageError(f"these files cannot be in one bundle: {e}") from e
    return sources


def _named(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    if len(paths) == 1 and paths[0].is_file():
        yield MODEL_STEM + paths[0].suffix, paths[0]
        return
    for path in paths:
        if not path.is_dir():
            yield path.name, path
            continue
        for folder, folders, files in _walk(path):
            _refuse_links(folder, folders)
            yield from ((str((folder / file).relative_to(path)), folder / file) for file in files)


def _walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, folders, files in os.walk(path):  # Path.walk is new in 3.12
        yield path / folder, folders, files


def _refuse_links(folder: Path, folders: list[str]) -> None:
    for name in folders:
        if (folder / name).is_symlink():
            raise UsageError(
                f"{folder / name} is a link to a directory",
                hint="put the directory itself there; a link might lead out of the model or in circles",
            )


def _source(name: str, path: Path) -> Source:
    try:
        found = path.stat()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a regular file")
    if not found.st_size:
        raise UsageError(f"{path} is empty", hint="remove it: a bundle holds files of one byte or more")
    return Source(name, path, found.st_size, 0o755 if found.st_mode & stat.S_IXUSR else 0o644)

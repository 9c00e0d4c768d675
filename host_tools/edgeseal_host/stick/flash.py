"""Putting a build on a board: check that they belong together, copy, compare every hash, remove leftovers, pair."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from edgeseal.errors import IncompatibleError, IntegrityError, UsageError
from edgeseal_host.stick.pairing import secret_for

if TYPE_CHECKING:
    from edgeseal_host.stick.board import Board
    from edgeseal_host.stick.build import Build

K_STICK: Final = "k_stick"  # file names of the firmware's startup.py
LEVELS: Final = "levels"
_LEVELS: Final = 4


@dataclass(frozen=True, slots=True)
class Flashed:
    """What was done to which stick."""

    serial: str
    removed: tuple[str, ...]
    paired: bool
    new_secret: bool


def flash(
    board: Board, build: Build, *, keys: Path | None = None, levels: tuple[int, int, int, int] | None = None
) -> Flashed:
    """Put `build` on `board`; with `keys`, pair it; with `levels` (PWM duties of L1 to L4), set its light.

    Raises IncompatibleError (wrong chip), IntegrityError (what is on the board is not what was copied), UsageError.
    """
    if levels is not None and not _rising(levels):
        raise UsageError(
            f"LED levels must rise from L1 to L4 within 1 to 65535, not {' '.join(map(str, levels))}",
            hint="the acceptance procedure of hw/qrng_stick says how they are measured",
        )
    identity = board.identify()
    if identity.target != build.target:
        raise IncompatibleError(
            f"the build is for {build.target}, the board has an {identity.target}",
            hint=f"edgeseal stick build --target {identity.target}",
        )
    parents = [str(parent) for path in build.files for parent in PurePosixPath(path).parents]
    board.make_folders(set(parents) - {"."})
    board.copy({path: build.folder / path for path in build.files})
    removed = board.remove_strays(build.files)
    _compare(board, build.files)
    new = _pair(board, keys, identity.serial) if keys is not None else False
    if levels is not None:
        _put(board, LEVELS, " ".join(map(str, levels)).encode())
    board.reset()
    return Flashed(identity.serial, tuple(removed), keys is not None, new)


def _rising(levels: tuple[int, ...]) -> bool:
    return len(levels) == _LEVELS and all(a < b for a, b in zip((0, *levels), (*levels, 65536), strict=True))


def _pair(board: Board, keys: Path, serial: str) -> bool:
    """Give the board its secret; return whether that is a new one."""
    secret, new = secret_for(keys, serial)
    _put(board, K_STICK, secret)
    return new


def _put(board: Board, name: str, data: bytes) -> None:
    """Copy `data` as one file, by way of a file that only this user can read, and compare."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-stick-") as directory:  # mode 0700
        file = Path(directory, name)
        file.write_bytes(data)
        board.copy({name: file})
    _compare(board, {name: hashlib.sha256(data).hexdigest()})


def _compare(board: Board, files: dict[str, str]) -> None:
    """Refuse unless every file on the board has its hash."""
    there = board.hashes(files)
    wrong = sorted(path for path, digest in files.items() if there.get(path) != digest)
    if wrong:
        raise IntegrityError(
            f"{len(wrong)} of {len(files)} files on the board are not what was copied: {', '.join(wrong[:5])}",
            hint="flash again; if it stays so, the board's flash memory is worn out",
        )

"""One small file in two alternating slots: a power cut or a worn-out block costs at most the last change.

Each slot is written whole (edgeseal.durable.write_atomic) and carries a sequence number; the highest one that is sound
counts. What makes a slot sound, a checksum or a seal, is the caller's.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.durable import write_atomic
from edgeseal.errors import IntegrityError, RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUFFIXES: Final = (".0", ".1")
MAX_LENGTH: Final = 4 * 2**20
_Mark = tuple[int, int, int]  # inode, time and size: each write makes a new file


class NoneSoundError(IntegrityError):
    """Both copies are damaged: what was in them is lost."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The newest sound slot; `damaged` says that the other one is there and is not sound."""

    sequence: int
    payload: bytes
    damaged: bool = False

    def __repr__(self) -> str:
        """Never the payload: it may be secret."""
        return f"Slot(sequence={self.sequence}, damaged={self.damaged})"


class TwoSlots:
    """`name.0` and `name.1` in one directory."""

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        wrap: Callable[[int, bytes], bytes],
        unwrap: Callable[[bytes], tuple[int, bytes]],
    ) -> None:
        """`unwrap` is the inverse of `wrap`: (sequence, payload), or RefusedError."""
        self._paths = [directory / (name + suffix) for suffix in SUFFIXES]
        self._name = name
        self._wrap = wrap
        self._unwrap = unwrap
        self._seen = 0  # the highest sequence this process read or wrote
        self._last: tuple[list[_Mark | None], Slot] | None = None

    def read(self) -> Slot | None:
        """Return the newest sound slot, None if neither exists.

        Raises NoneSoundError if there is something but none of it is sound, TemporaryError if this process has seen a
        newer one: a read error in the middle of a pass must not undo what the pass has done. OSError for a disk that
        fails otherwise than in the blocks of a slot. Files that have not changed since are not read again: a pass asks
        a dozen times.
        """
        marks = [_mark(path) for path in self._paths]
        if self._last is None or self._last[0] != marks:
            slot = self._read()
            if slot is None:
                return None
            self._last = (marks, slot)
        return self._last[1]

    def _read(self) -> Slot | None:
        sound: list[tuple[int, bytes]] = []
        faults: list[RefusedError] = []
        for path in self._paths:
            try:
                sound.append(self._unwrap(_bounded(path)))
            except FileNotFoundError:
                continue
            except RefusedError as e:
                faults.append(e)
            except OSError as e:
                if e.errno != errno.EIO:
                    raise
                faults.append(IntegrityError(f"{path.name} cannot be read", hint="the storage card is worn out"))
        if sound:
            sequence, payload = max(sound)
            if sequence < self._seen:
                raise TemporaryError(  # no verdict on what is being installed
                    f"{self._name}: the copy written last cannot be read",
                    hint="the storage card is failing; the next pass starts from the copy before",
                )
            self._seen = sequence
            return Slot(sequence, payload, damaged=bool(faults))
        if faults:
            raise NoneSoundError(f"{self._name}: no copy of it is sound: {faults[0].message}", hint=faults[0].hint)
        return None

    def write(self, payload: bytes, *, everywhere: bool = False, after: int = 0) -> None:
        """Make `payload` the newest; `everywhere` also replaces the older copy, so that nothing former remains.

        `after` is a sequence number that it must exceed: where the former one is lost, other processes may know it.
        """
        first = max(self._newest(), after) + 1
        for sequence in range(first, first + 1 + everywhere):
            write_atomic(self._paths[sequence % 2], self._wrap(sequence, payload))
            self._seen = sequence

    def remove(self) -> None:
        """Remove both slots."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._seen, self._last = 0, None

    def _newest(self) -> int:
        try:
            slot = self.read()
        except (IntegrityError, TemporaryError):
            return self._seen  # the caller decided to start anew
        return slot.sequence if slot else 0


def _mark(path: Path) -> _Mark | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _bounded(path: Path) -> bytes:
    """Read a slot without trusting its size: a damaged file system can claim any."""
    with path.open("rb") as f:
        data = f.read(MAX_LENGTH + 1)
    if len(data) > MAX_LENGTH:
        raise IntegrityError(f"{path.name} is larger than {MAX_LENGTH} bytes")
    return data

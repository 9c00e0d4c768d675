"""What outlives a process about each device: its first good calibration, and that it failed.

Two small JSON files a device, written when something changes and not otherwise: a card wears out. `fail` latches: only
`acknowledge` (the operator) or the policy's time ends it. Nothing secret is in them. With no directory all stays in
memory, which is what a command that lives for a second wants.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from edgeseal.durable import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.entropy.drivers.base import Description

_MAX_FILE: Final = 4096
T = TypeVar("T", bound=msgspec.Struct)


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's first good calibration here. LSB and LSB^2, as edgeseal.entropy.drivers.base.Calibration."""

    mean: float
    sigma: float
    off_variance: float
    slope: float


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a device is not used any more, and since when (Unix seconds)."""

    device: str
    reason: str
    at: int
    security: bool = False


def identity(description: Description) -> str:
    """Return a name for one device, safe in a path: its kind, and a hash of what it calls its serial number."""
    kind = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in description.kind)[:40]
    return f"{kind}-{hashlib.sha256((description.serial or '').encode()).hexdigest()[:16]}"


class Records:
    """The records of all devices of one agent."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory` is made when there is something to write."""
        self._directory = directory
        self._memory: dict[str, msgspec.Struct] = {}

    def baseline(self, device: str) -> Baseline | None:
        """Return a device's first good calibration; None if there was none or the file cannot be read."""
        return self._read(f"{device}.baseline", Baseline)

    def keep_baseline(self, device: str, baseline: Baseline) -> None:
        """Remember a first good calibration. A disk that cannot be written loses it, and nothing else."""
        self._write(f"{device}.baseline", baseline)

    def failure(self, device: str) -> Failure | None:
        """Return why a device is latched, None if it is not."""
        return self._read(f"{device}.failed", Failure)

    def fail(self, device: str, failure: Failure) -> None:
        """Latch a device."""
        self._write(f"{device}.failed", failure)

    def acknowledge(self, device: str) -> bool:
        """End a latch: the operator has looked at the device. Return whether there was one.

        Its baseline goes too: a repaired device is not the one that was measured.
        """
        known = [self._forget(f"{device}.{kind}") for kind in ("failed", "baseline")]
        return known[0]

    def failures(self) -> dict[str, Failure]:
        """Return every latched device."""
        names = {n for n in self._memory if n.endswith(".failed")}
        if self._directory is not None:
            names |= {p.name for p in self._directory.glob("*.failed")}
        devices = (name.removesuffix(".failed") for name in sorted(names))
        return {device: failure for device in devices if (failure := self.failure(device))}

    def _forget(self, name: str) -> bool:
        known = self._memory.pop(name, None) is not None
        if self._directory is None:
            return known
        try:
            (self._directory / name).unlink()
        except FileNotFoundError:
            return known
        return True

    def _read(self, name: str, kind: type[T]) -> T | None:
        """Return what is on disk, or what this process remembers when the disk could not be written.

        An acknowledged failure is gone from both only in the process that made it; another process removes the file.
        """
        found = self._memory.get(name)
        if self._directory is None:
            return found if isinstance(found, kind) else None
        try:
            data = (self._directory / name).read_bytes()[:_MAX_FILE]
            return msgspec.json.decode(data, type=kind)
        except FileNotFoundError:
            return found if isinstance(found, kind) else None
        except (OSError, msgspec.DecodeError):
            return found if isinstance(found, kind) else None

    def _write(self, name: str, value: msgspec.Struct) -> None:
        if self._directory is None:
            self._memory[name] = value
            return
        self._memory.pop(name, None)
        try:
            for directory in (
                self._directory.parent,
                self._directory,
            ):  # `parents` would leave the first open to others
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(mode=0o700)
            write_atomic(self._directory / name, msgspec.json.encode(value))
        except OSError:
            self._memory[name] = value  # a full or read-only card: the latch holds as long as this process

"""What must never go back: the version of each role and the time, in two checksummed slots.

A slot is written in place and flushed; a power cut can spoil only the older one. Floors matter when the metadata they
belong to is gone: a spoilt card must not turn into an open door for an old signed state.

Slot file, `floors.0` and `floors.1`: deterministic CBOR [1, sequence, {role: [version, key set]}, [time, key set]],
then its SHA-256. The readable slot with the higher sequence counts.

A floor is bound to the set of keys that could have signed what raised it. Keys are replaced by a new root, which needs
the offline keys: then a version (or time) that a thief of the old keys pushed forward no longer binds (TUF §5.3.11).
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from edgeseal import cbor
from edgeseal.durable import fsync_directory
from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FORMAT: Final = 1
_DIGEST: Final = 32
_MAX: Final = 2**20  # thousands of model roles
_KEY_SET: Final = 32


@dataclass(frozen=True)
class Floor:
    """A version or a time, and the key set it came from."""

    value: int
    keys: bytes


@dataclass(frozen=True)
class Floors:
    """Floors of all roles, and the latest time an online key vouched for."""

    versions: Mapping[str, Floor] = field(default_factory=dict)
    time: Floor = Floor(0, b"")
    sequence: int = 0

    def version(self, role: str, keys: bytes) -> int:
        """Return the lowest acceptable version of `role` as signed under `keys`."""
        floor = self.versions.get(role)
        return floor.value if floor and floor.keys == keys else 0

    def online_time(self, keys: bytes) -> int:
        """Return the latest time that holders of `keys` vouched for, in Unix seconds."""
        return self.time.value if self.time.keys == keys else 0

    def raised(self, versions: Mapping[str, Floor], time: Floor) -> Floors:
        """Return floors raised to what is given; a new key set replaces instead."""
        merged = dict(self.versions)
        for role, new in versions.items():
            merged[role] = _higher(merged.get(role), new)
        return replace(self, versions=merged, time=_higher(self.time, time))

    def to_bytes(self) -> bytes:
        """Content of a slot."""
        versions = {role: [f.value, f.keys] for role, f in self.versions.items()}
        body = cbor.encode([_FORMAT, self.sequence, versions, [self.time.value, self.time.keys]])
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Floors:
        """Inverse of `to_bytes`.

        Raises FormatError.
        """
        body, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            raise FormatError("floors: the checksum does not match")
        match cbor.decode(body, max_length=_MAX):
            case [1, int(sequence), dict(versions), [int(), bytes()] as time]:
                roles = {str(role): _floor(value) for role, value in versions.items()}
                return cls(roles, _floor(time), sequence)
        raise FormatError("floors: not the shape that this version writes")


class Slots:
    """The two slot files of one directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call."""
        self._directory = directory

    def read(self) -> Floors:
        """Return the newest readable floors; none at all if no slot can be read."""
        return max((f for f in map(_read, self._paths()) if f), key=lambda f: f.sequence, default=Floors())

    def write(self, floors: Floors) -> None:
        """Store `floors` durably over the older slot. Raises OSError; the newer slot still holds then."""
        newest = self.read().sequence
        path = self._paths()[(newest + 1) % 2]
        data = replace(floors, sequence=newest + 1).to_bytes()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(fd)
        fsync_directory(self._directory)

    def _paths(self) -> tuple[Path, Path]:
        return self._directory / "floors.0", self._directory / "floors.1"


def key_set(*groups: list[str]) -> bytes:
    """Return the name of a set of keys: SHA-256 over the sorted key ids of each role concerned."""
    text = "\n".join(" ".join(sorted(group)) for group in groups)
    return hashlib.sha256(text.encode()).digest()


def _read(path: Path) -> Floors | None:
    try:
        with path.open("rb") as f:
            return Floors.from_bytes(f.read(_MAX + _DIGEST))
    except (FileNotFoundError, FormatError):
        return None
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        return None  # a worn-out block spoils a slot like a torn write


def _floor(value: object) -> Floor:
    match value:
        case [int(number), bytes(keys)] if number >= 0 and len(keys) in {0, _KEY_SET} and not isinstance(number, bool):
            return Floor(number, keys)
    raise FormatError("floors: expected [number, key set]")


def _higher(old: Floor | None, new: Floor) -> Floor:
    return old if old and old.keys == new.keys and old.value >= new.value else new

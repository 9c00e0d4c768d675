"""A fleet server's private KEM keys: rings of current, next and previous keys, each ring one file of mode 0600.

session  devices seal X1 requests to it (both suites); `next` is announced in signed metadata before it is used
wrap     publishers seal content keys to it
enrol    workstations seal the first PSK of a device to it

Seeds are stored, keys derived. Not here: the signing keys (online_keys.py) and the database key (vault.py).
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from edgeseal.durable import write_atomic
from edgeseal.errors import IntegrityError
from edgeseal.suite import SUITES, PrivateKey

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.session.server import Ring

RINGS: Final = ("session", "wrap", "enrol")
SUITES_OF: Final = {"session": (1, 2), "wrap": (1,), "enrol": (1,)}  # wrap and enrol: the hybrid suite
KEY_LIFETIME: Final = 400 * 86_400  # seconds a session key is announced for; rotation is quarterly, targets last a year
PREVIOUS_KEPT: Final = 7 * 86_400  # session.md §12: devices that slept longer refresh metadata instead

Slot = Literal["current", "next", "previous"]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slot: Slot
    suite: Annotated[int, msgspec.Meta(ge=1, le=255)]
    seed: str
    made: int
    until: int | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    keys: list[_Entry]


@dataclass(frozen=True, slots=True)
class RingKey:
    """One key in its slot; `until` is when a previous key is destroyed."""

    slot: Slot
    key: PrivateKey
    seed: bytes
    made: int
    until: int | None = None

    def __repr__(self) -> str:
        """Never the seed."""
        return f"RingKey({self.slot}, suite={self.key.suite.number})"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys of one purpose."""

    keys: tuple[RingKey, ...]

    @classmethod
    def new(cls, name: str, now: int) -> KeyRing:
        """Make current and next keys for every suite of that ring."""
        slots: tuple[Slot, ...] = ("current", "next")
        return cls(tuple(_new_key(slot, suite, now) for suite in SUITES_OF[name] for slot in slots))

    def rotated(self, name: str, now: int) -> KeyRing:
        """Next becomes current, current previous, previous goes, and a new next is made.

        Only session keys have an end of their own: devices refresh. Publishers may hold an old public.json for long.
        """
        ends = None if name != "session" else now + PREVIOUS_KEPT
        kept = [replace(k, slot="previous", until=ends) for k in self.keys if k.slot == "current"]
        kept += [replace(k, slot="current") for k in self.keys if k.slot == "next"]
        suites = [k.key.suite.number for k in self.keys if k.slot == "next"]
        return KeyRing((*kept, *(_new_key("next", suite, now) for suite in suites)))

    def without_expired(self, now: int) -> KeyRing:
        """Drop previous keys whose time is over."""
        return KeyRing(tuple(k for k in self.keys if k.until is None or k.until > now))

    def ring(self) -> Ring:
        """Return every key by suite and id, as sessions look them up."""
        return {(k.key.suite.number, k.key.public.kid): k.key for k in self.keys}

    def slot(self, slot: Slot) -> list[RingKey]:
        """Return the keys of one slot, one per suite."""
        return [k for k in self.keys if k.slot == slot]

    def save(self, path: Path) -> None:
        """Replace the file durably; only its owner can read it."""
        entries = [
            _Entry(k.slot, k.key.suite.number, base64.b64encode(k.seed).decode(), k.made, k.until) for k in self.keys
        ]
        write_atomic(path, msgspec.json.encode(_File(1, entries)), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Read a file back.

        Raises IntegrityError for a damaged file, OSError.
        """
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
            return cls(tuple(_loaded(e) for e in file.keys))
        except (msgspec.DecodeError, ValueError) as e:
            # Not the reason: it could quote the file.
            raise IntegrityError(
                f"key ring {path.name} is damaged ({type(e).__name__})",
                hint="restore it from the backup of the secrets",
            ) from None


def _new_key(slot: Slot, suite: int, now: int) -> RingKey:
    seed = os.urandom(SUITES[suite].seed_length)
    return RingKey(slot, PrivateKey(suite, seed), seed, now)


def _loaded(entry: _Entry) -> RingKey:
    seed = base64.b64decode(entry.seed, validate=True)
    return RingKey(entry.slot, PrivateKey(entry.suite, seed), seed, entry.made, entry.until)

"""What we ask of staged metadata beyond tuf: allowed key algorithms, versions above the floors, expiry after the floor.

Signatures, thresholds, hashes and the order of versions were tuf's business and are not checked again here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from edgeseal.errors import RefusedError, RollbackError
from edgeseal.trust import views

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tuf.api.metadata import Key, Signed

    from edgeseal.trust.floors import Floor, Floors

_LAST: Final = 253_402_300_799  # 9999-12-31: the last second that both TUF and datetime can write
_ONLINE_ROLES: Final = ("snapshot", "timestamp")


@dataclass(frozen=True)
class Algorithms:
    """Signature schemes that keys may have: offline roles outlive devices, online keys are replaced in a day.

    None allows everything tuf can verify; only the conformance script says that.
    """

    offline: frozenset[str] | None = frozenset({"ml-dsa-65/1", "ml-dsa-87/1"})
    online: frozenset[str] | None = frozenset({"ml-dsa-44/1", "ml-dsa-65/1", "ml-dsa-87/1"})


ML_DSA_ONLY: Final = Algorithms()


def instant(seconds: float) -> datetime:
    """Return a moment that TUF can compare with, whatever a broken clock says."""
    inside = seconds if 0 <= seconds <= _LAST else (0 if seconds < 0 else _LAST)
    return datetime.fromtimestamp(int(inside), UTC)


def date(seconds: float) -> str:
    """Write a moment for a person."""
    return f"{instant(seconds):%Y-%m-%d %H:%M} UTC"


def check_algorithms(files: Mapping[str, bytes], allowed: Algorithms) -> None:
    """Raise RefusedError if any key that signs anything is not of an allowed kind."""
    for name, data in files.items():
        signed = _parse(data) if name.endswith(".json") else None
        if isinstance(signed, Root):
            _check_root(signed, allowed)
        elif isinstance(signed, Targets):
            _check_delegations(signed, name, allowed)


def check_versions(verified: Mapping[str, Floor], floors: Floors) -> None:
    """Raise RollbackError if a role is older than what this device has accepted under the same keys."""
    for role, found in verified.items():
        lowest = floors.version(role, found.keys)
        if found.value < lowest:
            raise RollbackError(
                f"{role} is at version {found.value}, but this device has accepted version {lowest} before",
                hint="the repository or a mirror is older than what it served before; nothing was changed",
            )


def check_expiry(files: Mapping[str, bytes], now: float) -> None:
    """Raise RefusedError if one of the four top-level roles has expired at `now`."""
    states = views.roles(files)
    for role in ("root", "timestamp", "snapshot", "targets"):
        if role in states and states[role].expires <= now:
            raise expired(role, states[role].version, states[role].expires, now)


def expired(role: str, version: int, expires: float, now: float) -> RefusedError:
    """Return the error for expired metadata: which role, since when, and against which time."""
    return RefusedError(
        f"{role} version {version} expired on {date(expires)}; the time here is {date(now)} or later",
        hint="a mirror may hold back newer metadata, nobody has signed it again, or this clock is ahead; "
        "what is installed keeps running",
    )


def _check_root(root: Root, allowed: Algorithms) -> None:
    for role, named in root.roles.items():
        schemes = allowed.online if role in _ONLINE_ROLES else allowed.offline
        _check_keys((root.keys[i] for i in named.keyids if i in root.keys), schemes, f"{role} of root {root.version}")


def _check_delegations(targets: Targets, name: str, allowed: Algorithms) -> None:
    if targets.delegations is not None:
        _check_keys(targets.delegations.keys.values(), allowed.offline, f"a role delegated by {name}")


def _check_keys(keys: Iterable[Key], schemes: frozenset[str] | None, whose: str) -> None:
    for key in keys:
        if schemes is not None and (key.keytype != "ml-dsa" or key.scheme not in schemes):
            raise RefusedError(
                f"a key of {whose} is {key.keytype}/{key.scheme}; allowed: {', '.join(sorted(schemes))}",
                hint="the repository must be signed with ML-DSA keys of the offline or online strength",
            )


def _parse(data: bytes) -> Signed | None:
    """Return metadata that tuf can read. What it cannot read (a torn leftover) nobody can use either."""
    try:
        return Metadata.from_bytes(data).signed
    except DeserializationError:
        return None

"""What enrolment brought besides secrets: who this device is, whose fleet it belongs to. Public, read by `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from edgeseal.durable import write_atomic
from edgeseal.errors import IntegrityError, NotAuthorisedError

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.enrolment import Grant

FORMAT: Final = 1
LOCKED: Final = "locked"  # this file ends the manufacturing line; the unit's condition
MAX_ROOT: Final = 1_048_576
_PROFILE: Final = "profile.json"
_ROOT: Final = "root.json"


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One device's place in a fleet. `time_floor` and `enrolled_at` in Unix seconds; `entropy` is the seed's record."""

    format: int
    device: str
    suite: int
    fleet_url: str
    time_floor: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    enrolled_at: int
    entropy: list[str]

    @classmethod
    def granted(cls, grant: Grant, *, now: int, entropy: list[str]) -> Profile:
        """Return what a grant says; `now` in Unix seconds, `entropy` the record of the device's own seed."""
        return cls(
            format=FORMAT,
            device=grant.device,
            suite=grant.suite,
            fleet_url=grant.fleet_url,
            time_floor=grant.time_floor,
            enrolled_at=now,
            entropy=entropy,
        )


def save(directory: Path, profile: Profile, root: bytes) -> None:
    """Make the provisioned TUF root and the profile durable."""
    write_atomic(directory / _ROOT, root, mode=0o644)
    write_atomic(directory / _PROFILE, msgspec.json.format(msgspec.json.encode(profile), indent=2), mode=0o644)


def remove(directory: Path) -> None:
    """Remove both; the caller flushes the directory."""
    for name in (_PROFILE, _ROOT):
        (directory / name).unlink(missing_ok=True)


def load(directory: Path) -> Profile:
    """Return the profile.

    Raises NotAuthorisedError before enrolment, IntegrityError for a damaged file.
    """
    try:
        data = (directory / _PROFILE).read_bytes()
    except FileNotFoundError:
        raise NotAuthorisedError(
            "this device is not enrolled",
            hint="edgeseal-agent enrol request, then edgeseal-agent enrol accept with the fleet's grant",
        ) from None
    try:
        return msgspec.json.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise IntegrityError(
            f"{_PROFILE} is damaged: {e}", hint="enrol accept with the same grant writes it anew"
        ) from e


def root(directory: Path) -> bytes | None:
    """Return the provisioned root.json, None if it is gone (the committed root goes on)."""
    try:
        data = (directory / _ROOT).read_bytes()
    except FileNotFoundError:
        return None
    return data if len(data) <= MAX_ROOT else None

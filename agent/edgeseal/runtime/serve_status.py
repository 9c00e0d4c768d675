"""What edgeseal-serve says about itself in a file of its own (`--status-file`), replaced whole at every change.

The agent reads it to see whether a release it switched to serves, fails or turns bad; nothing in it is secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from edgeseal.durable import write_atomic
from edgeseal.runtime.shadow_figures import Figures

DEFAULT: Final = Path("/run/edgeseal-serve/status.json")
MAX_LENGTH: Final = 2**20
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Switch = Literal["hand-over", "stop-then-load", "load-on-demand"]
ShadowState = Literal["waiting", "loading", "running", "skipped", "failed"]


class ReleaseStatus(msgspec.Struct, frozen=True):
    """Counts of one release since edgeseal-serve started; times in ms, None without a successful answer."""

    requests: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None


class FailedStatus(msgspec.Struct, frozen=True):
    """A release that was current and did not load; `at` in Unix seconds."""

    release: int
    reason: str
    at: int


class ShadowStatus(msgspec.Struct, frozen=True):
    """A release that is tried on copies of live requests, for the order `id` (edgeseal.runtime.shadow).

    `state`: waiting (for a release that serves) or loading, running; skipped (this device cannot) or failed (it does
    not load), with the `reason`. `seen` answers could have been copied, `copied` were, `dropped` where it was busy.
    """

    release: int
    id: str
    state: ShadowState
    reason: str = ""
    seen: int = 0
    copied: int = 0
    dropped: int = 0
    crashes: int = 0
    figures: Figures = msgspec.field(default_factory=Figures)


class ModelStatus(msgspec.Struct, frozen=True):
    """One model: `serving` answers since `since` (Unix seconds), `candidate` is being loaded, `shadow` only tried."""

    serving: int | None = None
    since: int = 0
    candidate: int | None = None
    failed: FailedStatus | None = None
    mode: Switch = "hand-over"
    releases: dict[str, ReleaseStatus] = {}
    shadow: ShadowStatus | None = None


class ServeStatus(msgspec.Struct, frozen=True):
    """Everything. `pid` is the supervisor's; `boot` the kernel's boot id: a file of another boot says nothing."""

    pid: int
    boot: str
    models: dict[str, ModelStatus] = {}


def outline(shadow: ShadowStatus | None) -> ShadowStatus | None:
    """Return the state of a release in the shadow without what changes with every request."""
    if shadow is None:
        return None
    return msgspec.structs.replace(shadow, seen=0, copied=0, dropped=0, figures=Figures())


def write(path: Path, status: ServeStatus) -> None:
    """Replace the file. Raises OSError."""
    write_atomic(path, msgspec.json.encode(status), mode=0o644)


def read(path: Path) -> ServeStatus | None:
    """Return what edgeseal-serve said last; None if it said nothing, in another boot, or what cannot be read."""
    try:
        with path.open("rb") as f:
            found = msgspec.json.decode(f.read(MAX_LENGTH), type=ServeStatus)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.boot == boot_id() else None


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return _BOOT_ID.read_text("ascii").strip()

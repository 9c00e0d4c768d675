"""What is known about one source at one moment: what `rng status`, reports, metrics and `doctor` show.

Numbers and names only. No sample, no block and no key is ever in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a source is (shared design: entropy, section 7). Only HEALTHY gives blocks."""

    ABSENT = "absent"  # not there, or held by another process
    OPENING = "opening"
    IDENTIFY = "identify"
    NONCE = "nonce"
    STARTUP = "startup"
    CALIBRATE = "calibrate"
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # an alarm: the start-up test runs again
    FAILED = "failed"  # latched
    GONE = "gone"  # lost while it was open


COMING = frozenset(set(State) - {State.ABSENT, State.FAILED, State.GONE})  # a block may be on its way


@dataclass(slots=True)
class Snapshot:
    """One source, filled in by its monitor and handed out as a copy.

    Times in Unix seconds, sigma and mean in codes, rate in samples per second, claim in bits per sample.
    """

    name: str
    state: State = State.ABSENT
    reason: str = ""
    source_class: str = "unknown"
    evidence: str = "none"
    kind: str | None = None
    path: str | None = None
    serial: str | None = None
    firmware: str | None = None
    bits: int | None = None
    claim: float | None = None
    raw: bool | None = None
    mean: float | None = None
    sigma: float | None = None
    qcnr_db: float | None = None
    rate: float | None = None
    slow: str | None = None
    simulated: bool = False  # accepted in the lab only; makes no key even there
    frames: int = 0
    samples: int = 0
    gaps: int = 0
    broken: int = 0
    blocks: int = 0
    bytes_mixed: int = 0
    alarms: tuple[str, ...] = ()
    alarm_count: int = 0
    calibrated_at: int | None = None
    changed_at: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Shape of `--json`."""
        return asdict(self)

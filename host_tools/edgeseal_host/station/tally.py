"""Yield and rate of a run: how many devices passed of those that came, and how many an hour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from edgeseal_host.station.lane import Phase

if TYPE_CHECKING:
    from edgeseal_host.station.lane import View

_HOUR: Final = 3600.0


@dataclass
class Tally:
    """Counts serial numbers, so that a device that failed twice and then passed is one that passed."""

    began_at: float
    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    before: set[str] = field(default_factory=set)
    fastest: float | None = None

    def note(self, view: View) -> None:
        """Count a port that has come to its end."""
        who = view.serial or view.port
        if view.phase is Phase.PASSED:
            self.passed.add(who)
            self.failed.discard(who)
            self.fastest = view.seconds if self.fastest is None else min(self.fastest, view.seconds)
        elif view.phase is Phase.FAILED and who not in self.passed:
            self.failed.add(who)
        elif view.phase is Phase.DONE:
            self.before.add(who)
            self.failed.discard(who)

    @property
    def percent(self) -> float | None:
        """Yield in percent; None before the first device."""
        whole = len(self.passed) + len(self.failed)
        return 100.0 * len(self.passed) / whole if whole else None

    def per_hour(self, now: float) -> float:
        """Devices an hour since the run began."""
        return len(self.passed) * _HOUR / max(now - self.began_at, 1e-9)

    def summary(self, now: float) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "passed": len(self.passed),
            "failed": len(self.failed),
            "done_before": len(self.before),
            "yield_percent": None if self.percent is None else round(self.percent, 1),
            "per_hour": round(self.per_hour(now), 1),
            "seconds": round(now - self.began_at, 2),
        }

"""Numbers about requests, by model and release: what /metrics, the status file and the agent's watch period look at.

Each worker counts its own; the supervisor adds up those that have ended, so that a switch or a crash loses no history.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Seconds, upper ends; a last bucket without an end follows. From a small model on a fast board to a request's deadline.
BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SERVER_ERROR: Final = 500
_OK: Final = 200


class Tally(msgspec.Struct):
    """What one release of one model has done: answers by HTTP status, those with NaN, time of the successful ones."""

    statuses: dict[int, int] = {}
    nan: int = 0
    crashes: int = 0
    seconds: float = 0.0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    @property
    def requests(self) -> int:
        """All answers."""
        return sum(self.statuses.values())

    @property
    def errors(self) -> int:
        """Answers that are the server's or the model's fault, not the client's."""
        return sum(n for status, n in self.statuses.items() if status >= _SERVER_ERROR) + self.nan

    def add(self, status: int, seconds: float, *, nan: bool = False) -> None:
        """Count one answer; the histogram holds successful ones only."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.nan += nan
        if status == _OK:
            self.seconds += seconds
            self.buckets[bisect_left(BUCKETS, seconds)] += 1

    def merged(self, other: Tally) -> Tally:
        """Return the sum of both."""
        return Tally(
            dict(Counter(self.statuses) + Counter(other.statuses)),
            self.nan + other.nan,
            self.crashes + other.crashes,
            self.seconds + other.seconds,
            [a + b for a, b in zip(self.buckets, other.buckets, strict=True)],
        )

    def bucket(self, q: float) -> int | None:
        """Return the number of the bucket that holds quantile `q`; None without an answer."""
        total, seen = sum(self.buckets), 0
        for number, n in enumerate(self.buckets):
            seen += n
            if total and seen >= q * total:
                return number
        return None

    def quantile(self, q: float) -> float | None:
        """Return the upper end, in seconds, of that bucket, of the last one its lower end; None without an answer."""
        bucket = self.bucket(q)
        return None if bucket is None else (*BUCKETS, BUCKETS[-1])[bucket]


Tallies = dict[str, dict[int, Tally]]  # by model and release


def merge(*many: Mapping[str, Mapping[int, Tally]]) -> Tallies:
    """Add up what several workers counted."""
    total: Tallies = {}
    for tallies in many:
        for model, releases in tallies.items():
            mine = total.setdefault(model, {})
            for release, tally in releases.items():
                mine[release] = mine[release].merged(tally) if release in mine else tally
    return total


@dataclass
class Counters:
    """One worker's own tallies, and `history`: those of workers before it."""

    history: Tallies = field(default_factory=dict)
    own: Tallies = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, model: str, release: int, status: int, seconds: float, *, nan: bool = False) -> None:
        """Count one answered request."""
        with self._lock:
            self.own.setdefault(model, {}).setdefault(release, Tally()).add(status, seconds, nan=nan)

    def snapshot(self) -> Any:  # noqa: ANN401 - JSON
        """Return the own tallies as JSON can carry them."""
        with self._lock:
            return msgspec.to_builtins(self.own, str_keys=True)

    def total(self) -> Tallies:
        """Return own tallies and history together."""
        with self._lock:
            return merge(self.history, self.own)

    def text(self, serving: Iterable[tuple[str, int]]) -> str:
        """Return Prometheus' text format (exposition format 0.0.4)."""
        return render(self.total(), serving)


def tallies(data: object) -> Tallies:
    """Inverse of `Counters.snapshot`. Raises msgspec.ValidationError."""
    return msgspec.convert(data, dict[str, dict[int, Tally]], strict=False)


def render(total: Mapping[str, Mapping[int, Tally]], serving: Iterable[tuple[str, int]]) -> str:
    """Return Prometheus' text format."""
    counts, times, crashes = [], [], []
    for model, releases in sorted(total.items()):
        for release, tally in sorted(releases.items()):
            labels = f'model="{model}",release="{release}"'
            counts += [
                f'edgeseal_serve_requests_total{{{labels},status="{status}"}} {n}'
                for status, n in sorted(tally.statuses.items())
            ]
            crashes.append(f"edgeseal_serve_crashes_total{{{labels}}} {tally.crashes}")
            crashes.append(f"edgeseal_serve_nan_total{{{labels}}} {tally.nan}")
            times += _histogram(labels, tally)
    return "\n".join(
        [
            "# HELP edgeseal_serve_requests_total Inference requests answered.",
            "# TYPE edgeseal_serve_requests_total counter",
            *counts,
            "# HELP edgeseal_serve_crashes_total Workers that ended while this release was loaded.",
            "# TYPE edgeseal_serve_crashes_total counter",
            *(line for line in crashes if "_crashes_" in line),
            "# HELP edgeseal_serve_nan_total Answers with values that are not numbers.",
            "# TYPE edgeseal_serve_nan_total counter",
            *(line for line in crashes if "_nan_" in line),
            "# HELP edgeseal_serve_request_seconds Time of successful requests, waiting included.",
            "# TYPE edgeseal_serve_request_seconds histogram",
            *times,
            "# HELP edgeseal_serve_release The release that serves.",
            "# TYPE edgeseal_serve_release gauge",
            *(f'edgeseal_serve_release{{model="{model}"}} {release}' for model, release in serving),
            "",
        ]
    )


def _histogram(labels: str, tally: Tally) -> list[str]:
    lines, below = [], 0
    for end, n in zip((*BUCKETS, "+Inf"), tally.buckets, strict=True):
        below += n
        lines.append(f'edgeseal_serve_request_seconds_bucket{{{labels},le="{end}"}} {below}')
    return [
        *lines,
        f"edgeseal_serve_request_seconds_sum{{{labels}}} {tally.seconds:.6f}",
        f"edgeseal_serve_request_seconds_count{{{labels}}} {below}",
    ]

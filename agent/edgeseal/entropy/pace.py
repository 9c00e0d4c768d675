"""Whether a device keeps time: its clock against ours, and its samples against its clock, both within 2 %.

A stick that is much slower or faster than it says is not the device that was modelled. Readings arrive late and in
bursts, so the clocks are compared by the least delay seen in each second, over ten seconds at least.
"""

from __future__ import annotations

from collections import deque
from typing import Final

TOLERANCE: Final = 0.02
_SPAN: Final = 10.0  # seconds between the two comparisons: 2 % of it is more than a reading is ever late
_BUCKETS: Final = 64  # seconds remembered


class Pace:
    """The time of one open device."""

    def __init__(self) -> None:
        """Start without a history."""
        self._least: deque[tuple[int, float, float]] = deque(maxlen=_BUCKETS)  # second, host, device ahead of host
        self._last: tuple[int, int, int] | None = None  # first sample, samples, device µs
        self._rates: deque[float] = deque(maxlen=_BUCKETS)  # samples per second of the device's clock
        self._nominal: float | None = None

    @property
    def rate(self) -> float | None:
        """Samples per second by the device's clock, the median of the last frames; None until it is known."""
        return sorted(self._rates)[len(self._rates) // 2] if self._rates else None

    def feed(self, first: int | None, count: int, device_us: int | None, now: float) -> None:
        """Note a reading: its first sample's number, how many samples, the device's clock; `now` is ours in seconds."""
        if device_us is None:
            return
        ahead = device_us / 1e6 - now
        second = int(now)
        if self._least and self._least[-1][0] == second:
            if ahead > self._least[-1][2]:
                self._least[-1] = (second, now, ahead)
        else:
            self._least.append((second, now, ahead))
        if first is not None:
            self._note_rate(first, count, device_us)

    def fault(self) -> str | None:
        """Return what is off by more than the tolerance, or None."""
        drift = self._drift()
        if abs(drift) > TOLERANCE:
            return f"its clock is {100 * drift:+.1f} % off ours"
        if self._nominal and self.rate and abs(self.rate / self._nominal - 1) > TOLERANCE:
            return f"its sampling rate changed from {self._nominal:.0f} to {self.rate:.0f} samples a second"
        return None

    def _note_rate(self, first: int, count: int, device_us: int) -> None:
        last, self._last = self._last, (first, count, device_us)
        if last is None or first != last[0] + last[1] or device_us <= last[2]:
            return
        self._rates.append(count / ((device_us - last[2]) / 1e6))
        if self._nominal is None and len(self._rates) == _BUCKETS:
            self._nominal = self.rate

    def _drift(self) -> float:
        """Return how much faster than ours the device's clock runs, as a share; 0 while too little was seen."""
        if len(self._least) < 2 or self._least[-1][1] - self._least[0][1] < _SPAN:  # noqa: PLR2004 - two ends
            return 0.0
        (_, t0, a0), (_, t1, a1) = self._least[0], self._least[-1]
        return (a1 - a0) / (t1 - t0)

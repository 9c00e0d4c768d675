"""One calibration sweep: sums over LED off and L1 to L4, as the CAL frame carries them."""

from array import array

from edgeseal.stick import frame, messages

from . import loops, loops_plain

BLOCKS = 17  # 8160 samples a level: the variance is known to 1.6 %
_MIDDLE = loops_plain.MIDDLE


class Sweep:
    """Gathers level after level; `records` grows by one with each `close_level`."""

    def __init__(self) -> None:
        """Begin with the LED off."""
        self.level = 0
        self.records: list[messages.Record] = []
        self._sums = array("i", [0] * loops_plain.MOMENTS_LENGTH)
        self._blocks = self._total = self._squares = self._products = self._ends = 0
        self._first = self._last = self._low = self._high = 0
        self._begin_level()

    def feed(self, block: bytearray, gap: bool) -> bool:
        """Add a block; return whether the level is complete. A gap begins the level again: neighbours must touch."""
        if gap:
            self._begin_level()
        sums = self._sums
        loops.moments(block, frame.SAMPLES, sums)
        if self._blocks:
            self._products += self._last * sums[loops_plain.FIRST]
        else:
            self._first = sums[loops_plain.FIRST]
        self._last = sums[loops_plain.FINAL]
        self._total += sums[loops_plain.TOTAL]
        self._squares += sums[loops_plain.SQUARES]
        self._products += sums[loops_plain.PRODUCTS]
        self._low = min(self._low, sums[loops_plain.LOW])
        self._high = max(self._high, sums[loops_plain.HIGH])
        self._ends += sums[loops_plain.ENDS]
        self._blocks += 1
        return self._blocks == BLOCKS

    def close_level(self, v_dc: int) -> None:
        """Turn sums about the middle into sums about zero, and go to the next level."""
        n = BLOCKS * frame.SAMPLES
        ends = 2 * self._total - self._first - self._last
        record = messages.Record(
            led=self.level,
            count=n,
            total=self._total + n * _MIDDLE,
            squares=self._squares + 2 * _MIDDLE * self._total + n * _MIDDLE * _MIDDLE,
            products=self._products + _MIDDLE * ends + (n - 1) * _MIDDLE * _MIDDLE,
            v_dc=v_dc,
            saturated=self._ends,
            low=self._low,
            high=self._high,
        )
        self.records.append(record)
        self.level += 1
        self._begin_level()

    def plausible(self) -> bool:
        """Whether the photocurrent rose from level to level and nothing was clipped; the host judges the rest."""
        for lower, upper in zip(self.records, self.records[1:]):
            if upper.v_dc <= lower.v_dc:
                return False
        return not any(r.saturated for r in self.records)

    def _begin_level(self) -> None:
        self._blocks = self._total = self._squares = self._products = self._ends = 0
        self._first = self._last = self._high = 0
        self._low = loops_plain.NO_SAMPLE - 1

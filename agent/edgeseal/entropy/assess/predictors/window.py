"""MultiMCW prediction estimate, SP 800-90B §6.3.7: the most common value among the last 63, 255, 1023, 4095 symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.bounds import too_short
from edgeseal.entropy.assess.predictors.outcome import Guesses, estimate

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bounds import Estimate

NAME: Final = "multi-mcw"
WIDTHS: Final = (63, 255, 1023, 4095)


class Window:
    """The most common value of a sliding window; of several, the one seen last."""

    def __init__(self, symbols: bytes, width: int) -> None:
        """Fill it with the first `width` symbols."""
        self._symbols, self._width = symbols, width
        self._counts = [0] * 256
        self._last = [-1] * 256
        self.mode, self._most = -1, 0
        for i in range(width):
            self._enter(i)

    def slide(self, i: int) -> None:
        """Let symbol `i` in and the oldest out."""
        leaving, mode = self._symbols[i - self._width], self.mode
        self._counts[leaving] -= 1
        self._enter(i)
        if leaving == mode and leaving != self._symbols[i]:
            self._look()

    def _enter(self, i: int) -> None:
        value = self._symbols[i]
        self._last[value] = i
        self._counts[value] += 1
        if self._counts[value] >= self._most:
            self.mode, self._most = value, self._counts[value]

    def _look(self) -> None:
        """Find the mode anew after it has lost one."""
        self._most = max(self._counts)
        last, counts = self._last, self._counts
        self.mode = max((v for v in range(256) if counts[v] == self._most), key=last.__getitem__)


def of_symbols(symbols: bytes, kinds: int) -> Estimate:
    """Estimate from more than 4,095 symbols of `kinds` values."""
    if len(symbols) <= WIDTHS[-1]:
        return too_short(NAME, f"needs more than {WIDTHS[-1]} symbols")
    windows = [Window(symbols, width) for width in WIDTHS]
    scores, winner, found = [0] * len(WIDTHS), 0, Guesses()
    for i in range(WIDTHS[0], len(symbols)):
        value = symbols[i]
        found.note(windows[winner].mode == value)
        for j, width in enumerate(WIDTHS):
            if i < width:
                break
            window = windows[j]
            if window.mode == value:
                scores[j] += 1
                if scores[j] >= scores[winner]:
                    winner = j
            window.slide(i)
    return estimate(NAME, found, len(symbols) - WIDTHS[0], kinds)

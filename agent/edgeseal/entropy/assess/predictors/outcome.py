"""From a predictor's guesses to min-entropy: how many were right, and the longest run of right ones (steps 5 to 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.bounds import of_probability, upper

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bounds import Estimate

_CONFIDENCE: Final = math.log(0.99)  # of not seeing a longer run
_STEPS: Final = 60


@dataclass(slots=True)
class Guesses:
    """The tally of one predictor."""

    correct: int = 0
    run: int = 0
    longest: int = 0

    def note(self, right: bool) -> None:  # noqa: FBT001 - the one thing there is to say
        """Count one guess; no guess at all is a wrong one."""
        if right:
            self.correct += 1
            self.run += 1
            self.longest = max(self.longest, self.run)
        else:
            self.run = 0


def estimate(name: str, found: Guesses, n: int, kinds: int) -> Estimate:
    """Return the estimate from `n` guesses at symbols of `kinds` different values."""
    share = found.correct / n
    overall = upper(share, n) if share else 1 - 0.01 ** (1 / n)
    p = max(overall, 1 / kinds)
    if p < 1 and log_no_longer_run(p, found.longest + 1, n) > _CONFIDENCE:
        p = _local(p, found.longest + 1, n)
    return of_probability(name, p, correct=found.correct, longest_run=found.longest)


def log_no_longer_run(p: float, r: int, n: int) -> float:
    """Return the log of the probability that `n` guesses, each right with probability `p`, have no run of `r`.

    Feller, An Introduction to Probability Theory, vol. 1, XIII.7; with x = 1 + e for the root, so that small e keep
    their digits. -inf where that root is not the least, p >= r / (r + 1): so few guesses do not matter here.
    """
    q, e = 1 - p, 0.0
    for _ in range(_STEPS):
        before, e = e, q * p**r * math.exp((r + 1) * math.log1p(e))
        if not p * (1 + e) < 1 or not r * e < 1:
            return -math.inf
        if e - before <= 1e-17 * e:
            break
    return math.log1p(-p * e / q) - math.log1p(-r * e) - (n + 1) * math.log1p(e)


def _local(low: float, r: int, n: int) -> float:
    """Return the least p above `low` whose guesses would have had a run of `r` with more than 1 %."""
    high = 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if log_no_longer_run(middle, r, n) > _CONFIDENCE else (low, middle)
    return high

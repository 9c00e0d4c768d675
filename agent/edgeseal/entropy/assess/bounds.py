"""What every estimator of SP 800-90B §6.3 shares: its confidence bound, and the shape of its answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

Z: Final = 2.5758293035489008  # upper 99.5 % point of the normal distribution; the standard prints 2.576


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one estimator found: `p` bounds how often the best guess is right, `min_entropy` is bits for one symbol.

    Both are None if the input is too short for the estimator; `why` says so.
    """

    name: str
    min_entropy: float | None
    p: float | None
    detail: dict[str, float] = field(default_factory=dict)
    why: str = ""

    def as_dict(self) -> dict[str, object]:
        """Shape of `assess --json`."""
        about: dict[str, object] = {"name": self.name, "min_entropy": self.min_entropy, "p": self.p, **self.detail}
        return about | {"why": self.why} if self.why else about


def upper(p: float, n: int) -> float:
    """Return the upper end of the 99 % confidence interval of a share `p` seen in `n` (at least 2) symbols."""
    return min(1.0, p + Z * math.sqrt(p * (1 - p) / (n - 1)))


def of_probability(name: str, p: float, **detail: float) -> Estimate:
    """Return the estimate for a symbol that is guessed with probability `p` (0 < p <= 1)."""
    return Estimate(name, -math.log2(p) + 0.0, p, detail)  # + 0.0: never "-0.0 bits"


def too_short(name: str, why: str) -> Estimate:
    """Return the answer of an estimator that cannot run."""
    return Estimate(name, None, None, why=why)

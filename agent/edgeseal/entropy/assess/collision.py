"""Collision estimate, SP 800-90B §6.3.2: how soon a bit comes again. For bits only, as in the final standard.

Two equal bits collide after 2, two different ones at the third, so a bit with P(1) = p collides after 2 + 2p(1 - p) on
average; that is solved for p in closed form (the standard's search finds the same).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from edgeseal.entropy.assess.bounds import Estimate, Z, of_probability, too_short

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bitstring import Bits

NAME = "collision"
_COLLISION = re.compile(rb"(00|11)|(?:01|10).")


def of_bits(bits: Bits) -> Estimate:
    """Estimate from bits; at least 2 collisions are needed."""
    found = _COLLISION.findall(bits.text())
    v, twos = len(found), len(found) - found.count(b"")
    if v < 2:  # noqa: PLR2004 - a standard deviation
        return too_short(NAME, "fewer than two collisions")
    mean = 3 - twos / v
    deviation = math.sqrt((twos * (2 - mean) ** 2 + (v - twos) * (3 - mean) ** 2) / (v - 1))
    return of_mean(mean - Z * deviation / math.sqrt(v))


def of_mean(mean: float) -> Estimate:
    """Estimate from the lower bound of the mean collision time (steps 7 to 9)."""
    p = 0.5 + math.sqrt(max(0.0, 0.25 - max(0.0, mean - 2) / 2))
    return of_probability(NAME, p, mean=mean)

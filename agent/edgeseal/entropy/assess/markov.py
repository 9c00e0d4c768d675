"""Markov estimate, SP 800-90B §6.3.3: the likeliest 128 bits of a source that remembers one bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.bounds import Estimate, of_probability, too_short

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bitstring import Bits

NAME = "markov"
_LENGTH: Final = 128


def of_bits(bits: Bits) -> Estimate:
    """Estimate from at least 2 bits."""
    n = bits.length
    if n < 2:  # noqa: PLR2004 - one transition
        return too_short(NAME, "fewer than two bits")
    value = int.from_bytes(bits.packed, "big") >> (-n % 8)
    ones, last, first = value.bit_count(), value & 1, value >> (n - 1)
    both = (value & (value >> 1)).bit_count()
    from_one, into_one = ones - last, ones - first
    c11, c10, c01 = both, from_one - both, into_one - both
    return of_transitions(ones / n, c00=n - 1 - c11 - c10 - c01, c01=c01, c10=c10, c11=c11)


def of_transitions(p1: float, *, c00: int, c01: int, c10: int, c11: int) -> Estimate:
    """Estimate from the share of ones and the number of each transition (steps 2 to 4)."""
    zero, one = _log(1 - p1), _log(p1)
    t00, t01 = _log(_share(c00, c01)), _log(_share(c01, c00))
    t10, t11 = _log(_share(c10, c11)), _log(_share(c11, c10))
    likeliest = max(
        zero + _times(127, t00),
        zero + _times(64, t01) + _times(63, t10),
        zero + t01 + _times(126, t11),
        one + t10 + _times(126, t00),
        one + _times(64, t10) + _times(63, t01),
        one + _times(127, t11),
    )
    return of_probability(NAME, 2.0 ** max(-1.0, likeliest / _LENGTH), log2_of_likeliest=likeliest)


def _share(count: int, other: int) -> float:
    return count / (count + other) if count else 0.0


def _log(p: float) -> float:
    return math.log2(p) if p > 0 else -math.inf


def _times(n: int, log: float) -> float:
    return n * log

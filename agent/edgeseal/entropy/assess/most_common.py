"""Most common value estimate, SP 800-90B §6.3.1: how often the most frequent symbol comes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgeseal.entropy.assess.bounds import Estimate, of_probability, upper

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bitstring import Bits

NAME = "most common value"


def of_symbols(symbols: bytes) -> Estimate:
    """Estimate from at least 2 symbols, one in each byte."""
    return _of_mode(max(Counter(symbols).values()), len(symbols))


def of_bits(bits: Bits) -> Estimate:
    """Estimate from at least 2 bits."""
    return _of_mode(max(bits.ones, bits.length - bits.ones), bits.length)


def _of_mode(count: int, n: int) -> Estimate:
    return of_probability(NAME, upper(count / n, n), count=count)

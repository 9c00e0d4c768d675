"""Compression estimate, SP 800-90B §6.3.4: how far back the same six bits stood (Maurer's universal statistic)."""

from __future__ import annotations

import binascii
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.bounds import Estimate, Z, too_short

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bitstring import Bits

NAME = "compression"
_BLOCK: Final = 6  # bits
_KINDS: Final = 1 << _BLOCK
_DICTIONARY: Final = 1000  # blocks that only fill the dictionary
_CORRECTION: Final = 0.5907  # of the standard deviation, for dependent distances
_NOTHING: Final = 1e-19  # share of a sum beneath a double's precision
_STEPS: Final = 60


def of_bits(bits: Bits) -> Estimate:
    """Estimate from more than 6,006 bits."""
    blocks = bits.length // _BLOCK
    v = blocks - _DICTIONARY
    if v < 2:  # noqa: PLR2004 - a standard deviation
        return too_short(NAME, f"needs {_BLOCK * (_DICTIONARY + 2)} bits")
    distances = _distances(bits, blocks)
    logs = {d: math.log2(d) for d in distances}
    mean = math.fsum(count * logs[d] for d, count in distances.items()) / v
    square = math.fsum(count * logs[d] ** 2 for d, count in distances.items())
    deviation = _CORRECTION * math.sqrt(max(0.0, square / (v - 1) - mean**2))
    return of_mean(mean - Z * deviation / math.sqrt(v), blocks)


def of_mean(mean: float, blocks: int) -> Estimate:
    """Estimate from the lower bound of the mean log distance over that many blocks (steps 6 to 9): solve for p."""
    low, high = 1 / _KINDS, 1.0
    if _expected(low, blocks) <= mean:
        return Estimate(NAME, 1.0, low, {"mean": mean})
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _expected(middle, blocks) > mean else (low, middle)
    return Estimate(NAME, -math.log2(high) / _BLOCK + 0.0, high, {"mean": mean})


def _distances(bits: Bits, blocks: int) -> Counter[int]:
    """Count the distances from each block after the dictionary's to its last occurrence; to the start if none."""
    text = binascii.b2a_base64(bits.packed, newline=False)[:blocks]  # a character of base64 is six bits
    last = [0] * 256
    found: list[int] = []
    for i, block in enumerate(text, 1):
        if i > _DICTIONARY:
            found.append(i - last[block])
        last[block] = i
    return Counter(found)


def _expected(p: float, blocks: int) -> float:
    """Return the mean log distance if one kind of block has probability `p` and the others share the rest."""
    q = (1 - p) / (_KINDS - 1)
    return _mean_log(p, blocks) + (_KINDS - 1) * _mean_log(q, blocks)


def _mean_log(z: float, blocks: int) -> float:
    """Return G(z) of step 7, its double sum turned round: over distances u, each counted for the blocks it can serve.

    A block at i > d = 1000 sees distance u < i with probability z²(1 - z)^(u - 1), and "never before" as u = i.
    """
    if z <= 0:
        return 0.0
    v = blocks - _DICTIONARY
    total, miss = 0.0, 1.0  # miss = (1 - z)^(u - 1)
    for u in range(1, blocks + 1):
        served = min(v, blocks - u)
        term = math.log2(u) * miss * (z * served + (u > _DICTIONARY))
        total += term
        miss *= 1 - z
        if miss < _NOTHING:
            break
    return z * total / v

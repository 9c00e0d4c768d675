"""How often tuples of every length repeat, for the t-tuple and LRS estimates, without a suffix array.

Both need only two numbers for each length w: how often its most frequent tuple comes, and how many pairs of places
hold the same w symbols. Neither needs the order of whole suffixes. So places are sorted by their next 16 bytes (128
bits for a string of bits), one first byte at a time to keep memory small; neighbours' common prefixes are the
difference of two integers; and only places that agree in all 16 bytes are sorted again by the 16 after. In real noise
that is almost never; a source that replays itself is followed until a budget of work ends (`Repeats.complete`).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgeseal.entropy.assess.bitstring import Bits

_CHUNK: Final = 16  # bytes compared at a time
_BUDGET: Final = 4  # times the length: places sorted again before a replay counts as proven
_BUDGET_BASE: Final = 100_000  # so that short texts are always counted to their end


@dataclass(frozen=True, slots=True)
class Repeats:
    """`most[w]`: count of the most frequent w-tuple; `pairs[w]`: pairs of places with equal w-tuples; w from 1.

    Lengths are in symbols, places overlap, `n` is the number of symbols. If not `complete`, tuples longer than
    `len(most) - 1` repeat as well: estimates from these counts are upper bounds then.
    """

    n: int
    most: list[int]
    pairs: list[int]
    complete: bool


def of_symbols(symbols: bytes) -> Repeats:
    """Count in symbols of one byte each."""
    return _Counting([symbols + bytes(_CHUNK)], len(symbols)).run()


def of_bits(bits: Bits) -> Repeats:
    """Count in bits."""
    size = len(bits.packed) + _CHUNK
    padded = int.from_bytes(bits.packed + bytes(_CHUNK), "big")
    mask = (1 << 8 * size) - 1
    shifted = [((padded << s) & mask).to_bytes(size, "big") for s in range(8)]
    return _Counting(shifted, bits.length).run()


@dataclass(slots=True)
class _Intervals:
    """Turns common prefix lengths of sorted neighbours into counts: an interval is a group that shares `height`.

    The stack of open intervals is the algorithm of Abouelhoda, Kurtz and Ohlebusch (2004) on an LCP table.
    """

    most: list[int]
    pairs: list[int]  # differences: what holds for every length up to a height is added there
    heights: list[int] = field(default_factory=lambda: [0])
    starts: list[int] = field(default_factory=lambda: [0])
    index: int = 0

    def add(self, lengths: Iterable[int]) -> None:
        """Go on with the common prefix lengths of the next neighbours."""
        heights, starts, i = self.heights, self.starts, self.index
        for length in lengths:
            i += 1
            if length > heights[-1]:
                heights.append(length)
                starts.append(i - 1)
            elif length < heights[-1]:
                start = self._close(length, i)
                if length > heights[-1]:
                    heights.append(length)
                    starts.append(start)
        self.index = i

    def _close(self, length: int, i: int) -> int:
        heights, starts, most, pairs = self.heights, self.starts, self.most, self.pairs
        start = i
        while heights[-1] > length:
            height, start = heights.pop(), starts.pop()
            size = i - start
            most[height] = max(most[height], size)
            both = size * (size - 1) // 2
            pairs[height] += both
            pairs[max(length, heights[-1])] -= both
        return start


class _Counting:
    """One text. A place p lies in `shifts[p % k]` at byte p // k, k = 1 for symbols of a byte, 8 for bits."""

    def __init__(self, shifts: list[bytes], n: int) -> None:
        self._shifts = shifts
        self._k = len(shifts)
        self._n = n
        self._step = _CHUNK * self._k  # symbols in one chunk
        self._most: list[int] = [0]
        self._pairs: list[int] = [0]

    def run(self) -> Repeats:
        """Count, chunk by chunk; what agrees in a whole chunk is looked at in the next."""
        level = self._first_level()
        depth, budget = self._step, _BUDGET * self._n + _BUDGET_BASE
        while level and (budget := budget - sum(map(len, level))) >= 0:
            level = self._next_level(level, depth)
            depth += self._step
        longest = max((w for w, count in enumerate(self._most) if count > 1), default=0)
        return Repeats(self._n, self._most[: longest + 1], self._pairs[: longest + 1], complete=not level)

    def _first_level(self) -> list[list[int]]:
        """Sort all places, by first byte so that only a part of their chunks is in memory at once."""
        counts = _Intervals([1] * (self._step + 1), [0] * (self._step + 1))
        deeper: list[list[int]] = []
        before: tuple[int, int] | None = None  # chunk and place of the last in order
        for places in self._by_first_byte():
            if places:
                chunks, order = self._sorted(places, 0)
                here = self._common(chunks, order, 0)
                if before is not None:
                    counts.add(self._common([before[0], chunks[0]], [before[1], order[0]], 0))
                counts.add(here)
                deeper += self._groups(here, order, self._step)
                before = chunks[-1], order[-1]
        self._take(counts)
        return deeper

    def _next_level(self, level: Sequence[list[int]], depth: int) -> list[list[int]]:
        """Sort each group of places that agree in `depth` symbols by the chunk that follows."""
        counts = _Intervals([1] * (self._step + 1), [0] * (self._step + 1))
        deeper: list[list[int]] = []
        for places in level:
            chunks, order = self._sorted(places, depth)
            here = self._common(chunks, order, depth)
            counts.add(here)
            counts.add((0,))  # the next group has nothing to do with this one here
            deeper += self._groups(here, order, depth + self._step)
        self._take(counts)
        return deeper

    def _by_first_byte(self) -> list[array[int]]:
        buckets = [array("I") for _ in range(256)]
        k = self._k
        for shift, text in enumerate(self._shifts):
            count = (self._n - shift + k - 1) // k
            for place, value in zip(range(shift, self._n, k), text[:count], strict=True):
                buckets[value].append(place)
        return buckets

    def _sorted(self, places: Sequence[int], depth: int) -> tuple[list[int], list[int]]:
        """Return the chunks at `depth` as integers, in order, and their places in the same order.

        Later places first among equal ones: what the text's end cuts short is filled up with zeros, the smallest, so
        that the shorter text comes first, as in a sorted list of suffixes.
        """
        shifts, k = self._shifts, self._k
        start = depth // k
        places = sorted(places, reverse=True)
        chunks = [shifts[p % k][p // k + start : p // k + start + _CHUNK].ljust(_CHUNK, b"\0") for p in places]
        order = sorted(range(len(places)), key=chunks.__getitem__)
        return [int.from_bytes(chunks[i], "big") for i in order], [places[i] for i in order]

    def _common(self, chunks: Sequence[int], order: Sequence[int], depth: int) -> list[int]:
        """Return how many symbols each neighbours have in common, ending where the text ends."""
        differ = [(a ^ b).bit_length() for a, b in pairwise(chunks)]
        if self._k == 1:
            common = [_CHUNK - (bits + 7) // 8 for bits in differ]
        else:
            common = [self._step - bits for bits in differ]
        end = self._n - depth
        if max(order) > end - self._step:
            for i, place in enumerate(order):
                if place > end - self._step:
                    for side in (i - 1, i):
                        if 0 <= side < len(common):
                            common[side] = min(common[side], end - place)
        return common

    def _groups(self, common: list[int], order: list[int], depth: int) -> list[list[int]]:
        """Return the places of each run that agrees in the whole chunk and goes on after it."""
        if not common or max(common) < self._step:
            return []
        found: list[list[int]] = []
        run: list[int] = [order[0]]
        for length, place in zip(common, order[1:], strict=True):
            if length == self._step:
                run.append(place)
            else:
                found.append(run)
                run = [place]
        found.append(run)
        alive = ([p for p in run if p + depth < self._n] for run in found if len(run) > 1)
        return [run for run in alive if len(run) > 1]

    def _take(self, counts: _Intervals) -> None:
        """Add one level's counts to the whole: sums over all greater lengths, and the greatest of them."""
        counts.add((0,))
        most, pairs = counts.most, counts.pairs
        for w in range(len(most) - 2, 0, -1):
            most[w] = max(most[w], most[w + 1])
            pairs[w] += pairs[w + 1]
        self._most += most[1:]
        self._pairs += pairs[1:]

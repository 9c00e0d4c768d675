"""Content-defined cutting with a gear hash: an insertion moves the cuts near it and no others.

h(i) = Σ G[byte(i-k)] · 2^k mod 2^32 over the last 32 bytes; a position where h is below a threshold may be a cut. The
table G comes from the family secret, so that the lengths of chunks, which anybody sees, do not show whether a known
text is inside. Sums over 1, 2, 4, 8, 16 and 32 bytes are built by doubling with numpy, about 100 times faster than
byte by byte.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

try:
    import numpy as np
except ImportError as e:
    raise ImportError("building bundles needs the extra 'host': pip install 'edgeseal[host]'") from e

from edgeseal.manifest import CHUNK_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from edgeseal_host.cutting.runs import Buffer

WINDOW: Final = 32  # bytes that a 32-bit gear hash remembers
_BLOCK: Final = 32 * 1024  # the intermediate sums stay in the processor's cache: 120 MiB/s against 45 with 128 KiB
_LABEL: Final = b"edgeseal/gear/v1"


def limits(average: int) -> tuple[int, int, int]:
    """Return the shortest piece, the longest, and the threshold that makes the average between them."""
    shortest = average // 4
    return shortest, min(4 * average, CHUNK_MAX), 2**32 // (average - shortest)


class Gear:
    """The gear table of one model family."""

    def __init__(self, family_secret: bytes) -> None:
        """Derive 256 numbers; the same secret gives the same cuts for ever."""
        seed = hmac.digest(family_secret, _LABEL, "sha256")
        # Explicit byte order: the cuts are the same on every machine.
        self._table = np.frombuffer(hashlib.shake_256(seed).digest(1024), dtype=">u4").astype(np.uint32)

    def boundaries(self, data: Buffer, start: int, stop: int, *, average: int) -> Iterator[int]:
        """Yield the end of each piece of data[start:stop], the last one `stop`; nothing if the range is empty.

        Every piece but the last has `average // 4` bytes or more, none has more than `4 * average` or CHUNK_MAX.
        """
        shortest, longest, threshold = limits(average)
        last = start
        for block in range(start, stop, _BLOCK):
            end = min(block + _BLOCK, stop)
            candidates = self._candidates(data, max(start, block - WINDOW + 1), block, end, threshold)
            while True:
                following = _first(candidates, last + shortest)
                if following is None or following > last + longest:
                    following = last + longest
                if following > end:
                    break  # the next block may hold a nearer one
                last = following
                yield last
        if last < stop:
            yield stop

    def _candidates(self, data: Buffer, before: int, start: int, end: int, threshold: int) -> npt.NDArray[np.int64]:
        """Return the positions in (start, end] behind which a cut may be; the hash begins at `before`."""
        sums = self._table[np.frombuffer(data, dtype=np.uint8, count=end - before, offset=before)]
        shift = 1
        while shift < WINDOW:
            longer = sums.copy()
            longer[shift:] += sums[:-shift] << np.uint32(shift)
            sums, shift = longer, 2 * shift
        return np.flatnonzero(sums[start - before :] < threshold) + start + 1


def _first(candidates: npt.NDArray[np.int64], least: int) -> int | None:
    i = int(np.searchsorted(candidates, least))
    return int(candidates[i]) if i < len(candidates) else None

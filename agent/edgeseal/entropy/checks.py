"""Tests that every block passes before it is mixed, after SP 800-90B §4.4 applied to conditioned bytes (H = 8).

They catch dead and replaying sources, not good liars; that is why blocks are only ever mixed in.
"""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import Final

REPEATS: Final = 6  # RCT cutoff 1 + 40/8: a false alarm once in 2^40 bytes
REMEMBERED: Final = 4096  # blocks, by hash: some 400 kB, and four hours of a source whose pool is kept fresh
DISTINCT: Final = 24  # of 64 random bytes about 57 differ; 24 or fewer happen less often than 2^-80


class Freshness:
    """Refuses blocks that repeat: within themselves, or one that was there before."""

    def __init__(self) -> None:
        """Start without a history."""
        self._seen: dict[bytes, None] = {}  # hashes in the order they came

    @property
    def used(self) -> bool:
        """Whether a good block has been seen."""
        return bool(self._seen)

    def fault(self, block: bytes, length: int) -> str | None:
        """Return what is wrong with `block`, or None. A good block is remembered by its hash."""
        digest = hashlib.sha256(block).digest()[:16]
        if len(block) != length:
            return f"gave {len(block)} bytes where {length} were asked for"
        if max(sum(1 for _ in run) for _, run in groupby(block)) >= REPEATS:
            return f"repeated one byte {REPEATS} times or more"
        if len(set(block)) <= DISTINCT or block[: length // 2] == block[length // 2 :]:
            return "repeats itself within one block"
        if digest in self._seen:
            return "gave the same block twice"
        self._seen[digest] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return None

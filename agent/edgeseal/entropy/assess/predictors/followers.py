"""What followed each context, counted: shared by the MultiMMC and LZ78Y estimates.

Most contexts are seen once, so a context with one follower, seen once, is kept as that symbol alone: a tenth of the
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(slots=True)
class Followers:
    """Counts of the symbols that followed one context; the most frequent, of several the greatest, is the guess."""

    counts: dict[int, int]
    guess: int
    most: int

    def add(self, symbol: int, *, room: bool) -> bool:
        """Count one; a symbol that did not follow before only if there is `room`. Return whether it is new."""
        before = self.counts.get(symbol, 0)
        if not before and not room:
            return False
        count = self.counts[symbol] = before + 1
        if count > self.most or (count == self.most and symbol > self.guess):
            self.guess, self.most = symbol, count
        return not before


Seen: TypeAlias = Followers | int
Contexts: TypeAlias = dict[bytes, Seen]


def guess(seen: Seen) -> tuple[int, int]:
    """Return the symbol that most often followed, and how often."""
    return (seen, 1) if isinstance(seen, int) else (seen.guess, seen.most)


def add(contexts: Contexts, context: bytes, seen: Seen, symbol: int, *, room: bool) -> bool:
    """Count `symbol` after a `context` that was `seen`; return whether that pair is new."""
    if isinstance(seen, int):
        if seen != symbol and not room:
            return False
        seen = contexts[context] = Followers({seen: 1}, seen, 1)
    return seen.add(symbol, room=room)

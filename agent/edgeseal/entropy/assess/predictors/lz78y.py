"""LZ78Y prediction estimate, SP 800-90B §6.3.10: a dictionary of contexts of up to 16 symbols that is soon full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.bounds import too_short
from edgeseal.entropy.assess.predictors.followers import Contexts, add, guess
from edgeseal.entropy.assess.predictors.outcome import Guesses, estimate

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bounds import Estimate

NAME: Final = "lz78y"
DEPTH: Final = 16
MAX_CONTEXTS: Final = 65_536


def of_symbols(symbols: bytes, kinds: int) -> Estimate:
    """Estimate from at least 18 symbols of `kinds` values."""
    if len(symbols) < DEPTH + 2:
        return too_short(NAME, f"needs {DEPTH + 2} symbols")
    dictionary: Contexts = {}
    found = Guesses()
    for i in range(DEPTH, len(symbols)):
        value, most, best = symbols[i], 0, -1
        for d in range(DEPTH, 0, -1):
            context = symbols[i - d : i]
            seen = dictionary.get(context)
            if seen is not None:
                follower, count = guess(seen)
                if count > most:
                    most, best = count, follower
                add(dictionary, context, seen, value, room=True)
            elif len(dictionary) < MAX_CONTEXTS:
                dictionary[context] = value
        if i > DEPTH:
            found.note(best == value)
    return estimate(NAME, found, len(symbols) - DEPTH - 1, kinds)

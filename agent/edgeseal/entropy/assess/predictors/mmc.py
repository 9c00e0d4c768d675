"""MultiMMC prediction estimate, SP 800-90B §6.3.9: Markov models with counting, of 1 to 16 symbols of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.predictors.followers import Contexts, add, guess
from edgeseal.entropy.assess.predictors.outcome import Guesses, estimate

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bounds import Estimate

NAME: Final = "multi-mmc"
DEPTH: Final = 16
MAX_ENTRIES: Final = 100_000  # pairs of context and follower, in each model


def of_symbols(symbols: bytes, kinds: int) -> Estimate:
    """Estimate from at least 3 symbols of `kinds` values."""
    models: list[Contexts] = [{} for _ in range(DEPTH + 1)]  # by length of context
    entries, scores, winner, found = [0] * (DEPTH + 1), [0] * (DEPTH + 1), 1, Guesses()
    for i in range(1, len(symbols)):
        value, favourite, right, known = symbols[i], winner, False, True
        for d in range(1, min(DEPTH, i) + 1):
            context = symbols[i - d : i]
            seen = models[d].get(context) if known else None  # what is not known is not known with more before it
            if seen is None:
                known = False
                if entries[d] < MAX_ENTRIES:
                    models[d][context] = value
                    entries[d] += 1
                elif entries[DEPTH] >= MAX_ENTRIES:
                    break  # nothing longer is known, and nothing longer can be added
                continue
            if guess(seen)[0] == value:
                scores[d] += 1
                right = right or d == favourite
                if scores[d] >= scores[winner]:
                    winner = d
            entries[d] += add(models[d], context, seen, value, room=entries[d] < MAX_ENTRIES)
        if i > 1:
            found.note(right)
    return estimate(NAME, found, len(symbols) - 2, kinds)

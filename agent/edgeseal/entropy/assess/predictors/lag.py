"""Lag prediction estimate, SP 800-90B §6.3.8: the symbol that stood 1 to 128 places before."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.predictors.outcome import Guesses, estimate

if TYPE_CHECKING:
    from edgeseal.entropy.assess.bounds import Estimate

NAME: Final = "lag"
LAGS: Final = 128


def of_symbols(symbols: bytes, kinds: int) -> Estimate:
    """Estimate from at least 3 symbols of `kinds` values.

    Only lags that were right change their score, and those are the distances to the symbol's own last places.
    """
    places: list[deque[int]] = [deque(maxlen=LAGS) for _ in range(256)]  # of each value, the latest first
    places[symbols[0]].appendleft(0)
    scores, winner, found = [0] * (LAGS + 1), 1, Guesses()
    for i in range(1, len(symbols)):
        value = symbols[i]
        found.note(i >= winner and symbols[i - winner] == value)
        for place in places[value]:
            lag = i - place
            if lag > LAGS:
                break
            scores[lag] += 1
            if scores[lag] >= scores[winner]:
                winner = lag
        places[value].appendleft(i)
    return estimate(NAME, found, len(symbols) - 1, kinds)

"""The two estimates from repeated tuples: t-tuple, SP 800-90B §6.3.5, and longest repeated substring (LRS), §6.3.6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.entropy.assess.bounds import Estimate, of_probability, too_short, upper

if TYPE_CHECKING:
    from edgeseal.entropy.assess.repeats import Repeats

T_TUPLE = "t-tuple"
LRS = "lrs"
CUTOFF: Final = 35  # a tuple this frequent is long enough to count and short enough to be counted well


def t_tuple(found: Repeats) -> Estimate:
    """Estimate from the most frequent tuple of every length that comes `CUTOFF` times or more."""
    n = found.n
    lengths = [t for t in range(1, len(found.most)) if found.most[t] >= CUTOFF]
    if not lengths:
        return too_short(T_TUPLE, f"no symbol comes {CUTOFF} times")
    p = max((found.most[t] / (n - t + 1)) ** (1 / t) for t in lengths)
    return of_probability(T_TUPLE, upper(p, n), t=lengths[-1])


def lrs(found: Repeats) -> Estimate:
    """Estimate from the share of equal pairs among longer tuples, up to the longest that comes twice."""
    n = found.n
    u = next((t for t in range(1, len(found.most)) if found.most[t] < CUTOFF), len(found.most))
    lengths = [w for w in range(u, len(found.pairs)) if found.pairs[w]]
    if not lengths:
        return too_short(LRS, "no longer tuple comes twice")
    p = max((found.pairs[w] / ((n - w) * (n - w + 1) // 2)) ** (1 / w) for w in lengths)
    return of_probability(LRS, upper(p, n), u=u, v=lengths[-1])

"""Who keeps off the core of a worker that loads: the one that serves, where callers would feel turns of another on it.

A turn on a core is some milliseconds (background). Answers of that length feel it; longer ones lose more by having a
core less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.runtime.background import keep_apart, keep_no_longer_apart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeseal.runtime.counters import Tally
    from edgeseal.runtime.serving_child import Child

SHORT_SECONDS: Final = 0.01  # of an answer, the mean: three turns


class Apart:
    """At most one worker is apart at a time."""

    def __init__(self) -> None:
        """Nobody is, at first."""
        self._child: Child | None = None

    def only(self, child: Child | None) -> None:
        """Keep `child` apart and nobody else."""
        if child is self._child:
            return
        if self._child is not None and self._child.process.poll() is None:
            keep_no_longer_apart(self._child.process.pid)
        if child is not None:
            keep_apart(child.process.pid)
        self._child = child


def answers_are_short(counted: Iterable[Tally]) -> bool:
    """Whether answers take a few turns at most, by what has been counted; if nothing has, yes."""
    seconds, answers = 0.0, 0
    for tally in counted:
        seconds, answers = seconds + tally.seconds, answers + sum(tally.buckets)
    return seconds <= SHORT_SECONDS * answers

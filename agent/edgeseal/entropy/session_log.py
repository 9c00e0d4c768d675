"""What a source's log says: every change once, never a flood (logger `edgeseal.entropy`).

A stick that is unplugged, stuck or held by another process makes the same error four times a second for months. Here a
line is written when what it says differs from the line before on the same topic, and at most LINES times an hour; what
was left out is counted and said with the next line. Nothing here knows samples or blocks: none can appear in a log.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGER: Final = logging.getLogger("edgeseal.entropy")
LINES: Final = 24  # an hour and source: enough for every state of a bad day, too few to fill a card
_HOUR: Final = 3600.0


class SessionLog:
    """The log of one source."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`name` stands in front of every line; `clock` is monotonic, in seconds."""
        self._name = name
        self._clock = clock
        self._last: dict[str, str] = {}
        self._written: deque[float] = deque()
        self._left_out = 0

    def note(self, topic: str, text: str, level: int = logging.WARNING) -> None:
        """Write `text` unless it is what was said last on this topic, or the hour's lines are used up.

        An error (level ERROR and above) is written even then: there is one per latched failure.
        """
        if self._last.get(topic) == text:
            return
        self._last[topic] = text
        now = self._clock()
        while self._written and now - self._written[0] > _HOUR:
            self._written.popleft()
        if len(self._written) >= LINES and level < logging.ERROR:
            self._left_out += 1
            return
        self._written.append(now)
        more = f" ({self._left_out} lines were left out before)" if self._left_out else ""
        self._left_out = 0
        LOGGER.log(level, "%s: %s%s", self._name, text, more)

    def forget(self, topic: str) -> None:
        """Let the next line on this topic be written even if it says the same: it is news again."""
        self._last.pop(topic, None)

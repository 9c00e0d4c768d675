"""What the service does for randomness: it owns the devices, feeds the kernel, and gives each pass its blocks.

A pass is a process of seconds, too short to open a stick and test it. Without a configured source nothing is loaded and
nothing is done: the service stays as small as it was.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgeseal.device.agent import Agent

PUBLISH_SECONDS: Final = 5.0
_SETTLE: Final = 10.0  # seconds the first pass waits for a device that is there: its start-up test and calibration


class NoSupply:
    """A device without a source."""

    def start(self) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    @contextmanager
    def handed_over(self) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        """Return no argument and no descriptor."""
        yield [], ()


class Supply(NoSupply):
    """The sources of one service."""

    def __init__(self, agent: Agent, clock: Callable[[], float] = time.monotonic) -> None:
        """Load what sources need. Raises UsageError for a mistake in the configuration."""
        from edgeseal.entropy.kernel import Feeder

        entropy = agent.config.entropy
        self._agent = agent
        self._clock = clock
        self._sources = agent.sources
        self._feeder = Feeder(
            agent.mixer,
            seconds=entropy.feed_seconds,
            credit=entropy.credit,
            reseed=entropy.kernel_reseed,
            clock=clock,
        )
        self._published = -PUBLISH_SECONDS
        self._settled = False

    def start(self) -> None:
        """Start looking for the devices, and say on standard error how they fare; returns at once."""
        from edgeseal.entropy.session_log import LOGGER

        if not LOGGER.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))  # the journal knows when and who
            LOGGER.addHandler(handler)
            LOGGER.setLevel(logging.INFO)
        for source in self._sources:
            source.start()

    def tick(self) -> None:
        """Feed the kernel and tell other processes how the sources are, each when it is time to."""
        if self._agent.config.entropy.feed_kernel:
            self._feeder.tick()
        if self._clock() - self._published >= PUBLISH_SECONDS:
            self._published = self._clock()
            self._publish()

    def close(self) -> None:
        """Give the devices back."""
        for source in self._sources:
            source.close()
        published_path(self._agent).unlink(missing_ok=True)

    @contextmanager
    def handed_over(self) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        """Feed the kernel for the pass that is about to start, and lend it a descriptor with its blocks."""
        from edgeseal.entropy.handed import hand_over

        self._settle()
        if self._agent.config.entropy.feed_kernel:
            self._feeder.feed()
        fd = hand_over(self._sources)
        try:
            yield ["--entropy-fd", str(fd)], (fd,)
        finally:
            os.close(fd)

    def _settle(self) -> None:
        """Before the first pass, which may have a key to make, give devices that are there the time they need."""
        if self._settled:
            return
        self._settled = True
        ends = self._clock() + _SETTLE
        for source in self._sources:
            source.settle(ends - self._clock())

    def _publish(self) -> None:
        from edgeseal.entropy.published import publish

        publish(
            published_path(self._agent),
            policy=self._agent.config.entropy.policy,
            sources=[s.snapshot for s in self._sources],
            kernel_feed=self._feeder.last,
        )


def supply(agent: Agent) -> NoSupply:
    """Return what `agent`'s configuration asks for. Raises UsageError for a mistake in it."""
    entropy = agent.config.entropy
    return Supply(agent) if entropy.sources and entropy.policy != "off" else NoSupply()


def published_path(agent: Agent) -> Path:
    """Return where the service tells of its sources: in memory, beside the models."""
    from edgeseal.entropy.published import NAME

    return agent.config.paths.models.parent / NAME

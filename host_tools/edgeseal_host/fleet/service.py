"""One running fleet server: X1, periodic signing, and the worker threads that keep the event loop free.

Not here: HTTP (app.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from tuf.api.metadata import Timestamp

from edgeseal.errors import TemporaryError
from edgeseal_host.fleet import source_states
from edgeseal_host.fleet.checkin import CheckIn
from edgeseal_host.fleet.exchanges import ExchangeThread, answer_group
from edgeseal_host.fleet.logs import event
from edgeseal_host.fleet.metrics import Metrics
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgeseal.session.server import Ring
    from edgeseal_host.fleet.data import Fleet

RING_SECONDS: Final = 2.0  # how soon a rotated ring is used
SIGN_SECONDS: Final = 60.0  # how often to look whether something must be signed again
MAX_WAITING: Final = 4096  # at 1,000 exchanges a second a device waits 4 s at most
P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("edgeseal.fleet")


class Service:
    """An open fleet with its clocks and threads."""

    def __init__(self, fleet: Fleet, *, clock: Callable[[], float] = time.time) -> None:
        """Use the open parts of a fleet; `clock` gives Unix seconds."""
        self.fleet = fleet
        self.metrics = Metrics()
        self._clock = clock
        self._handler = CheckIn(clock=self.now)
        self._ring: Ring = {}
        self._waiting = 0
        self._stamp: tuple[int, ...] = ()
        # Sessions have a thread of their own: a slow upload must not keep devices waiting.
        self._sessions = ExchangeThread(self.x1_group)
        self._workers = ThreadPoolExecutor(max_workers=8, thread_name_prefix="api")

    def now(self) -> int:
        """Return Unix seconds."""
        return int(self._clock())

    def start(self) -> None:
        """Finish what a kill cut short, load the keys, sign what is due."""
        self.fleet.data.sweep()
        self.fleet.objects.prepare()
        self.fleet.objects.sweep()
        self.fleet.publisher.recover()
        self.refresh_ring()
        self.count_sources()
        try:
            self.resign()
        except Exception:  # devices are still better served than not; /healthz says when the timestamp runs out
            logger.exception("signing failed")

    def stop(self) -> None:
        """Let running work end."""
        self._sessions.stop()
        self._workers.shutdown(wait=True)

    async def exchange(self, m1: bytes) -> bytes:
        """Answer one X1 request outside the event loop.

        Raises TemporaryError if too many are waiting: whoever waited longer than a device does would get no answer.
        """
        if self._waiting >= MAX_WAITING:
            raise TemporaryError("too many devices at once")
        self._waiting += 1
        try:
            return await self._sessions.ask(m1)
        finally:
            self._waiting -= 1

    async def in_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run blocking work outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, lambda: work(*args, **kwargs))

    def x1(self, m1: bytes) -> bytes:
        """Answer one X1 request. An exception means: rolled back, the device shall try again."""
        (found,) = self.x1_group([m1])
        if isinstance(found, Exception):
            raise found
        return found

    def x1_group(self, requests: Sequence[bytes]) -> list[bytes | Exception]:
        """Answer X1 requests under one commit: for each its answer, or why the device shall try again.

        Raises EdgesealError or sqlite3.Error if nothing of the group was kept.
        """
        started = time.perf_counter()
        found = answer_group(
            requests,
            ring=self._ring,
            registry=self.fleet.registry,
            handler=self._handler,
            now=self.now(),
            random=os.urandom,
        )
        seconds = time.perf_counter() - started
        self.metrics.group_size.observe(len(found))
        for answered in found:
            self.metrics.exchange_seconds.observe(seconds)
            if not isinstance(answered.answer, Exception):  # x1_http counts those
                self.metrics.exchanges.labels(answered.outcome).inc()
        return [answered.answer for answered in found]

    def refresh_ring(self) -> None:
        """Load the session ring if it was rotated, and drop previous keys whose week is over."""
        self.fleet.data.destroy_expired_keys(now=self.now())
        stamp = self.fleet.data.ring_stamp()
        if stamp != self._stamp:
            event(logger, "key rings loaded")
        self._ring = self.fleet.data.ring("session").without_expired(self.now()).ring()
        self._stamp = stamp

    def resign(self) -> None:
        """Sign snapshot and timestamp again when they are due."""
        if signed := self.fleet.publisher.resign():
            event(logger, "signed again", roles=signed)
        published = self.fleet.publisher.published()
        if published is not None and published.timestamp is not None:
            expires = metadata.read(published.timestamp, Timestamp, what="timestamp.json").signed.expires
            self.metrics.timestamp_expiry.set(expires.timestamp())

    def count_sources(self) -> None:
        """Count the devices' noise sources by state."""
        with self.fleet.registry.read() as connection:
            for state, number in source_states.count(connection).items():
                self.metrics.noise_sources.labels(state).set(number)

    async def tick(self) -> None:
        """Run the periodic work until cancelled; a failure is logged and tried again."""
        last_signed = time.monotonic()
        while True:
            await asyncio.sleep(RING_SECONDS)
            await self._attempt(self._refresh_if_changed)
            if time.monotonic() - last_signed >= SIGN_SECONDS:
                last_signed = time.monotonic()
                await self._attempt(self.resign)
                await self._attempt(self.refresh_ring)
                await self._attempt(self.count_sources)

    def _refresh_if_changed(self) -> None:
        if self.fleet.data.ring_stamp() != self._stamp:
            self.refresh_ring()

    async def _attempt(self, work: Callable[[], None]) -> None:
        try:
            await self.in_thread(work)
        except Exception:  # the server goes on whatever a timer meets
            logger.exception("periodic work failed")

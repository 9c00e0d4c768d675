"""One run of a station: the journal says when it began and how it ended, `hall` does the work in between.

A run ends at Ctrl-C, SIGTERM or SIGHUP (the terminal was closed), or with `once` by itself; a kill -9 leaves no end in
the journal, and the next run goes on all the same. Not here: options, screens, passphrases (edgeseal_host.cli).
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal import __version__
from edgeseal.errors import EdgesealError
from edgeseal_host.station import chain
from edgeseal_host.station.hall import Hall
from edgeseal_host.station.lane import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgeseal_host.station.hall import Audience
    from edgeseal_host.station.journal import Journal
    from edgeseal_host.station.lane import View
    from edgeseal_host.station.scanner import Scanner
    from edgeseal_host.station.tally import Tally
    from edgeseal_host.station.uploader import Uploader
    from edgeseal_host.station.work import Work

FAILED: Final = 1
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `unfinished` are the ports it was stopped on in the middle of a dialogue."""

    tally: Tally
    unfinished: tuple[View, ...] = ()
    refused: int = 0
    left: int = 0

    @property
    def exit_code(self) -> int:
        """130 if devices were left unfinished, 1 if one failed or its record was refused, else 0."""
        if self.unfinished:
            return INTERRUPTED
        return FAILED if self.tally.failed or self.refused else 0

    def summary(self, now: float) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            **self.tally.summary(now),
            "unfinished": [v.serial or v.port for v in self.unfinished],
            "records_refused": self.refused,
            "records_waiting": self.left,
            "exit_code": self.exit_code,
        }


class Run:
    """One run. `sign` signs the journal's head with the station's key under `chain.CONTEXT`."""

    def __init__(
        self,
        work: Work,
        find: Callable[[], Sequence[str]],
        *,
        baud: int,
        audience: Audience,
        sign: Callable[[bytes], bytes],
        scanner: Scanner | None = None,
        upload: Callable[[Journal, Callable[[str], None]], Uploader] | None = None,
    ) -> None:
        """`upload` makes what sends records to the fleet server as they come; None: they are sent later."""
        self._work = work
        self._audience = audience
        self._sign = sign
        self._upload = upload
        self._baud = baud
        self._uploader: Uploader | None = None
        self._problem = ""
        self.hall = Hall(work, find, baud=baud, audience=audience, scanner=scanner, idle=self._idle)

    def __call__(self) -> Outcome:
        """Run to the end.

        Raises EdgesealError or OSError if the journal cannot be written before anything was done, or the terminal is
        gone; the end of the run is in the journal all the same.
        """
        work = self._work
        where = {"operator": work.operator, "batch": work.order.batch, "fixture": work.fixture}
        work.journal.append(chain.BEGAN, detail={"version": __version__, "baud": self._baud}, **where)
        if self._upload is not None:
            self._uploader = self._upload(work.journal, self._audience.said)
        outcome = Outcome(self.hall.tally)
        try:
            with _stopping_at_signals(self.hall.stop):
                self.hall.run()
        finally:
            outcome = self._outcome()
            work.journal.end(self._sign, detail=outcome.summary(work.clock()), **where)
        return outcome

    def _idle(self) -> None:
        """Let records go out. One that cannot be noted as sent is sent again by the next run: no reason to end this."""
        if self._uploader is None:
            return
        try:
            self._uploader.step()
        except (EdgesealError, OSError) as e:
            problem = f"a record was sent, but not noted as sent: {e}"
            if problem != self._problem:
                self._audience.said(problem)
            self._problem = problem

    def _outcome(self) -> Outcome:
        unfinished = tuple(v for v in self.hall.views() if v.phase is Phase.TALKING)
        if self._uploader is None:
            return Outcome(self.hall.tally, unfinished)
        # Whoever does not want to wait for the network has the rest sent later; a full disk is no news here.
        with suppress(KeyboardInterrupt, EdgesealError, OSError):
            self._uploader.close()
        return Outcome(self.hall.tally, unfinished, self._uploader.refused, self._uploader.waiting)


@contextmanager
def _stopping_at_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let the loop end after its round; a second Ctrl-C, after the loop, is Python's own again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop()) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

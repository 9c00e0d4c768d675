"""One port's life: nobody there, a device found, the dialogue, PASS or FAIL until the device is taken away; and again.

Bytes go in and out; which port they come from, `hall` knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from edgeseal.errors import EdgesealError
from edgeseal.provisioning import REMEDIES, Code, RefusalError, Stage, Verdict
from edgeseal_host.station.book import is_unheard_lock, locked_as
from edgeseal_host.station.probe import Probe, printable

if TYPE_CHECKING:
    from edgeseal.provisioning import Station
    from edgeseal_host.station.book import PortBook
    from edgeseal_host.station.cable import Problem
    from edgeseal_host.station.probe import Status
    from edgeseal_host.station.work import Work


class Phase(StrEnum):
    """Where a port is; the words a technician sees."""

    ABSENT = "no port"
    WAITING = "waiting"
    SCAN = "scan it"
    TALKING = "talking"
    PASSED = "PASS"
    FAILED = "FAIL"
    DONE = "done before"


OVER: Final = frozenset({Phase.PASSED, Phase.FAILED, Phase.DONE})


@dataclass(frozen=True, slots=True)
class View:
    """What is shown of a port. `seconds` of the device, or of waiting for one."""

    port: str
    phase: Phase
    serial: str = ""
    device: str = ""
    step: str = ""
    seconds: float = 0.0
    reason: str = ""
    remedy: str = ""
    code: Code | None = None


class Lane:
    """One port."""

    def __init__(self, port: str, work: Work) -> None:
        """Nobody is there yet."""
        self.port = port
        self._work = work
        self.phase = Phase.ABSENT
        self._probe = Probe(work.clock)
        self._talk: Station | None = None
        self._book: PortBook | None = None
        self._verdict: Verdict | None = None
        self._serial = ""
        self._device = ""
        self._note = ""
        self._left = False  # whoever the verdict is about
        self._began_at = work.clock()
        self._ended_at: float | None = None

    # The port ----------------------------------------------------------------------------------------------------

    def plugged(self) -> None:
        """Begin anew on a port that has just been opened."""
        self._left = True
        self._probe = Probe(self._work.clock)
        if self.phase is Phase.ABSENT:
            self._wait_for_one()

    def unplugged(self) -> None:
        """Take in that the port is gone."""
        if self._talk is not None:
            self._talk.abandon()
            self._judge()
        elif self.phase not in OVER:
            self.phase, self._serial, self._verdict = Phase.ABSENT, "", None
            if self._work.once:
                self._end(Verdict.failed(RefusalError(Code.LINE_BROKE, "the port went away")), Phase.FAILED)
        self._left = True

    def blocked(self, problem: Problem) -> None:
        """Take in that the port is there and cannot be opened."""
        if self.phase is not Phase.ABSENT:
            return
        self._verdict = Verdict.failed(RefusalError(Code.NO_PORT, problem.reason, remedy=problem.remedy))
        if self._work.once:
            self._end(self._verdict, Phase.FAILED)

    def retry(self) -> None:
        """Give a device that failed another try without its being taken away."""
        if self.phase is Phase.FAILED:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        self.phase, self._verdict, self._serial, self._device, self._note = Phase.WAITING, None, "", "", ""
        self._began_at, self._ended_at = self._work.clock(), None

    # Bytes -------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what the port brought."""
        if self._talk is None:
            if (status := self._probe.feed(data)) is not None:
                self._met(status)
            return
        self._talk.feed(data)
        if self._talk.verdict is not None:
            self._judge()

    def outgoing(self) -> bytes:
        """Return what is to be written now."""
        if self._talk is None:
            self._notice()
            return self._probe.outgoing()
        out = self._talk.outgoing()
        if self._talk.verdict is not None:
            self._judge()
        return out

    def wait(self) -> float:
        """Seconds until `outgoing` must be called again."""
        wait = self._probe.wait() if self._talk is None else self._talk.wait()
        return 0.0 if wait is None else wait

    # Who is there --------------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        """See what silence means."""
        if self.phase in OVER and self._probe.silent:
            self._left = True
        if self.phase in {Phase.SCAN, Phase.WAITING} and self._serial and self._probe.silent:
            self._wait_for_one()
        if (
            self.phase is Phase.WAITING
            and not self._serial
            and self._work.clock() - self._began_at > self._work.patience
        ):
            self._note = REMEDIES[Code.NO_ANSWER]
            if self._work.once:
                reason = f"no answer in {self._work.patience:.0f} s"
                self._end(Verdict.failed(RefusalError(Code.NO_ANSWER, reason)), Phase.FAILED)

    def _met(self, status: Status) -> None:
        if self.phase in OVER:
            freed = status.stage is Stage.FRESH and self.phase is not Phase.FAILED  # a factory reset
            if self._work.once or not (self._left or freed or status.serial != self._serial):
                return
        if self.phase in OVER or status.serial != self._serial:
            self._wait_for_one()
        self._serial = status.serial
        if status.stage is Stage.LOCKED and (done := locked_as(self._work.journal, status.serial)) is not None:
            self._device = done.device
            refusal = RefusalError(Code.LOCKED, f"provisioned here before, as {done.device}", remedy="take it out")
            self._end(Verdict.failed(refusal), Phase.DONE)
        elif not self._work.may_begin(status.serial):
            self.phase = Phase.SCAN
        elif status.serial in self._work.at_work:
            self._note = "this serial number is on another port too"
        else:
            self._begin()

    def _begin(self) -> None:
        self.phase = Phase.TALKING
        self._began_at = began = self._work.clock()
        self._book = self._work.book(self.port, lambda: self._work.clock() - began)
        self._talk = self._work.station(self._book)
        self._work.at_work.add(self._serial)

    # Verdicts ------------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Take the dialogue's verdict over; a pass may have to be written down still, a failure always."""
        talk, book = self._talk, self._book
        assert talk is not None  # noqa: S101 - callers have checked
        assert book is not None  # noqa: S101 - made together
        assert talk.verdict is not None  # noqa: S101
        self._work.at_work.discard(self._serial)
        self._talk = self._book = None
        self._probe = Probe(self._work.clock)
        if talk.identity is not None:
            self._serial = talk.identity.asked.serial
        verdict = talk.verdict
        try:
            if verdict.passed:
                heard = book.lock_was_heard(self._serial) if is_unheard_lock(self._work.journal, self._serial) else ""
                self._device = talk.result.offer.device if talk.result else heard
            else:
                book.failed(verdict, self._serial, talk.identity)
        except (EdgesealError, OSError) as e:
            if verdict.passed:
                verdict = Verdict.failed(RefusalError(Code.JOURNAL, f"the station could not write: {e}"))
        self._end(verdict, Phase.PASSED if verdict.passed else Phase.FAILED)

    def _end(self, verdict: Verdict, phase: Phase) -> None:
        self._verdict, self.phase, self._left = verdict, phase, False
        self._ended_at = self._work.clock()

    @property
    def serial(self) -> str:
        """Serial number of whoever is or was there."""
        return self._serial

    def view(self) -> View:
        """Return what is to be shown."""
        until = self._work.clock() if self._ended_at is None else self._ended_at
        device, step = self._device, str(self.phase)
        if self._talk is not None:
            step = str(self._talk.state)
        shown = self._verdict or Verdict(passed=False, reason="", remedy=self._note)
        return View(
            port=self.port,
            phase=self.phase,
            serial=printable(self._serial),
            device=device,
            step=step,
            seconds=until - self._began_at,
            reason="" if shown.passed else printable(shown.reason),
            remedy=printable(shown.remedy),
            code=shown.code,
        )

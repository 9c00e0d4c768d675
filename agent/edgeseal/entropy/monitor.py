"""The state machine of one source, without I/O: readings, errors and the time go in, blocks and verdicts come out.

    ABSENT -> OPENING -> IDENTIFY -> NONCE -> STARTUP -> CALIBRATE -> HEALTHY
    HEALTHY -> SUSPECT   an alarm: what waits is dropped, the start-up test runs again; the third in an hour fails it
            -> FAILED    certainty, a replay, or a third alarm: latched until re-plugged and acknowledged
    any     -> GONE      unplugged or hung: scan again

Only HEALTHY yields blocks, and every one of their samples has passed every test. Nothing here waits, locks or opens:
`edgeseal.entropy.reader` does. Not decided here: whether a source is quantum. That is declared and evidenced.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from edgeseal.entropy import battery
from edgeseal.entropy.conditioner import ConditionerError
from edgeseal.entropy.drivers.base import Busy, Gone, Hung, Refused, Replayed, Stalled
from edgeseal.entropy.judgement import calibration_fault, drift
from edgeseal.entropy.opened import Opened
from edgeseal.entropy.records import Baseline, Failure, Records, identity
from edgeseal.entropy.snapshot import Snapshot, State
from edgeseal.entropy.source import BLOCK_LENGTH
from edgeseal.stick import frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.entropy.drivers.base import Calibration, Description, DriverError, Profile, Reading, Symbols
    from edgeseal.entropy.session_log import SessionLog

ALARMS: Final = 3  # in an hour: then it is no accident
ALARM_WINDOW: Final = 3600.0  # seconds
HUNG_READS: Final = 3  # time-outs in a row before a device counts as lost
_KEPT_ALARMS: Final = 8
_STREAMING: Final = frozenset({State.STARTUP, State.CALIBRATE, State.HEALTHY, State.SUSPECT})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from one event: blocks to keep, the pool to drop, the device to close."""

    blocks: tuple[bytes, ...] = ()
    drop: bool = False
    close: bool = False


_GO_ON: Final = Verdict()


class Monitor:
    """One source over all its plugs and losses. Used by one thread; `snapshot` may be read by any."""

    def __init__(
        self,
        name: str,
        *,
        log: SessionLog,
        records: Records | None = None,
        lab: bool = False,
        retry_failed: float | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Start with nothing attached.

        `retry_failed`: seconds after which a latched failure is tried again without an operator; None never does, and a
        security failure waits for one in any case. `lab` accepts simulated devices, whose samples are no entropy.
        """
        self._shown = Snapshot(name)
        self._log = log
        self._records = records or Records()
        self._lab = lab
        self._retry_failed = retry_failed
        self._wall = wall
        self._alarm_times: deque[float] = deque()
        self._failed_here: set[str] = set()  # devices that failed and have not been unplugged since
        self._device = name  # what a failure is recorded under before any device was seen
        self._open: Opened | None = None

    # Before a device is open -----------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What is known now, as a copy: any thread may ask."""
        return replace(self._shown)

    @property
    def state(self) -> State:
        """Where the source is."""
        return self._shown.state

    def absent(self, reason: str) -> None:
        """Note that a scan did not find the device, or could not have it."""
        self._open = None
        self._move(State.ABSENT, reason)
        self._log.note("presence", reason)

    def seen(self, devices: set[str]) -> None:
        """Note which devices (edgeseal.entropy.records.identity) a scan saw: one that is missing was unplugged."""
        self._failed_here &= devices

    def latched(self, device: str) -> str | None:
        """Return why a device may not be opened: it failed, and nobody has re-plugged and acknowledged it."""
        failure = self._records.failure(device)
        if failure is not None and self._retry_failed is not None and not failure.security:
            age = self._wall() - failure.at
            if age >= self._retry_failed:
                self._records.acknowledge(device)
                self._failed_here.discard(device)
                failure = None
        if failure is not None:
            return failure.reason
        return "acknowledged, but not yet unplugged" if device in self._failed_here else None

    def refuse_latched(self, reason: str) -> None:
        """Note that the only device there is one that failed."""
        self._move(State.FAILED, reason)

    def opening(self, description: Description) -> None:
        """Note that a device is being claimed."""
        self._move(State.OPENING, "")
        self._device = identity(description)

    def opened(self, description: Description, profile: Profile, symbols: Symbols, *, calibrates: bool) -> Verdict:
        """Begin the start-up test of a device that has just been opened, identified and given its nonce."""
        self._device = identity(description)
        self._move(State.IDENTIFY, "")
        try:
            self._open = opened = Opened(self._shown.name, profile, symbols, calibrates=calibrates)
        except (ConditionerError, ValueError) as e:
            return self._fail(str(e))
        self._show(
            source_class=profile.source_class, evidence=opened.evidence, kind=description.kind, path=description.path,
            serial=description.serial, firmware=description.firmware, bits=symbols.bits, claim=symbols.claim,
            raw=symbols.raw, mean=None, sigma=None, qcnr_db=None, rate=None, slow=None, simulated=False,
        )  # fmt: skip
        self._move(State.NONCE, "")
        self._start_up(State.STARTUP, "")
        return _GO_ON

    # While it is open ------------------------------------------------------------------------------------------------

    def reading(self, reading: Reading, now: float) -> Verdict:
        """Judge one frame; `now` is monotonic, in seconds."""
        opened = self._now_open()
        opened.hung = 0
        shown, gaps = self._shown, opened.gaps
        shown.frames += 1
        shown.samples += len(reading.samples)
        if reading.flags & frame.SIMULATED:
            if not self._lab:
                return self._fail("the device says that it is simulated: it has no noise source")
            self._show(simulated=True, source_class="unknown", evidence="none")
        replayed, samples = opened.take(reading, now)
        shown.gaps += opened.gaps - gaps
        if replayed:
            return self._fail(replayed, security=True)
        own_word = [n for n, bit in (("rct", frame.RCT_ALARM), ("apt", frame.APT_ALARM)) if reading.flags & bit]
        if own_word:
            return self._alarm(f"its own {' and '.join(own_word)} test failed", now)
        return self._judge(samples, now) if samples else _GO_ON

    def failed_read(self, error: DriverError, now: float) -> Verdict:
        """Judge an error of the driver, at opening or later."""
        if isinstance(error, Replayed):
            return self._fail(error.message, security=True)
        if isinstance(error, Busy):
            self.absent(error.message)
            return Verdict(drop=True, close=True)
        if isinstance(error, Refused):
            return self._refused(error, now)
        if self.state not in _STREAMING or isinstance(error, (Gone, Stalled)):
            return self._lost(error.message)
        return self._hung(error) if isinstance(error, Hung) else self._broken_frame(error, now)

    def damaged(self, count: int, verdict: Verdict, now: float, last: str = "no valid frame") -> Verdict:
        """Count short or damaged frames that were skipped; `verdict` on what came after them holds unless too many."""
        if verdict.close or verdict.drop:
            return verdict
        self._shown.broken += count
        if self._now_open().broken_frames(count):
            return self._alarm(f"more than 1 % of its frames are damaged, the last: {last}", now)
        return verdict

    def calibration_due(self) -> bool:
        """Whether the reader has to run the device's calibration before anything else."""
        return self.state is State.CALIBRATE

    def calibrated(self, found: Calibration | None, now: float) -> Verdict:
        """Judge a calibration; None: the device has none after all, and its evidence is worth that much less."""
        opened = self._now_open()
        if found is None:
            opened.calibrates = False
            self._become_healthy()
            return _GO_ON
        baseline = self._records.baseline(self._device)
        if fault := calibration_fault(found, baseline):
            return self._alarm(f"calibration: {fault}", now)
        if baseline is None:
            baseline = Baseline(found.mean, found.sigma, found.off_variance, found.slope)
            self._records.keep_baseline(self._device, baseline)
        drifted = drift(found, baseline)
        if drifted:
            self._log.note("drift", f"{drifted}: half its claim is counted")
        opened.calibrate(found, drifted=drifted is not None)
        self._show(mean=found.mean, sigma=found.sigma, qcnr_db=found.qcnr_db, calibrated_at=int(self._wall()))
        self._become_healthy()
        return _GO_ON

    def recalibrate(self) -> None:
        """Ask for another sweep: the last one is old."""
        if self.state is State.HEALTHY and self._now_open().calibrates:
            self._move(State.CALIBRATE, "")

    def repeated(self) -> Verdict:
        """Note that a block came out as an earlier one did, perhaps before the device was unplugged: it replays."""
        return self._fail("the same block was made twice: samples are being replayed", security=True)

    def copied(self) -> Verdict:
        """Note that this process or machine is a copy of another: what waits may be drawn twice; a new nonce is due."""
        self._open = None
        self._move(State.GONE, "another process or boot than before: begun again with a new nonce")
        self._log.note("copy", "the process was forked or the machine restored: blocks dropped, device opened anew")
        return Verdict(drop=True, close=True)

    def account(self, taken: int) -> None:
        """Note how many blocks were given out."""
        self._shown.bytes_mixed = taken * BLOCK_LENGTH

    # Judging ---------------------------------------------------------------------------------------------------------

    def _judge(self, samples: battery.Samples, now: float) -> Verdict:
        opened = self._now_open()
        running = self.state in {State.HEALTHY, State.CALIBRATE}
        if alarms := opened.judge(samples, running=running):
            return self._alarmed(alarms, now)
        if not running:
            return self._started(now) if opened.starting.done else _GO_ON
        self._note_pace(opened)
        if self.state is not State.HEALTHY:
            return _GO_ON
        blocks = tuple(opened.conditioner.feed(samples))
        self._shown.blocks += len(blocks)
        return Verdict(blocks)

    def _started(self, now: float) -> Verdict:
        """Go on after the start-up test: to the calibration, or with the mean and spread that it saw."""
        opened = self._now_open()
        mean, sigma = opened.starting.mean, opened.starting.sigma
        if not battery.plausible(sigma, opened.symbols):
            return self._alarm(f"a spread of {sigma:.1f} codes cannot carry {opened.symbols.claim} bits a sample", now)
        self._show(mean=round(mean, 2), sigma=round(sigma, 2))
        if opened.calibrates:
            self._move(State.CALIBRATE, "")
        else:
            self._become_healthy()
        return _GO_ON

    def _become_healthy(self) -> None:
        opened = self._now_open()
        opened.run()
        if not self._shown.simulated:
            self._show(evidence=opened.evidence)
        self._move(State.HEALTHY, "")
        self._log.forget("presence")
        self._log.note("health", f"healthy, {self._shown.source_class}, evidence {self._shown.evidence}", logging.INFO)

    def _alarmed(self, alarms: list[battery.Alarm], now: float) -> Verdict:
        reason = "; ".join(str(a) for a in alarms)
        levels = {a.level for a in alarms}
        if "security" in levels:
            return self._fail(reason, security=True)
        if "certain" in levels:
            return self._fail(reason)
        return self._alarm(reason, now)

    def _alarm(self, reason: str, now: float) -> Verdict:
        """Doubt: drop what waits and test again; the third time within an hour is certainty."""
        self._count_alarm(reason)
        self._alarm_times.append(now)
        while now - self._alarm_times[0] > ALARM_WINDOW:
            self._alarm_times.popleft()
        if len(self._alarm_times) >= ALARMS:
            self._alarm_times.clear()
            return self._fail(f"{ALARMS} alarms within an hour, the last: {reason}", counted=True)
        self._log.note("health", f"suspect: {reason}")
        self._start_up(State.SUSPECT, reason)
        return Verdict(drop=True)

    def _fail(self, reason: str, *, security: bool = False, counted: bool = False) -> Verdict:
        """Latch. The operator hears of it once."""
        if not counted:
            self._count_alarm(reason)
        if security:
            reason = f"security: {reason}"
        self._records.fail(self._device, Failure(self._device, reason, int(self._wall()), security))
        self._failed_here.add(self._device)
        self._open = None
        self._move(State.FAILED, reason)
        self._log.note("health", f"failed: {reason}; not used until re-plugged and acknowledged", logging.ERROR)
        return Verdict(drop=True, close=True)

    def _refused(self, error: DriverError, now: float) -> Verdict:
        """Not what it claims to be: at opening it stays out, later its own bad word is an alarm like any other."""
        if self.state in _STREAMING:
            return self._alarm(error.message, now)
        self._count_alarm(error.message)
        self._open = None
        self._move(State.ABSENT, f"refused: {error.message}")
        self._log.note("presence", f"refused: {error.message}")
        return Verdict(drop=True, close=True)

    def _lost(self, reason: str) -> Verdict:
        self._open = None
        self._move(State.GONE, reason)
        self._log.note("presence", f"lost: {reason}")
        return Verdict(drop=True, close=True)

    def _hung(self, error: DriverError) -> Verdict:
        opened = self._now_open()
        opened.hung += 1
        return self._lost(f"{HUNG_READS} reads in a row: {error.message}") if opened.hung >= HUNG_READS else _GO_ON

    def _broken_frame(self, error: DriverError, now: float) -> Verdict:
        return self.damaged(1, _GO_ON, now, error.message)

    # Small things ----------------------------------------------------------------------------------------------------

    def _now_open(self) -> Opened:
        """Return the open device. Raises RuntimeError if the reader forgot to open one: our mistake, not a device's."""
        if self._open is None:
            raise RuntimeError("no device is open")
        return self._open

    def _start_up(self, state: State, reason: str) -> None:
        self._now_open().start_up(self._records.baseline(self._device))
        self._move(state, reason)

    def _note_pace(self, opened: Opened) -> None:
        rate, fault = opened.pace.rate, opened.pace.fault()
        self._show(rate=rate and round(rate, 1), slow=fault)
        if fault:
            self._log.note("pace", f"keeps no time: {fault}")

    def _count_alarm(self, reason: str) -> None:
        kept = (*self._shown.alarms, reason)[-_KEPT_ALARMS:]
        self._show(alarms=kept, alarm_count=self._shown.alarm_count + 1)

    def _show(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Snapshot, which mypy cannot spell
        for name, value in changes.items():
            setattr(self._shown, name, value)

    def _move(self, state: State, reason: str) -> None:
        if (state, reason) != (self._shown.state, self._shown.reason):
            self._show(state=state, reason=reason, changed_at=int(self._wall()))

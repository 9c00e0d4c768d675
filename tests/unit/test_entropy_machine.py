"""The state machine under any order of events: it never raises, and a block never leaves a state but HEALTHY.

Events come from a device that may do anything at any time; the rules are what the reader thread is allowed to call.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.noise_driver import GOOD, NoiseDriver

from edgeseal.entropy.drivers.base import Busy, DriverError, Gone, Hung, Reading, Refused, Replayed, Stalled, Symbols
from edgeseal.entropy.monitor import Monitor, Verdict
from edgeseal.entropy.records import Records, identity
from edgeseal.entropy.session_log import SessionLog
from edgeseal.entropy.snapshot import State

ERRORS = [kind("what was seen") for kind in (Busy, DriverError, Gone, Hung, Refused, Replayed, Stalled)]
CALIBRATIONS = [
    None, GOOD, replace(GOOD, qcnr_db=3.0), replace(GOOD, sigma=math.nan), replace(GOOD, slope=-1.0),
    replace(GOOD, mean=math.inf), replace(GOOD, sigma=0.0), replace(GOOD, off_variance=0.0),
]  # fmt: skip
NOISE = [NoiseDriver(seed=n).noise() for n in range(40)]


class Device(RuleBasedStateMachine):
    """One monitor, one device at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.records = Records()
        self.wall = 1.8e9
        self.monitor = Monitor(
            "stick", log=SessionLog("stick"), records=self.records, retry_failed=3600.0, wall=lambda: self.wall
        )
        self.driver = NoiseDriver()
        self.now = 0.0
        self.open = False
        self.pool: list[bytes] = []
        self.first = self.us = self.frame = 0

    @initialize()
    def plug(self) -> None:
        self.connect()

    @precondition(lambda self: not self.open)
    @rule()
    def connect(self) -> None:
        """The reader asks whether it may, then opens."""
        device = identity(self.driver.describe())
        self.monitor.seen({device})
        if reason := self.monitor.latched(device):
            self.monitor.refuse_latched(reason)
            return
        self.monitor.opening(self.driver.describe())
        d = self.driver
        self.open, self.first, self.us = True, 0, 0
        self.follow(self.monitor.opened(d.describe(), d.profile, d.symbols, calibrates=True))

    @precondition(lambda self: not self.open)
    @rule(error=st.sampled_from(ERRORS))
    def cannot_open(self, error: DriverError) -> None:
        if self.monitor.latched(identity(self.driver.describe())) is None:
            self.monitor.opening(self.driver.describe())
            self.follow(self.monitor.failed_read(error, self.now))

    @precondition(lambda self: self.open)
    @rule(frames=st.integers(1, 12))
    def good_frames(self, frames: int) -> None:
        for _ in range(frames):
            if self.open and not self.monitor.calibration_due():
                self.frame += 1
                self.read(
                    NOISE[self.frame % len(NOISE)] if self.frame < len(NOISE) else NoiseDriver(self.frame).noise()
                )

    @precondition(lambda self: self.open)
    @rule(
        samples=st.sampled_from(["constant", "empty", "one", "zeros", "repeat"]),
        jump=st.integers(-2, 3), back=st.booleans(), flags=st.integers(0, 0xFFFF),
    )  # fmt: skip
    def bad_frame(self, samples: str, jump: int, *, back: bool, flags: int) -> None:
        made = {
            "constant": array("H", [1234] * 480), "empty": array("H"), "one": array("H", [1]),
            "zeros": array("H", bytes(960)), "repeat": NOISE[0],
        }[samples]  # fmt: skip
        self.first += jump * 480
        self.us -= 48_000 if back else 0
        self.read(made, flags)

    @precondition(lambda self: self.open)
    @rule(error=st.sampled_from(ERRORS))
    def error(self, error: DriverError) -> None:
        self.follow(self.monitor.failed_read(error, self.now))

    @precondition(lambda self: self.open and self.monitor.calibration_due())
    @rule(found=st.sampled_from(CALIBRATIONS))
    def calibrate(self, found: object) -> None:
        self.follow(self.monitor.calibrated(found, self.now))  # type: ignore[arg-type]

    @precondition(lambda self: self.open and self.monitor.calibration_due())
    @rule()
    def calibrate_well(self) -> None:
        self.follow(self.monitor.calibrated(GOOD, self.now))

    @precondition(lambda self: self.open)
    @rule(count=st.integers(1, 30))
    def damaged(self, count: int) -> None:
        self.follow(self.monitor.damaged(count, Verdict(), self.now))

    @precondition(lambda self: self.open)
    @rule()
    def recalibrate(self) -> None:
        self.monitor.recalibrate()

    @precondition(lambda self: self.open)
    @rule()
    def fork(self) -> None:
        self.follow(self.monitor.copied())

    @rule(hours=st.integers(0, 2), acknowledge=st.booleans(), unplug=st.booleans())
    def time_passes(self, hours: int, *, acknowledge: bool, unplug: bool) -> None:
        self.now += 3600 * hours
        self.wall += 3600 * hours
        if acknowledge:
            self.records.acknowledge(identity(self.driver.describe()))
        if unplug and not self.open:
            self.monitor.seen(set())
            self.monitor.absent("not attached")

    def read(self, samples: array[int], flags: int = 1) -> None:
        self.now += 0.024
        self.us += 24_000
        before = self.monitor.state
        verdict = self.monitor.reading(Reading(samples, self.first, self.us, flags), self.now)
        self.first += len(samples)
        if verdict.blocks:
            assert before is self.monitor.state is State.HEALTHY
            assert not verdict.drop
            assert not verdict.close
        self.follow(verdict)

    def follow(self, verdict: Verdict) -> None:
        if verdict.drop:
            self.pool.clear()
        self.pool += verdict.blocks
        self.open = self.open and not verdict.close

    @invariant()
    def what_waits_was_made_by_a_device_that_is_open_and_not_in_doubt(self) -> None:
        state = self.monitor.state
        if self.pool:
            assert self.open
            assert state in {State.HEALTHY, State.CALIBRATE}
        assert self.monitor.snapshot.as_dict()["state"] == state

    @invariant()
    def a_failed_device_is_latched_and_closed(self) -> None:
        if self.monitor.state is State.FAILED:
            assert not self.open
            assert self.monitor.snapshot.reason

    @invariant()
    def every_block_differs(self) -> None:
        assert len(set(self.pool)) == len(self.pool)


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_device_without_entropy_or_with_a_strange_width_never_makes_a_block() -> None:
    for symbols in (Symbols(12, 0.0, raw=True), Symbols(1, 0.8, raw=True), Symbols(16, 16.0, raw=True)):
        monitor = Monitor("x", log=SessionLog("x"))
        d = NoiseDriver()
        if monitor.opened(d.describe(), d.profile, symbols, calibrates=False).close:
            continue
        for n in range(60):
            verdict = monitor.reading(d.read(timeout=1), 0.024 * n)
            assert not verdict.blocks or symbols.bits == 1
            if verdict.close:
                break

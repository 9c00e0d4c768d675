"""Every fault of a noise device that its samples, numbers, clock and flags show, one test a row of the failure table.

The device is a stick in memory; the monitor is the real one and has no clock of its own. Each fault begins after the
device was healthy, which is when it hurts: what it made before must be dropped too.
"""

from __future__ import annotations

import logging
import math
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.noise_driver import FRAME_US, GOOD, MEAN, SAMPLES, SIGMA, NoiseDriver

from edgeseal.entropy import battery
from edgeseal.entropy.drivers.base import DriverError, Gone, Hung, Profile, Refused, Replayed, Stalled, Symbols
from edgeseal.entropy.monitor import Monitor, Verdict
from edgeseal.entropy.records import Records, identity
from edgeseal.entropy.session_log import SessionLog
from edgeseal.entropy.snapshot import State
from edgeseal.stick import frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEALTHY_FRAMES = 40


class Bench:
    """A stick, a monitor and a clock that moves one frame at a time."""

    def __init__(self, driver: NoiseDriver | None = None, **policy: Any) -> None:
        self.driver = driver or NoiseDriver()
        self.now = 100.0
        self.wall = 1_800_000_000.0
        self.records = policy.pop("records", Records())
        self.monitor = Monitor("stick", log=SessionLog("stick"), records=self.records, wall=lambda: self.wall, **policy)
        self.blocks: list[bytes] = []
        self.dropped = 0

    @property
    def device(self) -> str:
        return identity(self.driver.describe())

    def state(self) -> State:
        return self.monitor.state

    def open(self) -> Verdict:
        d = self.driver
        self.monitor.opening(d.describe())
        return self.follow(self.monitor.opened(d.describe(), d.profile, d.symbols, calibrates=True))

    def step(self) -> Verdict:
        """One frame or calibration, as the reader does it."""
        self.now += FRAME_US / 1e6
        try:
            if self.monitor.calibration_due():
                return self.follow(self.monitor.calibrated(self.driver.calibrate(timeout=1), self.now))
            return self.follow(self.monitor.reading(self.driver.read(timeout=0.25), self.now))
        except DriverError as e:
            return self.follow(self.monitor.failed_read(e, self.now))

    def follow(self, verdict: Verdict) -> Verdict:
        if verdict.drop:
            self.dropped += len(self.blocks)
            self.blocks.clear()
        self.blocks += verdict.blocks
        return verdict

    def run(self, frames: int) -> None:
        """Go on until the device is to be closed, at most so many frames."""
        for _ in range(frames):
            if self.step().close:
                return

    def healthy(self) -> Bench:
        """Bring the device up and let it make blocks."""
        self.open()
        self.run(HEALTHY_FRAMES)
        assert self.state() is State.HEALTHY
        assert len(self.blocks) > 20
        return self

    def break_with(self, fault: Callable[[array[int], int], array[int] | Exception]) -> Bench:
        self.driver.faults = [(self.driver.number, fault)]
        return self

    def break_once(self, fault: Callable[[array[int], int], array[int]]) -> Bench:
        at = self.driver.number
        return self.break_with(lambda samples, n: fault(samples, n) if n == at else samples)


# Samples -------------------------------------------------------------------------------------------------------------


def led_dead(samples: array[int], _: int) -> array[int]:
    """Only the amplifier's noise is left: 16.5 LSB instead of 68."""
    return array("H", [int(MEAN + (x - MEAN) * 16.5 / SIGMA) for x in samples])


def constant(samples: array[int], _: int) -> array[int]:
    return array("H", [1234] * len(samples))


def stuck(bit: int, value: int) -> Callable[[array[int], int], array[int]]:
    def fault(samples: array[int], _: int) -> array[int]:
        return array("H", [x | 1 << bit if value else x & ~(1 << bit) for x in samples])

    return fault


def saturated(samples: array[int], _: int) -> array[int]:
    return array("H", [min(4095, max(0, int(MEAN + (x - MEAN) * 20))) for x in samples])


def hum(samples: array[int], number: int) -> array[int]:
    """50 Hz at 20 kS/s, 150 LSB: a ground loop."""
    start = number * len(samples)
    return array("H", [int(x + 150 * math.sin((start + i) * math.tau * 50 / 20_000)) for i, x in enumerate(samples)])


def shifted(samples: array[int], _: int) -> array[int]:
    return array("H", [x + 60 for x in samples])


def smoothed(samples: array[int], _: int) -> array[int]:
    """A low-pass in the wrong place: neighbours depend on each other, spread and mean do not change much."""
    out = [float(samples[0])]
    for x in samples[1:]:
        out.append(MEAN + 0.8 * (out[-1] - MEAN) + 0.6 * (x - MEAN))
    return array("H", [int(x) for x in out])


SAMPLE_FAULTS: dict[str, tuple[Callable[[array[int], int], array[int]], str]] = {
    "led-dead": (led_dead, "sigma"),
    "constant": (constant, "rct"),
    "stuck-bit-0": (stuck(0, 0), "bits"),
    "stuck-bit-4": (stuck(4, 1), "bits"),
    "stuck-bit-7": (stuck(7, 1), ""),
    "saturation": (saturated, "saturation"),
    "hum": (hum, ""),
    "mean-moved": (shifted, "mean"),
    "neighbours": (smoothed, "lag"),
}


@pytest.mark.parametrize("fault", SAMPLE_FAULTS)
def test_bad_samples_are_found_in_the_first_frame_and_what_waits_is_dropped(fault: str) -> None:
    make, test = SAMPLE_FAULTS[fault]
    bench = Bench().healthy()
    waiting = len(bench.blocks)
    bench.break_with(make).step()
    assert bench.state() in {State.SUSPECT, State.FAILED}
    assert bench.dropped == waiting, "blocks made before the alarm are still there"
    assert not bench.blocks
    assert test in bench.monitor.snapshot.reason


@pytest.mark.parametrize("fault", SAMPLE_FAULTS)
def test_bad_samples_that_stay_bad_latch_and_never_make_a_block(fault: str) -> None:
    bench = Bench().healthy().break_with(SAMPLE_FAULTS[fault][0])
    bench.run(60)
    assert bench.state() is State.FAILED
    assert not bench.blocks
    assert bench.records.failure(bench.device) is not None


@pytest.mark.parametrize("fault", ["constant", "stuck-bit-0", "saturation", "hum"])
def test_device_that_was_bad_from_the_beginning_makes_no_block(fault: str) -> None:
    bench = Bench().break_with(SAMPLE_FAULTS[fault][0])
    bench.open()
    bench.run(200)
    assert not bench.blocks
    assert bench.monitor.snapshot.blocks == 0


def test_the_harness_notices_when_the_tests_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the battery a constant device makes blocks, and the tests above would fail."""
    monkeypatch.setattr(battery.Continuous, "feed", lambda *_: [])
    bench = Bench().healthy().break_with(constant)
    before = len(bench.blocks)
    bench.run(10)
    assert len(bench.blocks) > before


def test_one_bad_frame_is_doubt_and_a_good_start_up_heals_it() -> None:
    bench = Bench().healthy()
    bench.break_once(shifted).step()
    assert bench.state() is State.SUSPECT
    bench.run(20)
    assert bench.state() is State.HEALTHY
    assert bench.driver.sweeps == 2, "a new calibration belongs to a new start-up"
    assert bench.monitor.snapshot.alarm_count == 1


@pytest.mark.parametrize(("minutes", "state"), [(19, State.FAILED), (31, State.HEALTHY)])
def test_third_alarm_latches_only_within_an_hour(minutes: int, state: State) -> None:
    bench = Bench().healthy()
    for _ in range(3):
        bench.break_once(shifted).run(20)
        bench.now += 60 * minutes
    assert bench.state() is state


# Numbers, clock, flags -----------------------------------------------------------------------------------------------


def test_replayed_frames_found_by_their_hash_when_the_device_counts_nothing() -> None:
    """Ten frames over and over, from a device without numbers: caught at the eleventh."""
    bench = Bench().healthy()
    kept = [bench.driver.noise() for _ in range(10)]
    first = bench.driver.number
    bench.break_with(lambda _, n: kept[(n - first) % 10])
    bench.run(10)
    assert bench.state() is State.HEALTHY
    assert bench.step().close
    assert bench.monitor.snapshot.reason == "security: a frame came twice (duplicate)"


@pytest.mark.parametrize("what", ["first", "device_us"])
def test_replay_found_by_numbers_that_do_not_advance(what: str) -> None:
    bench = Bench().healthy()
    if what == "first":
        bench.driver.first -= 2 * SAMPLES
    else:
        bench.driver.us -= 2 * FRAME_US
    verdict = bench.step()
    assert verdict == Verdict(drop=True, close=True)
    assert bench.state() is State.FAILED
    assert "security" in bench.monitor.snapshot.reason


def test_replay_that_the_driver_proved_latches_and_waits_for_the_operator_for_ever() -> None:
    bench = Bench(retry_failed=60.0).healthy().break_with(lambda _, __: Replayed("wrong MAC under this nonce"))
    bench.step()
    assert bench.state() is State.FAILED
    bench.wall += 10 * 365 * 86_400
    assert bench.monitor.latched(bench.device) is not None


def test_gap_restarts_the_windows_and_is_no_alarm() -> None:
    """Half a run before the gap and half behind it are no run."""
    bench = Bench().healthy()
    cutoff = 11  # of H = 4 at 2^-40

    def run_at_the_end(samples: array[int], n: int) -> array[int]:
        half = array("H", [2048] * (cutoff // 2 + 1))
        if n == start:
            return samples[: -len(half)] + half
        return half + samples[len(half) :] if n == start + 1 else samples

    start = bench.driver.number
    bench.break_with(run_at_the_end).step()
    bench.driver.first += SAMPLES
    bench.step()
    assert bench.state() is State.HEALTHY
    assert bench.monitor.snapshot.gaps == 1
    assert bench.monitor.snapshot.alarm_count == 0


def test_the_same_run_without_a_gap_is_an_alarm() -> None:
    """Negative control of the test above."""
    bench = Bench().healthy()
    start = bench.driver.number
    half = array("H", [2048] * 6)
    bench.break_with(lambda s, n: s[:-6] + half if n == start else half + s[6:] if n == start + 1 else s)
    bench.run(2)
    assert "rct" in bench.monitor.snapshot.reason


@pytest.mark.parametrize("flag", [frame.RCT_ALARM, frame.APT_ALARM])
def test_device_that_reports_its_own_alarm_is_believed(flag: int) -> None:
    bench = Bench().healthy()
    bench.driver.flags |= flag
    bench.step()
    assert bench.state() is State.SUSPECT
    assert not bench.blocks
    bench.run(10)
    assert bench.state() is State.FAILED


def test_simulated_device_refused_at_its_first_frame() -> None:
    bench = Bench(NoiseDriver(flags=frame.SIMULATED))
    bench.open()
    assert bench.step().close
    assert "simulated" in bench.monitor.snapshot.reason


def test_simulated_device_in_the_lab_is_never_called_quantum() -> None:
    bench = Bench(NoiseDriver(flags=frame.SIMULATED), lab=True).healthy()
    now = bench.monitor.snapshot
    assert (now.simulated, now.source_class, now.evidence) == (True, "unknown", "none")


def test_device_that_runs_slow_is_named_and_goes_on() -> None:
    bench = Bench().healthy()
    for _ in range(700):
        bench.now += 0.03 * FRAME_US / 1e6  # our clock runs on, the device's does not follow
        bench.step()
    assert bench.state() is State.HEALTHY
    assert "% off ours" in (bench.monitor.snapshot.slow or "")


def test_device_in_time_is_not_called_slow_whatever_the_host_does() -> None:
    """Readings that come late, now and then by 150 ms, are the host's fault."""
    bench = Bench().healthy()
    for n in range(700):
        late = 0.15 if n % 7 == 0 else 0.0
        bench.now += late
        bench.step()
        bench.now -= late
    assert bench.monitor.snapshot.slow is None
    assert bench.monitor.snapshot.rate == pytest.approx(20_000, rel=0.001)


# Calibration ---------------------------------------------------------------------------------------------------------

BAD_CALIBRATIONS: dict[str, Any] = {
    "no-light": replace(GOOD, qcnr_db=-math.inf),
    "7.9-dB": replace(GOOD, qcnr_db=7.9),
    "not-a-number": replace(GOOD, qcnr_db=math.nan),
    "intensity-noise": replace(GOOD, excess=0.11),
    "excess-nan": replace(GOOD, excess=math.nan),
    "off-centre": replace(GOOD, mean=2100.0),
    "too-wide": replace(GOOD, sigma=81.0),
}


@pytest.mark.parametrize("fault", BAD_CALIBRATIONS)
def test_light_that_is_not_shot_noise_makes_no_block(fault: str) -> None:
    bench = Bench(NoiseDriver(calibration=BAD_CALIBRATIONS[fault]))
    bench.open()
    bench.run(100)
    assert bench.state() is State.FAILED
    assert bench.monitor.snapshot.blocks == 0
    assert "calibration" in bench.monitor.snapshot.reason


@pytest.mark.parametrize("change", [{"slope": 2.9}, {"slope": 5.7}, {"off_variance": 180.0}, {"off_variance": 370.0}])
def test_another_device_under_the_same_serial_number(change: dict[str, float], tmp_path: Path) -> None:
    """The baseline outlives the process; the exchanged device is measured against it."""
    records = Records(tmp_path / "entropy")
    Bench(records=records).healthy()
    bench = Bench(NoiseDriver(calibration=replace(GOOD, **change)), records=Records(tmp_path / "entropy"))
    bench.open()
    bench.run(100)
    assert bench.state() is State.FAILED
    assert "at its first calibration here" in bench.monitor.snapshot.reason


def test_device_that_ages_is_counted_for_half() -> None:
    records = Records()
    fresh = Bench(records=records).healthy()
    aged = Bench(NoiseDriver(calibration=replace(GOOD, sigma=SIGMA * 0.84)), records=records)
    aged.driver.faults = [(0, lambda s, _: array("H", [int(MEAN + (x - MEAN) * 0.84) for x in s]))]
    aged.open()
    aged.run(HEALTHY_FRAMES)
    assert aged.state() is State.HEALTHY
    assert 0 < aged.monitor.snapshot.blocks <= fresh.monitor.snapshot.blocks / 2 + 1


def test_evidence_is_what_was_seen_not_what_was_declared() -> None:
    bench = Bench()
    bench.open()
    assert bench.monitor.snapshot.evidence == "none", "nothing was calibrated yet"
    bench.run(HEALTHY_FRAMES)
    assert bench.monitor.snapshot.evidence == "model+calibration"
    without = Bench(NoiseDriver(calibration=None)).healthy()
    assert without.monitor.snapshot.evidence == "none"


def test_lying_generator_is_not_detectable_and_is_not_called_more_than_it_declares() -> None:
    """The seeded generator of these tests passes every test: why class and evidence are declared, never inferred."""
    bench = Bench(NoiseDriver(profile=Profile("x", "unknown", "none"), calibration=None)).healthy()
    now = bench.monitor.snapshot
    assert (now.source_class, now.evidence) == ("unknown", "none")


# Errors of the bus ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Gone("errno 19"), Stalled("errno 32")])
def test_unplugged_or_halted_device_is_closed_and_its_blocks_dropped(error: DriverError) -> None:
    bench = Bench().healthy().break_with(lambda _, __: error)
    assert bench.step() == Verdict(drop=True, close=True)
    assert bench.state() is State.GONE
    assert not bench.blocks


def test_hung_device_is_given_up_after_the_third_read() -> None:
    bench = Bench().healthy().break_with(lambda _, __: Hung("errno 110"))
    assert [bench.step().close for _ in range(3)] == [False, False, True]
    assert bench.state() is State.GONE


def test_late_frame_is_no_hang() -> None:
    bench = Bench().healthy()
    start = bench.driver.number
    bench.break_with(lambda s, n: Hung("errno 110") if (n - start) % 3 else s)
    bench.run(30)
    assert bench.state() is State.HEALTHY


def test_hostile_descriptor_keeps_a_device_out() -> None:
    bench = Bench()
    bench.monitor.opening(bench.driver.describe())
    verdict = bench.monitor.failed_read(Refused("has an interface of class 03/01/01"), 1.0)
    assert verdict.close
    assert bench.monitor.snapshot.reason.startswith("refused: ")


def test_damaged_frames_are_skipped_until_they_are_more_than_one_in_a_hundred() -> None:
    bench = Bench().healthy()
    bench.run(460)
    start = bench.driver.number
    bench.break_with(lambda s, n: DriverError("CRC") if (n - start) % 200 == 0 else s)
    bench.run(500)
    assert bench.state() is State.HEALTHY
    assert bench.monitor.snapshot.broken == 3
    bench.break_with(lambda s, n: DriverError("CRC") if n % 8 == 0 else s)
    bench.run(200)
    assert bench.monitor.snapshot.alarm_count >= 1
    assert "damaged" in bench.monitor.snapshot.alarms[-1]


def test_conditioner_that_computes_wrongly_switches_the_device_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeseal.entropy import conditioner

    monkeypatch.setattr(conditioner, "_KNOWN", ((b"Jefe", b"what do ya want for nothing!", "00" * 64),))
    bench = Bench()
    assert bench.open().close
    assert bench.state() is State.FAILED
    assert "RFC 4231" in bench.monitor.snapshot.reason


def test_noise_that_cannot_carry_its_claim_makes_no_block() -> None:
    """Twelve values evenly: 3.6 bits at best, too much for RCT and APT at H = 4 to see, and less than is claimed."""

    def narrow(samples: array[int], _: int) -> array[int]:
        return array("H", [2042 + x % 12 for x in samples])

    bench = Bench(NoiseDriver(calibration=None, faults=[(0, narrow)]))
    bench.open()
    bench.run(100)
    assert bench.state() is State.FAILED
    assert bench.monitor.snapshot.blocks == 0
    assert "cannot carry 4.0 bits" in bench.monitor.snapshot.reason


def test_device_that_claims_no_entropy_makes_no_block() -> None:
    bench = Bench(NoiseDriver(symbols=Symbols(12, 0.0, raw=True)))
    assert bench.open().close


# The latch -----------------------------------------------------------------------------------------------------------


def failed(tmp_path: Path, **policy: Any) -> Bench:
    bench = Bench(records=Records(tmp_path), **policy).healthy().break_with(constant)
    bench.run(5)
    assert bench.state() is State.FAILED
    return bench


def test_latch_outlives_the_process_and_ends_by_acknowledging_and_re_plugging(tmp_path: Path) -> None:
    bench = failed(tmp_path)
    again = Monitor("stick", log=SessionLog("stick"), records=Records(tmp_path))
    assert again.latched(bench.device), "a restart is no repair"
    assert Records(tmp_path).acknowledge(bench.device)
    assert "unplugged" in (bench.monitor.latched(bench.device) or ""), "acknowledged, but the device was not touched"
    bench.monitor.seen(set())
    assert bench.monitor.latched(bench.device) is None


def test_re_plugging_alone_does_not_end_the_latch(tmp_path: Path) -> None:
    bench = failed(tmp_path)
    bench.monitor.seen(set())
    assert bench.monitor.latched(bench.device)


def test_policy_can_try_again_after_a_time(tmp_path: Path) -> None:
    bench = failed(tmp_path, retry_failed=3600.0)
    bench.wall += 3599
    assert bench.monitor.latched(bench.device)
    bench.wall += 1
    assert bench.monitor.latched(bench.device) is None


def test_clock_that_was_set_back_does_not_end_the_latch(tmp_path: Path) -> None:
    bench = failed(tmp_path, retry_failed=3600.0)
    bench.wall = 0.0
    assert bench.monitor.latched(bench.device)


def test_unwritable_disk_latches_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bench = Bench(records=Records(tmp_path / "file" / "entropy")).healthy().break_with(constant)
    bench.run(5)
    assert bench.monitor.latched(bench.device)


# The log -------------------------------------------------------------------------------------------------------------


def test_failure_is_said_once_with_its_reason_and_no_sample(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgeseal.entropy"):
        bench = Bench().healthy().break_with(constant)
        bench.run(50)
    lines = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 1
    assert "came too often in a row" in lines[0].getMessage()
    assert "1234" not in lines[0].getMessage()


def test_device_that_flaps_a_thousand_times_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = SessionLog("stick", clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "edgeseal.entropy"):
        for n in range(1000):
            now[0] += 1.0
            log.note("presence", f"lost: number {n}")
        assert len(caplog.records) == 24
        now[0] += 3601
        log.note("presence", "back")
    assert "976 lines were left out" in caplog.records[-1].getMessage()

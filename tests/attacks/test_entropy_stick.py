"""The firmware's own core over its noise model, through driver, monitor and mixer: every fault, from end to end.

What sends is what the chip would run; what reads is what the device runs. Only the wire and the noise are made up.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.sim.stickmodel import FAULTS
from tests.sim.usbmodel import Bus
from tests.sim.usbstick import K_STICK, FirmwareStick, Stick
from tests.unit.test_entropy import block as os_block
from tests.unit.test_entropy import expected, os_stream

from edgeseal.entropy import EntropyError, Mixer, Policy
from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import DriverError, Options
from edgeseal.entropy.monitor import Monitor
from edgeseal.entropy.pool import Pool
from edgeseal.entropy.records import Records
from edgeseal.entropy.session_log import SessionLog
from edgeseal.entropy.snapshot import State
from edgeseal.entropy.source import Profile

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Driver

FRAME_S = 0.024
HARMLESS = {"gap", "slow"}  # not fatal: windows restart, and `require` alone refuses a slow device
AFTER = 600  # blocks of the noise model before a fault begins: a start-up, a calibration, and some blocks


class Path:
    """One stick on a bus, read as the reader thread does it but with a clock of its own."""

    def __init__(self, model: Any, *, records: Records | None = None, lab: bool = False) -> None:
        self.model = model
        serial = model.strings[3]
        self.options = Options(stick_keys={serial: K_STICK}, lab=lab)
        self.bus = Bus(model)
        self.now = 0.0
        self.pool = Pool()
        self.monitor = Monitor("stick", log=SessionLog("stick"), records=records, lab=lab)
        self.made: list[bytes] = []

    def open(self) -> Driver | None:
        [found] = detect.scan(self.bus, ports=list, kernel=lambda: None)
        self.monitor.opening(found.description)
        try:
            driver = found.open(self.options)
        except DriverError as e:
            self.follow(self.monitor.failed_read(e, self.now))
            return None
        self.follow(self.monitor.opened(driver.describe(), driver.profile, driver.symbols, calibrates=True))
        return driver

    def run(self, frames: int, driver: Any) -> None:
        for _ in range(frames):
            self.now += FRAME_S
            try:
                if self.monitor.calibration_due():
                    verdict = self.monitor.calibrated(driver.calibrate(timeout=5), self.now)
                else:
                    verdict = self.monitor.reading(driver.read(timeout=0.25), self.now)
            except DriverError as e:
                verdict = self.monitor.failed_read(e, self.now)
            if not self.follow(verdict):
                driver.close()
                return

    def follow(self, verdict: Any) -> bool:
        if verdict.drop:
            self.pool.drop()
        self.made += verdict.blocks
        for block in verdict.blocks:
            self.pool.put(block)
        return not verdict.close

    def state(self) -> State:
        return self.monitor.state


class Source:
    """The path's pool as the mixer sees a source."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.profile = Profile("stick", "quantum", "model+calibration")

    def block(self, *, timeout: float) -> bytes:  # noqa: ARG002 - nothing runs meanwhile
        return self._path.pool.take(0)


def test_healthy_stick_streams_through_the_whole_path() -> None:
    path = Path(FirmwareStick())
    path.run(200, path.open())
    now = path.monitor.snapshot
    assert path.state() is State.HEALTHY
    assert (now.source_class, now.evidence) == ("quantum", "model+calibration")
    assert now.qcnr_db is not None
    assert 9 < now.qcnr_db < 14
    assert now.alarm_count == 0
    assert len(set(path.made)) == len(path.made) > 200
    ones = sum(int.from_bytes(b).bit_count() for b in path.made) / (512 * len(path.made))
    assert 0.49 < ones < 0.51


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - HARMLESS))
def test_fault_of_the_stick_stops_it_and_makes_no_key(fault: str) -> None:
    """It begins while the stick works; what waited is dropped, and from then on `require` refuses."""
    path = Path(FirmwareStick(fault=fault, fault_from=AFTER))
    driver = path.open()
    path.run(AFTER + 200, driver)
    assert path.state() is State.FAILED, path.monitor.snapshot
    assert len(path.pool) == 0
    with pytest.raises(EntropyError):
        Mixer([Source(path)], policy=Policy.REQUIRE).draw("kem seed", 64)
    drawn = Mixer([Source(path)], policy=Policy.MIX, os_random=os_stream()).draw("kem seed", 64)
    assert drawn.data == expected(os_block(1, "os"), "kem seed"), "exactly what the OS alone gives"


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - HARMLESS - {"replay", "dim", "drift"}))
def test_stick_that_was_never_well_makes_no_block_at_all(fault: str) -> None:
    """Known from before by its baseline, so that the start-up test already holds it against the model."""
    records = Records()
    well = Path(FirmwareStick(), records=records)
    well.run(120, well.open())
    assert well.state() is State.HEALTHY
    path = Path(FirmwareStick(fault=fault, seed=3), records=records)
    path.run(200, path.open())
    assert path.made == []
    assert path.state() is not State.HEALTHY


@pytest.mark.parametrize("fault", ["dim", "intensity-noise", "led-dead"])
def test_bad_light_is_found_by_the_first_calibration_of_an_unknown_stick(fault: str) -> None:
    path = Path(FirmwareStick(fault=fault))
    path.run(300, path.open())
    assert path.made == []


def test_gaps_restart_windows_and_the_stick_stays_in_use() -> None:
    path = Path(FirmwareStick(fault="gap", fault_from=AFTER))
    path.run(AFTER + 100, path.open())
    assert path.state() is State.HEALTHY
    assert path.monitor.snapshot.gaps > 5


def test_slow_stick_is_named() -> None:
    path = Path(FirmwareStick(fault="slow", fault_from=AFTER))
    path.run(AFTER + 700, path.open())
    assert path.state() is State.HEALTHY
    assert path.monitor.snapshot.slow is not None


def test_recorded_stream_fails_under_a_new_nonce() -> None:
    """Every frame of an earlier session is authentic, for that session."""
    recorded: list[bytes] = []

    def recording(data: bytes) -> bytes:
        recorded.append(data)
        return data

    model = Stick()
    model.forge = recording
    path = Path(model)
    driver = path.open()
    path.run(60, driver)
    assert path.state() is State.HEALTHY
    assert driver is not None
    driver.close()
    replayed = iter(recorded)
    model.forge = lambda data: next(replayed, data)
    path.run(60, path.open())
    assert path.state() is State.FAILED
    assert path.monitor.snapshot.reason.startswith("security: ")
    failure = next(iter(path.monitor._records.failures().values()))
    assert failure.security


def test_lying_stick_changes_nothing_about_what_it_cannot_know() -> None:
    """A stick with a generator inside passes everything; its maker knows every block, and none of the outputs."""
    path = Path(Stick(seed=42))
    path.run(60, path.open())
    known = Path(Stick(seed=42))
    known.run(60, known.open())
    assert path.state() is State.HEALTHY, "no statistics tell"
    assert path.made == known.made, "its maker has them all"
    outputs = set()
    for n in range(20):
        stream = os_stream(f"os {n}")
        one = Path(Stick(seed=42))
        for block in path.made[:2]:
            one.pool.put(block)
        outputs.add(Mixer([Source(one)], policy=Policy.MIX, os_random=stream).draw("kem seed", 64).data)
    assert len(outputs) == 20
    assert not outputs & {hashlib.sha512(b).digest() for b in path.made}


def test_simulated_stick_is_refused_before_its_first_frame() -> None:
    path = Path(FirmwareStick(simulated=True))
    assert path.open() is None
    assert "simulated" in path.monitor.snapshot.reason
    assert path.monitor.snapshot.frames == 0


def test_unpaired_stick_is_used_and_its_evidence_is_none() -> None:
    path = Path(FirmwareStick(k_stick=None))
    path.options = Options()
    path.run(120, path.open())
    assert path.state() is State.HEALTHY
    assert path.monitor.snapshot.evidence == "none"


def test_paired_stick_that_lost_its_key_is_refused() -> None:
    path = Path(FirmwareStick(k_stick=None))
    assert path.options.stick_keys
    assert path.open() is None
    assert path.monitor.snapshot.reason.startswith("refused: ")

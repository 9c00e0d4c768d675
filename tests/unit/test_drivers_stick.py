"""The stick's driver against a stick that is honest, broken, replaced, recorded and lying."""

from __future__ import annotations

import struct
import time
from array import array
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim import usbmodel
from tests.sim.usbmodel import Bus
from tests.sim.usbstick import K_STICK, UNIQUE_ID, FirmwareStick, Stick

from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers import stick as driver_module
from edgeseal.entropy.drivers.base import (
    Busy,
    Calibrated,
    DriverError,
    Gone,
    Hung,
    Options,
    Refused,
    Replayed,
    Stalled,
)
from edgeseal.entropy.drivers.freshness import Freshness
from edgeseal.stick import frame, messages

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRED = Options(stick_keys={UNIQUE_ID.hex(): K_STICK})
TIMEOUT = 0.25


def opened(model: Stick, options: Options = PAIRED) -> driver_module.Stick:
    [found] = detect.scan(Bus(model), ports=list, kernel=lambda: None)
    driver = found.open(options)
    assert isinstance(driver, driver_module.Stick)
    return driver


def test_reads_every_sample_in_order() -> None:
    model = Stick()
    driver = opened(model)
    readings = [driver.read(timeout=TIMEOUT) for _ in range(5)]
    assert [r.samples for r in readings] == model.taken
    assert [r.first for r in readings] == [0, 480, 960, 1440, 1920]
    assert all(r.flags == frame.LED_ON | frame.STARTUP_OK for r in readings)
    times = [r.device_us or 0 for r in readings]
    assert times == sorted(set(times))
    assert driver.damaged == 0


def test_describes_itself_and_declares_its_evidence() -> None:
    driver = opened(Stick())
    described = driver.describe()
    assert (described.kind, described.path) == ("edgeseal-qrng", "usb:1-1.1")
    assert (described.serial, described.firmware, described.rate_bits_s) == (UNIQUE_ID.hex(), "1.2.3", 240_000)
    assert (driver.profile.source_class, driver.profile.evidence) == ("quantum", "model+calibration")
    assert (driver.symbols.bits, driver.symbols.claim, driver.symbols.raw) == (12, 4.0, True)
    assert isinstance(driver, Calibrated)


def test_without_its_key_the_evidence_is_none() -> None:
    driver = opened(Stick(), Options())
    assert driver.profile.evidence == "none"
    assert len(driver.read(timeout=TIMEOUT).samples) == 480


def test_claim_is_lowered_by_the_stick_and_never_raised() -> None:
    low, high = Stick(), Stick()
    low.h_claim, high.h_claim = 3 * 256, 11 * 256
    assert opened(low).symbols.claim == 3.0
    assert opened(high).symbols.claim == 4.0


def test_class_is_what_the_stick_says() -> None:
    model = Stick()
    model.source_class = messages.CLASSICAL
    assert opened(model).profile.source_class == "classical"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (usbmodel.HANG, Hung),
        (usbmodel.STALL, Stalled),
        (usbmodel.UNPLUG, Gone),
        (usbmodel.OVERFLOW, Stalled),
    ],
)
def test_fault_while_reading(fault: str, error: type[DriverError]) -> None:
    model = Stick()
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    model.fault = fault
    with pytest.raises(error) as raised:
        driver.read(timeout=TIMEOUT)
    assert raised.type is error
    assert "usb:1-1.1" in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(usbmodel.BUSY, Busy), (usbmodel.ACCESS, Busy), (usbmodel.UNPLUG, Gone), (usbmodel.HANG, Hung)],
)
def test_fault_while_opening_leaves_nothing_claimed(fault: str, error: type[DriverError]) -> None:
    model = Stick()
    bus = Bus(model)
    [found] = detect.scan(bus, ports=list, kernel=lambda: None)
    model.fault = fault
    with pytest.raises(error):
        found.open(PAIRED)
    assert (bus.claimed, bus.opened) == (set(), 0)


def test_halt_is_cleared_once() -> None:
    model = Stick()
    driver = opened(model)
    model.fault, model.once = usbmodel.STALL, True
    assert driver.read(timeout=TIMEOUT).samples == model.taken[-1]


def test_third_silent_read_resets_the_stick_and_gives_it_up() -> None:
    model = Stick()
    driver = opened(model)
    model.fault = usbmodel.HANG
    for _ in range(2):
        with pytest.raises(Hung):
            driver.read(timeout=TIMEOUT)
    with pytest.raises(Gone, match="silent"):
        driver.read(timeout=TIMEOUT)
    assert model.resets == 1


def test_short_read_loses_no_sample_and_invents_none() -> None:
    model = Stick()
    driver = opened(model)
    model.fault, model.once = usbmodel.SHORT, True
    first = driver.read(timeout=TIMEOUT)
    # half a frame arrived, the other half never: the next whole one is found, and the loss is said
    assert driver.damaged >= 1
    assert first.samples in model.taken
    assert first.samples != model.taken[0]
    following = driver.read(timeout=TIMEOUT)
    assert following.samples in model.taken
    assert (first.flags | following.flags) & frame.OVERRUN or first.first == 480


def test_damaged_frame_is_dropped() -> None:
    model = Stick()
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    damage = iter([b"\xff"])
    model.forge = lambda f: f[:100] + next(damage, f[100:101]) + f[101:]
    reading = driver.read(timeout=TIMEOUT)
    assert reading.samples == model.taken[2]
    assert reading.flags & frame.OVERRUN


def test_garbage_ends_the_opening() -> None:
    model = Stick()
    driver = opened(model)
    model.forge = lambda f: bytes(len(f))
    with pytest.raises(Stalled, match="without a valid frame"):
        driver.read(timeout=10)


def test_lost_frames_are_flagged_and_not_fatal() -> None:
    model = Stick()
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    model.next_frame()
    assert driver.read(timeout=TIMEOUT).flags & frame.OVERRUN
    assert not driver.read(timeout=TIMEOUT).flags & frame.OVERRUN


def test_frames_from_before_the_nonce_are_passed_over() -> None:
    model = Stick()
    model.streaming = True
    for _ in range(30):
        model.next_frame()
    old = model.next_frame()
    model.pending = [(0x81, old)] * 5  # drained before the nonce
    driver = opened(model)
    model.buffer += old  # and one that was under way after it
    assert driver.read(timeout=TIMEOUT).samples == model.taken[-1]


def _replay(model: Stick, options: Options, recorded: list[bytes]) -> None:
    """Open, then play frames that a former session recorded."""
    driver = opened(model, options)
    frames = iter(recorded)
    model.forge = lambda _: next(frames)
    for _ in recorded:
        driver.read(timeout=TIMEOUT)


def test_recorded_stream_fails_under_the_new_nonce() -> None:
    first = Stick()
    opened(first)
    recorded = [first.next_frame() for _ in range(10)]
    with pytest.raises(Replayed, match="MAC"):
        _replay(Stick(), PAIRED, recorded)


def test_recorded_stream_passes_when_the_mac_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    first = Stick()
    opened(first)
    recorded = [first.next_frame() for _ in range(10)]
    monkeypatch.setattr(frame.Frame, "authentic", lambda _self, _key: True)
    _replay(Stick(), PAIRED, recorded)


def test_recorded_stream_of_an_unpaired_stick_fails_its_numbers() -> None:
    first = Stick(k_stick=None)
    opened(first, Options())
    recorded = [first.next_frame() for _ in range(100)]
    with pytest.raises(Replayed, match="restart"):
        _replay(Stick(k_stick=None), Options(), recorded[80:90])
    with pytest.raises(Replayed, match="advance"):
        _replay(Stick(k_stick=None), Options(), [*recorded[:5], *recorded[:5]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "seq", m.seq - 2), "advance"),
        (lambda m: setattr(m, "t_us", m.t_us - 48_000), "clock"),
        (lambda m: setattr(m, "samples", m.samples - 480), "samples"),
        (lambda m: setattr(m, "boot_id", 7), "boot"),
    ],
)
@pytest.mark.parametrize("options", [PAIRED, Options()])
def test_counters_that_go_back(change: Callable[[Stick], Any], reason: str, options: Options) -> None:
    """Even under a good MAC: a stick whose state was set back repeats its past."""
    model = Stick()
    driver = opened(model, options)
    for _ in range(3):
        driver.read(timeout=TIMEOUT)
    change(model)
    with pytest.raises(Replayed, match=reason):
        driver.read(timeout=TIMEOUT)


@pytest.mark.parametrize("bit", [0, 45 * 8, 1003 * 8, 1004 * 8 + 3])
def test_forged_frame_with_a_good_crc(bit: int) -> None:
    model = Stick()
    driver = opened(model)
    driver.read(timeout=TIMEOUT)

    def forged(made: bytes) -> bytes:
        changed = bytearray(made)
        changed[max(bit // 8, 44)] ^= 1 << bit % 8
        buf = bytearray(changed)
        struct.pack_into("<I", buf, 1020, __import__("binascii").crc32(buf[:1020]))
        return bytes(buf)

    model.forge = forged
    with pytest.raises(Replayed):
        driver.read(timeout=TIMEOUT)


def test_frame_of_another_stick_is_a_security_event() -> None:
    model = Stick(k_stick=bytes(32))
    driver = opened(model, PAIRED)
    with pytest.raises(Replayed, match="MAC"):
        driver.read(timeout=TIMEOUT)


def test_stick_that_lost_its_key_is_refused_where_it_was_paired() -> None:
    with pytest.raises(Refused, match="paired"):
        opened(Stick(k_stick=None), PAIRED)


def test_simulated_stick_only_in_the_lab() -> None:
    with pytest.raises(Refused, match="simulated"):
        opened(Stick(simulated=True))
    driver = opened(Stick(simulated=True), replace(PAIRED, lab=True))
    assert driver.read(timeout=TIMEOUT).flags & frame.SIMULATED


def test_simulated_flag_in_a_frame_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stick whose GET_INFO claims hardware is found out by its first frame."""
    model = Stick(simulated=True)
    monkeypatch.setattr(messages, "INFO_SIMULATED", 0)
    driver = opened(model)
    with pytest.raises(Refused, match="simulated"):
        driver.read(timeout=TIMEOUT)


def test_calibration_separates_classical_from_quantum_noise() -> None:
    driver = opened(Stick())
    driver.read(timeout=TIMEOUT)
    found = driver.calibrate(timeout=1.0)
    assert found is not None
    assert found.qcnr_db == pytest.approx(12.1, abs=1.0)  # entropy.md 4.2, at 10 uA
    assert found.off_variance == pytest.approx(16.5**2, rel=0.05)
    assert found.sigma == pytest.approx(68.7, rel=0.05)
    assert found.excess < 0.1
    driver.read(timeout=TIMEOUT)


def test_calibration_in_the_dark_is_refused() -> None:
    model = Stick()
    model.light = False
    driver = opened(model)
    with pytest.raises(Refused, match="photocurrent"):
        driver.calibrate(timeout=1.0)


def test_calibration_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stick()
    driver = opened(model)
    monkeypatch.setattr(model, "control", lambda *_: b"")
    model.fault = usbmodel.HANG
    with pytest.raises(Hung):
        driver.calibrate(timeout=TIMEOUT)


def test_close_is_idempotent_and_gives_everything_back() -> None:
    model = Stick()
    bus = Bus(model)
    [found] = detect.scan(bus, ports=list, kernel=lambda: None)
    driver = found.open(PAIRED)
    driver.close()
    driver.close()
    assert (bus.claimed, bus.opened) == (set(), 0)
    with pytest.raises(Gone, match="closed"):
        driver.read(timeout=TIMEOUT)


def test_close_after_unplug_and_again_after_replug() -> None:
    model = Stick()
    bus = Bus(model)
    [found] = detect.scan(bus, ports=list, kernel=lambda: None)
    driver = found.open(PAIRED)
    bus.unplug(model)
    with pytest.raises(Gone):
        driver.read(timeout=TIMEOUT)
    driver.close()
    assert detect.scan(bus, ports=list, kernel=lambda: None) == []
    bus.plug(model)
    [found] = detect.scan(bus, ports=list, kernel=lambda: None)
    assert found.description.path == "usb:1-1.2"
    assert found.open(PAIRED).read(timeout=TIMEOUT).samples == model.taken[-1]


def test_close_from_another_thread_never_waits_for_the_read() -> None:
    model = Stick()
    bus = Bus(model)
    [found] = detect.scan(bus, ports=list, kernel=lambda: None)
    driver = found.open(PAIRED)
    opened_during_read = []

    def closing(_: object) -> None:
        bus.on_read = lambda _: None
        driver.close()  # as from the main thread, in the middle of a transfer
        opened_during_read.append(bus.opened)

    bus.on_read = closing
    driver.read(timeout=TIMEOUT)
    assert opened_during_read == [1]  # the handle lived until the transfer returned
    assert (bus.opened, bus.claimed) == (0, set())


def test_two_sticks() -> None:
    one, two = Stick(1), Stick(2)
    drivers = [f.open(PAIRED) for f in detect.scan(Bus(one, two), ports=list, kernel=lambda: None)]
    assert [d.read(timeout=TIMEOUT).samples for d in drivers] == [one.taken[0], two.taken[0]]


def firmware(model: FirmwareStick) -> driver_module.Stick:
    [found] = detect.scan(Bus(model), ports=list, kernel=lambda: None)
    driver = found.open(Options(stick_keys={model.core.serial: K_STICK}))
    assert isinstance(driver, driver_module.Stick)
    return driver


def test_the_firmware_itself_is_read_calibrated_and_opened_again() -> None:
    model = FirmwareStick()
    for _ in range(2):  # the second opening sets another nonce
        driver = firmware(model)
        before = [driver.read(timeout=TIMEOUT) for _ in range(10)]
        numbers = [r.first or 0 for r in before]
        assert numbers == [numbers[0] + 480 * i for i in range(10)]
        found = driver.calibrate(timeout=5.0)
        assert found is not None
        assert found.qcnr_db > 8
        assert found.excess < 0.1
        after = driver.read(timeout=TIMEOUT)
        assert (after.first or 0) > numbers[-1]
        driver.close()


def test_the_firmware_says_that_blocks_were_lost() -> None:
    driver = firmware(FirmwareStick(fault="gap"))
    flags = [driver.read(timeout=TIMEOUT).flags for _ in range(40)]
    assert 1 <= sum(bool(f & frame.OVERRUN) for f in flags) <= 10


def test_the_firmware_with_a_dead_light_is_refused_by_its_calibration() -> None:
    driver = firmware(FirmwareStick(fault="led-dead"))
    with pytest.raises(Refused, match=r"photocurrent|invalid"):
        driver.calibrate(timeout=5.0)


def test_the_firmware_of_an_emulator_is_refused() -> None:
    with pytest.raises(Refused, match="simulated"):
        firmware(FirmwareStick(simulated=True))


def test_no_key_in_reprs() -> None:
    driver = opened(Stick())
    assert K_STICK.hex() not in repr(PAIRED) + repr(driver.read(timeout=TIMEOUT)) + repr(driver.__dict__)
    assert "2048" not in repr(driver.read(timeout=TIMEOUT))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 3)), max_size=12))
def test_freshness_never_goes_back(moves: list[tuple[int, int]]) -> None:
    """Whatever comes, the numbers of what is accepted only rise."""
    model = Stick(k_stick=None)
    freshness = Freshness("usb:test", model.info(), None)
    accepted: list[tuple[int, int, int]] = []
    for seq, clock in moves:
        model.seq, model.samples, model.t_us = seq, seq * 480, 1000 + seq * 1000 + clock
        got = frame.decode(model.next_frame())
        try:
            if freshness.accepts(got):
                accepted.append((got.seq, got.first_sample, got.t_us))
        except Replayed:
            break
    assert accepted == sorted(set(accepted))


CABLE: dict[str, Callable[[bytes, int], bytes]] = {
    "good": lambda f, _: f,
    "lost bytes": lambda f, n: f[:n] + f[n + 7 :],
    "doubled bytes": lambda f, n: f[:n] + f[n : n + 5] * 2 + f[n + 5 :],
    "changed bit": lambda f, n: f[:n] + bytes([f[n] ^ 1]) + f[n + 1 :],
    "lost half": lambda f, _: f[512:],
    "lost frame": lambda _f, _n: b"",
    "noise before": lambda f, n: b"ESQ1" * (n % 9 + 1) + f,
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(CABLE)), st.integers(0, 1023)), max_size=7))
def test_whatever_the_cable_does_samples_are_whole_frames_in_order(damage: list[tuple[str, int]]) -> None:
    model = Stick()
    driver = opened(model)
    ahead = iter(damage)  # no more than 7: eight frames' worth without a good one end the opening

    def cable(made: bytes) -> bytes:
        what, where = next(ahead, ("good", 0))
        return CABLE[what](made, where)

    model.forge = cable
    got = [driver.read(timeout=5) for _ in range(6)]
    places = [model.taken.index(array("H", r.samples)) for r in got]
    assert places == sorted(set(places))
    assert [r.first for r in got] == [480 * p for p in places]
    gaps = [b - a > 1 for a, b in pairwise(places)]
    assert [bool(r.flags & frame.OVERRUN) for r in got[1:]] == gaps  # every loss is said, and nothing else


def test_time_is_kept() -> None:
    """A slow trickle of bytes does not extend the read (no timed assert: bounded by the deadline's arithmetic)."""
    model = Stick()
    driver = opened(model)
    model.fault = usbmodel.HANG
    begun = time.monotonic()
    with pytest.raises(Hung):
        driver.read(timeout=0.01)
    assert time.monotonic() >= begun

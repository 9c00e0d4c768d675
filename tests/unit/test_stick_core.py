"""The firmware's core over the noise model: what the host gets for every request, and when something fails."""

from __future__ import annotations

import itertools

import pytest
from tests.sim.stickmodel import FAULTS, LAG, MIDDLE, SIGMA, SLOPE, SimulatedFront, SimulatedStick

from edgeseal.stick import calibration, frame, health, mac, messages
from qrng.core import HEALTH_EVERY, NOMINAL

K_STICK, NONCE = bytes(range(32)), bytes(range(50, 82))


def _request(number: int, value: int = 0, option: int = 0) -> bytes:
    return messages.Setup(number, value, option, messages.REQUESTS[number][1]).encode()


def _info(stick: SimulatedStick) -> messages.Info:
    answer = stick.control(_request(messages.GET_INFO))
    assert answer is not None
    return messages.Info.decode(answer)


def _status(stick: SimulatedStick) -> messages.Status:
    answer = stick.control(_request(messages.GET_STATUS))
    assert answer is not None
    return messages.Status.decode(answer)


def _raw(stick: SimulatedStick, count: int) -> list[frame.Frame]:
    """The next RAW frames; others are dropped."""
    frames: list[frame.Frame] = []
    while len(frames) < count:
        f = frame.decode(stick.frame())
        if f.kind == frame.RAW:
            frames.append(f)
    return frames


def test_before_the_stream_there_is_no_frame() -> None:
    stick = SimulatedStick()
    assert stick.frame() == b""
    assert _status(stick).state == messages.IDLE


def test_the_stream_begins_with_info_and_counts_without_gaps() -> None:
    stick = SimulatedStick()
    stick.start()
    first = frame.decode(stick.frame())
    assert first.kind == frame.INFO
    assert first.payload == _info(stick).encode()
    frames = _raw(stick, 30)
    for before, after in itertools.pairwise(frames):
        assert after.first_sample == before.first_sample + frame.SAMPLES
        assert after.t_us == before.t_us + 24_000
        assert after.seq > before.seq


def test_start_up_takes_4096_samples_and_is_reported() -> None:
    stick = SimulatedStick()
    stick.start()
    assert frame.decode(stick.frame()).kind == frame.INFO
    assert _status(stick).state == messages.STARTUP
    kinds = [frame.decode(stick.frame()) for _ in range(12)]
    passed = [bool(f.flags & frame.STARTUP_OK) for f in kinds if f.kind == frame.RAW]
    assert passed == [False] * 8 + [True] * 3  # 9 * 480 >= 4096
    assert [f.kind for f in kinds].count(frame.HEALTH) == 1
    assert _status(stick).state == messages.STREAMING


def test_a_paired_session_is_authentic_and_a_new_nonce_changes_every_tag() -> None:
    stick = SimulatedStick(k_stick=K_STICK)
    assert _info(stick).features & messages.PAIRED
    for nonce in (NONCE, NONCE[::-1]):
        stick.start(nonce=nonce)
        key = mac.Hmac(mac.session_key(K_STICK, nonce, _info(stick).boot_id, stick.serial))
        other = mac.Hmac(mac.session_key(K_STICK, bytes(32), _info(stick).boot_id, stick.serial))
        frames = [frame.decode(stick.frame()) for _ in range(12)]
        assert [f.seq for f in frames] == list(range(12))
        assert all(f.authentic(key) for f in frames)
        assert not any(f.authentic(other) for f in frames)


def test_an_unpaired_stick_streams_without_tags() -> None:
    stick = SimulatedStick()
    assert not _info(stick).features & messages.PAIRED
    stick.start(nonce=NONCE)
    assert all(not any(f.tag) for f in _raw(stick, 5))


def test_a_nonce_of_the_wrong_length_changes_nothing() -> None:
    stick = SimulatedStick(k_stick=K_STICK)
    stick.start(nonce=NONCE)
    _raw(stick, 3)
    packet = _request(messages.SET_NONCE)
    assert stick.control(packet, bytes(31)) is None
    assert stick.control(packet, bytes(33)) is None
    key = mac.Hmac(mac.session_key(K_STICK, NONCE, _info(stick).boot_id, stick.serial))
    assert all(f.authentic(key) for f in _raw(stick, 3))


def test_a_short_answer_is_cut_and_a_long_one_is_stalled() -> None:
    stick = SimulatedStick()
    short = messages.Setup(messages.GET_INFO, 0, 0, 8).encode()
    assert stick.control(short) == _info(stick).encode()[:8]
    assert stick.control(messages.Setup(messages.GET_INFO, 0, 0, 65).encode()) is None
    assert stick.control(bytes.fromhex("c101000000004000")) is None  # a vendor request


def test_a_sweep_measures_what_the_model_put_in_and_the_stream_goes_on() -> None:
    stick = SimulatedStick()
    stick.start(mode=messages.STREAM_CALIBRATED, seconds=5)
    assert frame.decode(stick.frame()).kind == frame.INFO
    cal = frame.decode(stick.frame())
    assert cal.kind == frame.CAL
    fit = calibration.fit(messages.decode_sweep(cal.payload), NOMINAL)
    assert calibration.faults(fit, calibration.Baseline(slope=SLOPE, off=19.11**2)) == []
    assert fit.b == pytest.approx(SLOPE, rel=0.05)
    assert fit.sigma == pytest.approx(SIGMA, rel=0.05)
    assert fit.mean == pytest.approx(MIDDLE, abs=3)
    assert fit.lag == pytest.approx(LAG, abs=0.05)
    until_next = 0
    while (f := frame.decode(stick.frame())).kind != frame.CAL:
        until_next += f.kind == frame.RAW
    assert until_next == -(-5 * 20000 // 480)
    assert _status(stick).v_dc == messages.decode_sweep(f.payload)[NOMINAL].v_dc


def test_a_sweep_is_flagged_when_the_led_is_dead_and_the_raw_samples_go_on() -> None:
    stick = SimulatedStick(fault="led-dead")
    stick.start(mode=messages.STREAM_CALIBRATED, seconds=60)
    frame.decode(stick.frame())
    cal = frame.decode(stick.frame())
    assert cal.flags & frame.CAL_INVALID
    with pytest.raises(calibration.CalibrationError):
        calibration.fit(messages.decode_sweep(cal.payload), NOMINAL)
    assert all(f.flags & frame.CAL_INVALID for f in _raw(stick, 5))


def test_intensity_noise_shows_in_the_fit() -> None:
    stick = SimulatedStick(fault="intensity-noise")
    stick.start(mode=messages.STREAM_CALIBRATED, seconds=60)
    frame.decode(stick.frame())
    fit = calibration.fit(messages.decode_sweep(frame.decode(stick.frame()).payload), NOMINAL)
    assert calibration.EXCESS in calibration.faults(fit)


def test_a_calibration_can_be_asked_for_and_stopping_interrupts_it() -> None:
    stick = SimulatedStick()
    stick.start()
    _raw(stick, 2)
    assert stick.control(_request(messages.RUN_CAL)) == b""
    assert frame.decode(stick.frame()).kind == frame.CAL
    stick.control(_request(messages.RUN_CAL))
    for _ in range(30):
        stick.core.step()
    assert _status(stick).state == messages.CALIBRATING
    assert _status(stick).led < NOMINAL
    stick.control(_request(messages.SET_STREAM, messages.STOP))
    assert stick.frame() == b""
    assert _status(stick).led == NOMINAL
    stick.start()
    model = health.Model(MIDDLE, SIGMA, lag=LAG)
    assert all(model.feed(f.samples()) == [] for f in _raw(stick, 20))  # the LED is back at its level


@pytest.mark.parametrize("fault", ["constant", "saturated"])
def test_an_alarm_is_flagged_and_raw_data_is_neither_stopped_nor_replaced(fault: str) -> None:
    stick = SimulatedStick(fault=fault, fault_from=20)
    stick.start()
    _raw(stick, 20)
    bad = _raw(stick, 5)
    assert all(f.flags & frame.RCT_ALARM and f.flags & frame.APT_ALARM for f in bad)
    assert not any(f.flags & frame.STARTUP_OK for f in bad)
    value = 2048 if fault == "constant" else 4095
    assert all(set(f.samples()) == {value} for f in bad)
    assert stick.front.alarmed
    status = _status(stick)
    assert status.state == messages.ALARMED
    assert status.rct >= 480
    assert status.flags & frame.RCT_ALARM


def test_after_an_alarm_only_a_new_start_up_test_makes_the_stick_well() -> None:
    stick = SimulatedStick(fault="constant", fault_from=20)
    stick.start()
    _raw(stick, 22)
    stick.front.suffer(None)
    frames = _raw(stick, 11)
    assert stick.front.alarmed is False
    well = [bool(f.flags & frame.STARTUP_OK) for f in frames]
    assert well[:8] == [False] * 8
    assert well[-1]


def test_status_counts_since_it_was_last_read() -> None:
    stick = SimulatedStick(fault="constant", fault_from=20)
    stick.start()
    _raw(stick, 22)
    assert _status(stick).flags & frame.RCT_ALARM
    stick.front.suffer(None)
    _raw(stick, 5)
    _status(stick)
    _raw(stick, 1)
    assert not _status(stick).flags & frame.RCT_ALARM


def test_a_lost_block_is_flagged_and_breaks_the_run() -> None:
    stick = SimulatedStick(fault="gap", fault_from=20)
    stick.start()
    frames = _raw(stick, 45)
    jumps = [
        after.flags & frame.OVERRUN
        for before, after in itertools.pairwise(frames)
        if after.first_sample != before.first_sample + frame.SAMPLES
    ]
    assert len(jumps) >= 2
    assert all(jumps)
    assert sum(bool(f.flags & frame.OVERRUN) for f in frames) == len(jumps)
    assert _status(stick).overruns == stick.front.overruns


def test_the_bootloader_needs_the_strap() -> None:
    stick = SimulatedStick()
    assert stick.control(_request(messages.BOOTLOADER)) is None
    stick.frame()
    assert not stick.front.in_bootloader
    stick.front.strap = True
    assert stick.control(_request(messages.BOOTLOADER)) == b""
    stick.frame()
    assert stick.front.in_bootloader


def test_a_bus_reset_ends_stream_and_session() -> None:
    stick = SimulatedStick(k_stick=K_STICK)
    stick.start(nonce=NONCE)
    _raw(stick, 3)
    stick.core.bus_reset()
    assert stick.frame() == b""
    stick.start()
    assert all(not any(f.tag) for f in _raw(stick, 3))


def test_self_test_on_demand_runs_start_up_again() -> None:
    stick = SimulatedStick()
    stick.start()
    assert _raw(stick, 12)[-1].flags & frame.STARTUP_OK
    assert stick.control(_request(messages.SELF_TEST)) == b""
    after = _raw(stick, 10)
    assert [bool(f.flags & frame.STARTUP_OK) for f in after] == [False] * 8 + [True] * 2


def test_health_frames_come_by_themselves() -> None:
    stick = SimulatedStick()
    stick.start()
    kinds = [frame.decode(stick.frame()).kind for _ in range(HEALTH_EVERY + 60)]
    assert kinds.count(frame.HEALTH) == 2  # the one after start-up, and the regular one


@pytest.mark.parametrize("simulated", [True, False])
def test_the_simulated_flag_is_in_every_frame_and_in_info(simulated: bool) -> None:
    stick = SimulatedStick(simulated=simulated)
    stick.start(mode=messages.STREAM_CALIBRATED, seconds=1)
    assert {bool(frame.decode(stick.frame()).flags & frame.SIMULATED) for _ in range(60)} == {simulated}
    assert bool(_info(stick).features & messages.INFO_SIMULATED) is simulated


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_model_still_makes_valid_frames(fault: str) -> None:
    stick = SimulatedStick(fault=fault, fault_from=3)
    stick.start()
    assert len(_raw(stick, 12)) == 12


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="led-dead"):
        SimulatedFront(fault="led-ded")


def test_a_slow_clock_shows_in_the_times() -> None:
    stick = SimulatedStick(fault="slow")
    stick.start()
    frames = _raw(stick, 20)
    seconds = (frames[-1].t_us - frames[0].t_us) / 1e6
    assert (frames[-1].first_sample - frames[0].first_sample) / seconds == pytest.approx(20000 / 1.05, rel=1e-3)

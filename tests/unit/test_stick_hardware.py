"""The firmware's hardware side on a fake chip: no sample lost, doubled or written elsewhere; USB; boot; strap."""

from __future__ import annotations

import importlib
import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
from hw.qrng_stick import values
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import fake_rp2

from edgeseal.stick import frame, mac, messages
from qrng import board
from qrng.ring import SAMPLES, Ring

FIRMWARE = Path(__file__).parents[2] / "firmware/qrng_stick"
RATE = 20_000
K_STICK = bytes(range(32))


def _codes(block: bytearray) -> list[int]:
    return list(struct.unpack("<480H", block))


def _sampler(monkeypatch: pytest.MonkeyPatch, chip: fake_rp2.Chip, *, rounds: int = 1024) -> Any:
    fake_rp2.install(monkeypatch, chip)
    module = importlib.import_module("qrng.sampler")
    monkeypatch.setattr(module, "_ROUNDS", rounds)
    return module.Sampler(board.chip(), RATE)


@pytest.mark.parametrize("rp2350", [True, False])
@pytest.mark.parametrize("rounds", [1, 2, 1024])
def test_samples_come_in_order_through_ring_and_chain(
    monkeypatch: pytest.MonkeyPatch, rp2350: bool, rounds: int
) -> None:
    """Two seconds: the ring wraps five times; with one round per channel they hand over at every wrap."""
    chip = fake_rp2.Chip(rp2350=rp2350)
    sampler = _sampler(monkeypatch, chip, rounds=rounds)
    sampler.start(chip.us)
    assert chip.rate() == RATE
    block, expected = bytearray(960), 16
    for step in itertools.cycle((1_000, 13_000, 52_000)):
        chip.advance(step)
        assert sampler.poll(chip.us) == 0
        while (taken := sampler.take(block, chip.us)) is not None:
            assert _codes(block) == [(expected + i) % 4096 for i in range(480)]
            assert taken[0] == expected
            assert taken[1] == pytest.approx((expected + 480) * 50, abs=100)
            expected += 480
        if chip.us > 2_000_000:
            break
    assert expected > 38_000


def test_blocks_that_nobody_took_in_time_are_counted_and_the_rest_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = fake_rp2.Chip()
    sampler = _sampler(monkeypatch, chip, rounds=2)
    sampler.start(chip.us)
    chip.advance(1_000_000)
    lost = sampler.poll(chip.us)
    assert lost == -(-(20_000 + 64 - 16 - SAMPLES) // 480)
    block = bytearray(960)
    taken = sampler.take(block, chip.us)
    assert taken is not None
    assert taken[0] == 16 + 480 * lost
    assert _codes(block) == [(taken[0] + i) % 4096 for i in range(480)]


def test_a_new_run_begins_with_fresh_samples_and_later_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = fake_rp2.Chip()
    sampler = _sampler(monkeypatch, chip)
    sampler.start(chip.us)
    chip.advance(50_000)
    sampler.poll(chip.us)
    sampler.stop()
    chip.advance(10_000)
    before = chip.converted
    sampler.start(chip.us)
    chip.advance(30_000)
    sampler.poll(chip.us)
    block = bytearray(960)
    taken = sampler.take(block, chip.us)
    assert _codes(block)[0] == (before + 16) % 4096
    assert taken is not None
    assert taken[0] == 1000 + 16


@given(
    polls=st.lists(st.integers(1, 190_000), min_size=1, max_size=60),
    skew=st.integers(-1500, 1500),
)
@settings(max_examples=60)
def test_positions_are_exact_while_the_clock_is_right_to_a_fraction_of_a_ring(polls: list[int], skew: int) -> None:
    ring, now = Ring(RATE), 0
    ring.begin(0, 0)
    for step in polls:
        now += step
        produced = max(0, now * RATE // 1_000_000 + skew)
        ring.update(produced % SAMPLES, now)
        assert ring.produced == produced
        ring.lost(480)
        assert produced - ring.consumed <= SAMPLES


def test_pins_and_rate_are_those_of_the_board_design() -> None:
    pins = values.PINS
    assert (
        pins.led_pwm,
        pins.strap,
        pins.status_led,
        pins.smps_mode,
    ) == (board.LED_PWM, board.STRAP, board.STATUS_LED, board.SMPS_MODE)
    assert (pins.adc_signal, pins.adc_monitor) == (board.ADC_SIGNAL, board.ADC_MONITOR)
    assert values.SAMPLE_RATE == RATE
    assert pytest.approx(values.NOMINAL.pwm_frequency, abs=1) == board.PWM_HZ
    assert values.NOMINAL.supply * 1000 == board.REFERENCE_MV


class _Running:
    """A stick that has booted on the fake chip, and its host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chip: fake_rp2.Chip) -> None:
        self.chip, self.usb = chip, fake_rp2.install(monkeypatch, chip)
        exec((FIRMWARE / "boot.py").read_text("utf-8"), {})  # noqa: S102  as MicroPython runs it
        self.startup = importlib.import_module("qrng.startup")

    @property
    def link(self) -> Any:
        return self.startup._started[0][1]

    def turn(self, us: int = 5_000) -> None:
        """One turn of the main loop."""
        self.chip.advance(us)
        if self.link.idle:
            sent = self.startup._started[0][0].step()
            if sent is not None:
                self.link.send(sent)

    def frames(self, count: int) -> list[frame.Frame]:
        got: list[frame.Frame] = []
        while len(got) < count:
            before = len(self.usb.submitted)
            self.turn()
            if len(self.usb.submitted) > before:
                got.append(frame.decode(self.usb.submitted[-1][1]))
                self.usb.complete()
        return got


def _request(number: int, value: int = 0) -> bytes:
    return messages.Setup(number, value, 0, messages.REQUESTS[number][1]).encode()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Running:
    monkeypatch.chdir(tmp_path)
    Path("k_stick").write_bytes(K_STICK)
    Path("build").write_bytes(bytes(range(16)))
    return _Running(monkeypatch, fake_rp2.Chip())


def test_the_host_sees_exactly_esq1_and_no_repl(running: _Running) -> None:
    assert running.usb.is_active
    assert running.usb.builtin_driver == running.usb.BUILTIN_NONE
    device, configuration, strings = running.usb.descriptors
    assert (device, configuration) == (messages.DEVICE_DESCRIPTOR, messages.CONFIGURATION_DESCRIPTOR)
    assert strings == (None, "edgeseal", "edgeseal QRNG", "e661640843218c2f", "edgeseal-qrng/1")


def test_frames_carry_what_the_adc_gave_under_the_session_key(running: _Running) -> None:
    running.usb.callbacks["open_itf_cb"](memoryview(b""))
    info = messages.Info.decode(running.usb.control(_request(messages.GET_INFO)) or b"")
    assert (info.board, info.features, info.firmware_hash) == (messages.RP2350, messages.PAIRED, bytes(range(16)))
    assert info.levels == board.LEVELS
    assert running.usb.control(_request(messages.SET_NONCE), bytes(32)) is not None
    running.usb.control(_request(messages.SET_STREAM, messages.STREAM_RAW))
    frames = running.frames(12)
    key = mac.Hmac(mac.session_key(K_STICK, bytes(32), info.boot_id, info.serial))
    assert all(f.authentic(key) and not f.flags & frame.SIMULATED for f in frames)
    raw = [f for f in frames if f.kind == frame.RAW]
    for a, b in itertools.pairwise(raw):
        assert b.samples()[0] == (a.samples()[-1] + 1) % 4096
        assert b.first_sample == a.first_sample + 480


def test_a_sweep_drives_the_led_through_its_levels_and_reads_the_monitor(running: _Running) -> None:
    running.usb.callbacks["open_itf_cb"](memoryview(b""))
    running.usb.control(_request(messages.SET_STREAM, messages.STREAM_RAW))
    running.frames(2)
    running.usb.control(_request(messages.RUN_CAL))
    duties = [running.chip.duty]
    while True:
        before = len(running.usb.submitted)
        running.turn()
        if running.chip.duty != duties[-1]:
            duties.append(running.chip.duty)
            running.chip.analog[27] += 1600
        if len(running.usb.submitted) > before:
            f = frame.decode(running.usb.submitted[-1][1])
            running.usb.complete()
            if f.kind == frame.CAL:
                break
    nominal = board.LEVELS[2]
    assert duties == [nominal, 0, *board.LEVELS, nominal]
    records = messages.decode_sweep(f.payload)
    assert [r.v_dc for r in records] == [16 * ((28000 + 1600 * (i + 1)) >> 4) for i in range(5)]
    status = messages.Status.decode(running.usb.control(_request(messages.GET_STATUS)) or b"")
    assert status.temperature == pytest.approx(100 * (27 - ((15000 >> 4) * 3.0 / 4096 - 0.706) / 0.001721), abs=2)


def test_requests_that_are_not_ours_are_stalled(running: _Running) -> None:
    for packet in ("c101000000004000", "2111000000001f00", "217f000000000000"):
        assert running.usb.control(bytes.fromhex(packet)) is None


def test_the_bootloader_opens_only_with_the_strap_closed(running: _Running) -> None:
    assert running.usb.control(_request(messages.BOOTLOADER)) is None
    running.chip.pins[board.STRAP] = 0
    assert running.usb.control(_request(messages.BOOTLOADER)) == b""
    with pytest.raises(fake_rp2.Reset):
        running.turn()


def test_nothing_is_submitted_before_the_host_configured_the_device_or_after_a_bus_reset(running: _Running) -> None:
    running.usb.control(_request(messages.SET_STREAM, messages.STREAM_RAW))
    for _ in range(20):
        running.turn()
    assert running.usb.submitted == []
    running.usb.callbacks["open_itf_cb"](memoryview(b""))
    running.frames(2)
    running.usb.callbacks["reset_cb"]()
    count = len(running.usb.submitted)
    for _ in range(20):
        running.turn()
    assert len(running.usb.submitted) == count


def test_a_host_that_stops_reading_costs_samples_never_the_stick(running: _Running) -> None:
    running.usb.callbacks["open_itf_cb"](memoryview(b""))
    running.usb.control(_request(messages.SET_STREAM, messages.STREAM_RAW))
    running.frames(3)
    running.turn(30_000)  # submitted, and nobody takes it
    for _ in range(40):
        running.turn(50_000)
    running.usb.complete()
    after = running.frames(2)
    assert after[0].flags & frame.OVERRUN
    assert not after[1].flags & frame.OVERRUN


def test_an_alarm_blinks(running: _Running) -> None:
    front = running.startup._started[0][0]._front
    front.alarm(on=True)
    seen = set()
    for _ in range(50):
        running.turn(10_000)
        seen.add(running.chip.pins[board.STATUS_LED])
    assert seen == {0, 1}
    front.alarm(on=False)
    running.turn()
    assert running.chip.pins[board.STATUS_LED] == 1


def test_a_closed_strap_at_power_up_leaves_the_repl_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chip = fake_rp2.Chip()
    chip.pins[board.STRAP] = 0
    usb = fake_rp2.install(monkeypatch, chip)
    exec((FIRMWARE / "boot.py").read_text("utf-8"), {})  # noqa: S102  as MicroPython runs it
    exec((FIRMWARE / "main.py").read_text("utf-8"), {})  # noqa: S102
    assert not usb.is_active
    assert "strap is closed" in capsys.readouterr().out


def test_the_main_loop_feeds_the_watchdog(monkeypatch: pytest.MonkeyPatch, running: _Running) -> None:
    stick = running.startup._started[0][0]

    def step() -> None:
        if running.chip.fed > 10:
            raise fake_rp2.Reset

    monkeypatch.setattr(stick, "step", step)
    with pytest.raises(fake_rp2.Reset):
        exec((FIRMWARE / "main.py").read_text("utf-8"), {})  # noqa: S102  as MicroPython runs it
    assert running.chip.fed == 11


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("100 200 300 400", (100, 200, 300, 400)),
        ("100 200 300 400\n", (100, 200, 300, 400)),
        ("100 200 300", board.LEVELS),
        ("400 300 200 100", board.LEVELS),
        ("0 1 2 3", board.LEVELS),
        ("1 2 3 70000", board.LEVELS),
        ("one two three four", board.LEVELS),
        ("", board.LEVELS),
    ],
)
def test_levels_that_make_no_sense_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, levels: tuple[int, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("levels").write_text(text, "ascii")
    running = _Running(monkeypatch, fake_rp2.Chip(rp2350=False))
    info = messages.Info.decode(running.usb.control(_request(messages.GET_INFO)) or b"")
    assert info.levels == levels
    assert info.board == messages.RP2040


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_pairing_secret_of_the_wrong_length_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k_stick").write_bytes(bytes(length))
    running = _Running(monkeypatch, fake_rp2.Chip())
    info = messages.Info.decode(running.usb.control(_request(messages.GET_INFO)) or b"")
    assert not info.features & messages.PAIRED


def test_the_clock_outlives_the_wrap_of_ticks(running: _Running) -> None:
    front = running.startup._started[0][0]._front
    start = front.now_us()
    for _ in range(20):
        running.chip.us += 200_000_000
        assert front.now_us() > start
    assert front.now_us() - start == 4_000_000_000

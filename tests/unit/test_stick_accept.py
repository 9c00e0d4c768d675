"""Acceptance of a finished stick: over the board's noise the firmware's core passes, and each fault is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hw.qrng_stick import accept, spread
from hw.qrng_stick.values import NOMINAL, NOMINAL_CURRENT, SAMPLE_RATE
from tests.sim.usbmodel import Bus
from tests.sim.usbstick import K_STICK, FirmwareStick

from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import Options, Refused
from edgeseal.entropy.drivers.stick import Stick

if TYPE_CHECKING:
    from hw.qrng_stick.checks import Check

pytestmark = pytest.mark.unit


def measured(model: FirmwareStick) -> list[Check]:
    [found] = detect.scan(Bus(model), ports=list, kernel=lambda: None)
    driver = found.open(Options(stick_keys={model.core.serial: K_STICK}))
    assert isinstance(driver, Stick)
    try:
        return accept.measure(driver)
    finally:
        driver.close()


def failed(results: list[Check]) -> str:
    return "; ".join(check.name for check in results if not check.ok)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_good_stick_is_accepted(seed: int) -> None:
    results = measured(FirmwareStick(seed=seed))
    assert len(results) == 11
    assert not failed(results), results


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("dim", "voltage across r_f"),
        ("drift", "rms, LED off"),
        ("intensity-noise", "intensity noise"),
        ("hum", "strongest line, 59 Hz"),  # 50 Hz lies between the lines at 39 and 59 Hz
        ("offset", "mean"),
        ("stuck-bit-0", "widest code"),
    ],
)
def test_a_faulty_stick_is_rejected_and_the_fault_is_named(fault: str, name: str) -> None:
    assert name in failed(measured(FirmwareStick(fault=fault)))


def test_a_dead_light_gives_no_verdict() -> None:
    with pytest.raises(Refused, match=r"photocurrent|invalid"):
        measured(FirmwareStick(fault="led-dead"))


def test_a_tone_of_one_lsb_is_found_where_it_is() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(2048, 69, 105_600)
    assert accept.strongest_line(noise)[1] < 2
    tone = 10 * np.sin(2 * np.pi * 4_000 * np.arange(noise.size) / SAMPLE_RATE)
    frequency, power = accept.strongest_line(noise + tone)
    assert frequency == pytest.approx(4_000, abs=20)
    assert power > accept.LINE_LIMIT


def test_a_code_three_times_too_wide_is_found() -> None:
    rng = np.random.default_rng(4)
    codes = rng.normal(2048, 69, 105_600).round().astype(np.int64)
    assert accept.widest_code(codes)[1] < 1.5
    codes[(codes == 2029) | (codes == 2031)] = 2030
    assert accept.widest_code(codes)[0] == 2030
    assert accept.widest_code(codes)[1] > accept.CODE_LIMIT


def test_memory_between_samples_is_found() -> None:
    rng = np.random.default_rng(5)
    white = rng.normal(0, 60, 105_601)
    names = failed(accept.judge_samples((2048 + white[1:] + 0.1 * white[:-1]).round().astype(np.int64)))
    assert "correlation off the model, lag 1" in names


def test_the_claim_is_recomputed_from_the_measurement() -> None:
    model = FirmwareStick()
    [found] = detect.scan(Bus(model), ports=list, kernel=lambda: None)
    driver = found.open(Options(stick_keys={model.core.serial: K_STICK}))
    assert isinstance(driver, Stick)
    sweep = driver.calibrate(timeout=5.0)
    assert sweep is not None
    fine = np.random.default_rng(6).normal(2048, 69, 50_000).round().astype(np.int64)
    assert accept.judge_claim([sweep], fine).ok
    coarse = fine // 16 * 16  # an ADC that has lost four bits: codes 16 LSB wide
    assert not accept.judge_claim([sweep], coarse).ok


@pytest.mark.parametrize("count", [0, 2])
def test_the_command_wants_exactly_one_stick(
    count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sticks = detect.scan(Bus(FirmwareStick()), ports=list, kernel=lambda: None) * count
    monkeypatch.setattr(detect, "scan", lambda **_: sticks)
    assert accept.main() == 2
    assert f"exactly one stick was expected on USB, {count} are there" in capsys.readouterr().err


@pytest.mark.parametrize(("fault", "code", "word"), [(None, 0, "ACCEPTED"), ("drift", 1, "REJECTED")])
def test_the_command_ends_with_its_verdict(
    fault: str | None, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FirmwareStick(fault=fault)
    sticks = detect.scan(Bus(model), ports=list, kernel=lambda: None)
    monkeypatch.setattr(detect, "scan", lambda **_: sticks)
    assert accept.main() == code
    assert f"stick {model.core.serial}: {word}" in capsys.readouterr().out


def test_limits_are_those_of_the_nominal_current() -> None:
    assert pytest.approx(NOMINAL_CURRENT * NOMINAL.r_f) == spread.NOMINAL_VOLTAGE

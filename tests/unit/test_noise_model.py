"""The closed-form model of the QRNG stick: the design's numbers, its limits, and what it must not say."""

from __future__ import annotations

import importlib.util
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hw.qrng_stick import noise_model as model
from hw.qrng_stick import spread
from hw.qrng_stick.values import (
    CLAIMED_MIN_ENTROPY,
    COUPLING,
    ELEMENTARY_CHARGE,
    LEVELS,
    NOMINAL,
    NOMINAL_CURRENT,
    PINS,
    SAMPLE_RATE,
    SPREAD,
    FrontEnd,
    corner,
    duties,
    series,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim import stickmodel

from edgeseal.stick import calibration, messages

pytestmark = pytest.mark.unit

CURRENTS = st.floats(0.5e-6, 20e-6)

# The design study had less capacitance at the summing node, a little more gain and 3.3 V full scale.
# Total and shot rms in mV, QCNR in dB:
DESIGN = replace(NOMINAL, diode_capacitance=7e-12, stray_capacitance=0.0, r_fb=30e3)
TABLE = {1e-6: (21.6, 17.0, 2.1), 5e-6: (40.3, 38.0, 9.1), 10e-6: (55.4, 53.8, 12.1), 20e-6: (77.2, 76.0, 15.1)}


@pytest.mark.parametrize(("current", "row"), TABLE.items())
def test_table_of_the_design(current: float, row: tuple[float, float, float]) -> None:
    total, shot, qcnr = row
    got = model.levels(DESIGN, current)
    assert got.total * 1e3 == pytest.approx(total, rel=0.02)
    assert got.shot * 1e3 == pytest.approx(shot, rel=0.02)
    assert got.classical * 1e3 == pytest.approx(13.3, rel=0.03)
    assert got.qcnr_db == pytest.approx(qcnr, abs=0.35)


def test_slope_of_the_design() -> None:
    assert model.slope(DESIGN) == pytest.approx(9.022e20, rel=0.025)


@pytest.mark.parametrize(("rate", "bits", "sigma"), [(20e3, 7.39, 66.7), (100e3, 7.38, 66.5), (500e3, 7.13, 55.9)])
def test_min_entropy_of_the_design(rate: float, bits: float, sigma: float) -> None:
    v = replace(DESIGN, supply=3.3)
    got = model.innovation_sigma(v, NOMINAL_CURRENT, rate)
    assert got == pytest.approx(sigma, rel=0.025)
    assert model.min_entropy(got) == pytest.approx(bits, abs=0.04)


def test_the_board_meets_its_own_criteria() -> None:
    lit = model.levels(NOMINAL, NOMINAL_CURRENT)
    assert lit.qcnr_db >= 10
    assert spread.limits(NOMINAL, spread.lit_rms).high <= calibration.SIGMA_MAX, "the agent would refuse a good board"
    assert spread.limits(NOMINAL, spread.ratio_db).low >= calibration.QCNR_MIN_DB + 2, (
        "nor may its light age into a refusal"
    )
    assert model.phase_margin() >= 60
    assert model.ripple(NOMINAL, NOMINAL_CURRENT) < 0.5
    assert NOMINAL.bias + LEVELS[-1] * NOMINAL.r_f <= NOMINAL.supply - 0.3, "the brightest level must not clip"


def test_claim_is_far_below_the_model() -> None:
    sigma = model.innovation_sigma(NOMINAL, NOMINAL_CURRENT, SAMPLE_RATE)
    assert model.min_entropy(sigma) >= CLAIMED_MIN_ENTROPY + 3
    assert model.widest_code(sigma, CLAIMED_MIN_ENTROPY) > 10
    assert model.min_entropy(sigma, code_width=10) >= CLAIMED_MIN_ENTROPY


@given(CURRENTS, st.floats(1.01, 3.0))
@settings(max_examples=15, deadline=None)
def test_more_light_more_noise_more_entropy(current: float, factor: float) -> None:
    less, more = model.levels(NOMINAL, current), model.levels(NOMINAL, current * factor)
    assert more.shot > less.shot
    assert more.classical == less.classical
    assert more.qcnr_db - less.qcnr_db == pytest.approx(10 * math.log10(factor), abs=1e-6)
    low, high = (model.innovation_sigma(NOMINAL, i, 20e3) for i in (current, current * factor))
    assert model.min_entropy(high) > model.min_entropy(low)


@given(CURRENTS)
@settings(max_examples=10, deadline=None)
def test_variance_is_linear_in_the_photocurrent(current: float) -> None:
    dark, lit = model.levels(NOMINAL, 0.0), model.levels(NOMINAL, current)
    measured = (lit.total**2 - dark.total**2) / (2 * ELEMENTARY_CHARGE * current)
    assert measured == pytest.approx(model.slope(NOMINAL), rel=1e-9)


@given(CURRENTS)
@settings(max_examples=10, deadline=None)
def test_thermal_formula_bounds_the_ratio_from_above(current: float) -> None:
    assert model.levels(NOMINAL, current).qcnr_db < model.qcnr_thermal_db(NOMINAL, current)


def test_dark_stick_claims_nothing() -> None:
    assert model.levels(NOMINAL, 0.0).shot == 0
    assert model.innovation_sigma(NOMINAL, 0.0, SAMPLE_RATE) == 0
    assert model.min_entropy(0.0) == 0


def test_without_the_shot_term_no_entropy_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: classical noise alone, however large, is the adversary's."""
    monkeypatch.setattr(model, "shot_density", lambda _v, _i, f: np.full_like(f, 1e-300))
    v = replace(NOMINAL, temperature=600.0)
    assert model.levels(v, NOMINAL_CURRENT).total > model.levels(NOMINAL, 0.0).total
    sigma = model.innovation_sigma(v, NOMINAL_CURRENT, SAMPLE_RATE)
    assert model.min_entropy(sigma) < 1e-6


def test_full_coupling_is_not_quantum() -> None:
    """Were every LED electron caught, the photocurrent would only copy the LED's current."""
    f = model.frequencies(1e3, 1e5)
    assert np.all(model.quantum_density(NOMINAL, NOMINAL_CURRENT, f, coupling=1.0) == 0)
    both = model.quantum_density(NOMINAL, 1e-5, f) + model.pump_density(NOMINAL, 1e-5, f)
    assert np.allclose(both, model.shot_density(NOMINAL, 1e-5, f)), "a Poissonian LED current stays Poissonian"
    sigmas = [model.innovation_sigma(NOMINAL, 1e-5, 20e3, coupling=c) for c in (COUPLING, 0.1, 0.5)]
    assert sigmas == sorted(sigmas, reverse=True)


def test_faster_sampling_leaves_less_new_in_each_sample() -> None:
    sigmas = [model.innovation_sigma(NOMINAL, NOMINAL_CURRENT, rate) for rate in (20e3, 100e3, 250e3, 500e3, 2e6)]
    assert sigmas == sorted(sigmas, reverse=True)
    total = model.levels(NOMINAL, NOMINAL_CURRENT).shot / NOMINAL.lsb
    assert all(sigma < total for sigma in sigmas), "prediction can only reduce the variance"


def test_folded_spectrum_keeps_the_variance() -> None:
    for rate in (20e3, 137e3, 500e3):
        folded = float(np.mean(model.folded_density(NOMINAL, NOMINAL_CURRENT, rate, coupling=0.0)))
        whole = (model.levels(NOMINAL, NOMINAL_CURRENT).shot / NOMINAL.lsb) ** 2
        assert folded == pytest.approx(whole, rel=0.01)


def test_innovation_of_a_known_process() -> None:
    """Kolmogorov-Szego on an AR(1) spectrum must give back its driving noise."""
    f, a = (np.arange(4096) + 0.5) / 8192, 0.8
    density = 1 / np.abs(1 - a * np.exp(-2j * np.pi * f)) ** 2
    assert model.innovation_rms(9 * density) == pytest.approx(3.0, rel=1e-3)
    assert np.mean(density) == pytest.approx(1 / (1 - a * a), rel=1e-3)


def test_prediction_from_the_past_is_no_better_than_the_bound() -> None:
    """Levinson-Durbin over 60 past samples approaches the innovation from above, never crosses it."""
    density = model.folded_density(NOMINAL, NOMINAL_CURRENT, 500e3)
    f = (np.arange(density.size) + 0.5) / (2 * density.size)
    autocovariance = [float(np.mean(density * np.cos(2 * np.pi * f * lag))) for lag in range(61)]
    error, phi = autocovariance[0], np.zeros(0)
    bound = model.innovation_sigma(NOMINAL, NOMINAL_CURRENT, 500e3) ** 2
    for lag in range(1, 61):
        reflection = (autocovariance[lag] - float(np.dot(phi, autocovariance[lag - 1 : 0 : -1]))) / error
        phi = np.append(phi - reflection * phi[::-1], reflection)
        error *= 1 - reflection**2
        assert error >= bound * (1 - 1e-6)
    assert error == pytest.approx(bound, rel=0.02)


@given(st.floats(0.5, 500.0), st.floats(0.1, 20.0))
@settings(max_examples=40, deadline=None)
def test_min_entropy_is_that_of_the_likeliest_code(sigma: float, width: float) -> None:
    peak = math.erf(width / 2 / sigma / math.sqrt(2))
    bits = model.min_entropy(sigma, code_width=width)
    assert 2**-bits == pytest.approx(peak, rel=1e-9)
    for mean in (0.1 * width, 0.5 * width):  # any other place of the mean makes no code likelier
        edges = [(k * width + width / 2 - mean) / sigma / math.sqrt(2) for k in range(-3, 4)]
        assert max((math.erf(b) - math.erf(a)) / 2 for a, b in pairwise(edges)) <= peak + 1e-12


def test_min_entropy_agrees_with_counting() -> None:
    rng = random.Random(20)
    counts: dict[int, int] = {}
    for _ in range(200_000):
        code = round(rng.gauss(0, 6.0))
        counts[code] = counts.get(code, 0) + 1
    assert -math.log2(max(counts.values()) / 200_000) == pytest.approx(model.min_entropy(6.0), abs=0.05)


def test_sigma_for_inverts_min_entropy() -> None:
    for bits in (0.5, 4.0, 7.4):
        assert model.min_entropy(model.sigma_for(bits)) == pytest.approx(bits, abs=1e-6)


def test_noise_budget_names_everything() -> None:
    f = model.frequencies()
    parts = model.classical_parts(NOMINAL, f)
    whole = model.integrate(model.classical_density(NOMINAL, f), f)
    shares = {name: model.integrate(density, f) / whole for name, density in parts.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "feedback resistor"


def test_limits_contain_every_board_of_its_parts() -> None:
    rng = random.Random(3)
    for quantity in (spread.dark_rms, spread.lit_rms, spread.ratio_db, spread.code_slope):
        limits = spread.limits(NOMINAL, quantity)
        assert limits.low < limits.nominal < limits.high
        for _ in range(20):
            board = NOMINAL
            for name, share in SPREAD.items():
                board = spread.varied(board, name, 1 + rng.uniform(-share, share))
            assert limits.low <= quantity(board) <= limits.high


def test_large_photodiode_misses_the_ratio() -> None:
    """Why the board has a 1 mm2 diode: 7.5 mm2 and the same op-amp stay under 10 dB."""
    assert model.levels(replace(NOMINAL, diode_capacitance=62e-12), NOMINAL_CURRENT).qcnr_db < 10


@pytest.mark.parametrize("change", [{"r_f": 50e3}, {"c_fb": 100e-12}, {"r_g": 2e3}, {"temperature": 500.0}])
def test_every_value_matters(change: dict[str, float]) -> None:
    changed: FrontEnd = replace(NOMINAL, **change)  # type: ignore[arg-type]
    before, after = model.levels(NOMINAL, NOMINAL_CURRENT), model.levels(changed, NOMINAL_CURRENT)
    assert abs(after.total / before.total - 1) > 0.01


def test_firmware_drives_this_board() -> None:
    path = Path(__file__).parents[2] / "firmware" / "qrng_stick" / "qrng" / "board.py"
    spec = importlib.util.spec_from_file_location("stick_board", path)
    assert spec is not None
    assert spec.loader is not None
    board = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(board)
    assert (
        PINS.led_pwm, PINS.strap, PINS.smps_mode, PINS.status_led,
    ) == (board.LED_PWM, board.STRAP, board.SMPS_MODE, board.STATUS_LED)  # fmt: skip
    assert (PINS.adc_signal, PINS.adc_monitor) == (board.ADC_SIGNAL, board.ADC_MONITOR)
    assert duties(NOMINAL) == board.LEVELS
    assert NOMINAL.supply * 1000 == board.REFERENCE_MV
    assert pytest.approx(NOMINAL.pwm_frequency, rel=1e-3) == board.PWM_HZ


def test_simulated_stick_has_this_boards_noise() -> None:
    assert pytest.approx([1e6 * current for current in LEVELS]) == stickmodel.CURRENTS
    assert pytest.approx(spread.dark_rms(NOMINAL), rel=0.002) == stickmodel.DARK_SIGMA
    assert pytest.approx(spread.code_slope(NOMINAL), rel=0.002) == stickmodel.SHOT_VARIANCE
    assert pytest.approx(spread.monitor_slope(NOMINAL), rel=0.002) == stickmodel.SLOPE
    assert pytest.approx(spread.lit_rms(NOMINAL), rel=0.002) == stickmodel.SIGMA
    assert pytest.approx(NOMINAL.bias / NOMINAL.lsb, rel=0.002) == stickmodel.DARK_MONITOR
    assert pytest.approx(1e-6 * NOMINAL.r_f / NOMINAL.lsb, rel=0.002) == stickmodel.MONITOR
    lag = model.autocorrelation(NOMINAL, NOMINAL_CURRENT, SAMPLE_RATE, 1)
    assert pytest.approx(lag, abs=0.002) == stickmodel.LAG


def sweep(board: FrontEnd, *, excess: float = 0.0, currents: tuple[float, ...] = LEVELS) -> list[messages.Record]:
    """What a stick with this front end reports of a sweep; `excess`: intensity noise at L3, relative to shot noise."""
    rng, count, records = np.random.default_rng(5), 8160, []
    shot = model.levels(NOMINAL, NOMINAL_CURRENT).shot ** 2
    for led, current in enumerate(currents):
        variance = model.levels(board, current).total ** 2 + excess * shot * (current / NOMINAL_CURRENT) ** 2
        codes = rng.normal(2048, math.sqrt(variance) / board.lsb, count).round().astype(np.int64)
        monitor = (board.bias + current * board.r_f) / board.lsb * 16
        records.append(
            messages.Record(
                led=led,
                count=count,
                total=int(codes.sum()),
                squares=int((codes**2).sum()),
                products=int((codes[1:] * codes[:-1]).sum()),
                v_dc=round(monitor),
                saturated=0,
                low=int(codes.min()),
                high=int(codes.max()),
            )
        )
    return records


BASELINE = calibration.Baseline(slope=spread.monitor_slope(NOMINAL), off=spread.dark_rms(NOMINAL) ** 2)


def test_the_agent_measures_what_the_model_says() -> None:
    fitted = calibration.fit(sweep(NOMINAL), 3)
    assert not calibration.faults(fitted, BASELINE)
    assert fitted.b == pytest.approx(spread.monitor_slope(NOMINAL), rel=0.08)
    assert fitted.qcnr_db == pytest.approx(model.levels(NOMINAL, NOMINAL_CURRENT).qcnr_db, abs=0.5)
    assert fitted.sigma == pytest.approx(spread.lit_rms(NOMINAL), rel=0.03)


@pytest.mark.parametrize(
    ("board", "excess", "fault"),
    [
        (replace(NOMINAL, r_f=30e3), 0.0, calibration.QCNR),
        (replace(NOMINAL, r_fb=20e3), 0.0, calibration.SLOPE),
        (spread.varied(NOMINAL, "op_amp.voltage_noise", 3.0), 0.0, calibration.OFF_VARIANCE),
        (NOMINAL, 1.0, calibration.EXCESS),
        (replace(NOMINAL, r_fb=36e3), 0.0, calibration.OPERATING_POINT),
    ],
    ids=["resistor-too-small", "gain-too-small", "noisy-op-amp", "noisy-led", "gain-too-large"],
)
def test_the_agent_refuses_a_board_that_is_not_this_one(board: FrontEnd, excess: float, fault: str) -> None:
    assert fault in calibration.faults(calibration.fit(sweep(board, excess=excess), 3), BASELINE)


def test_the_agent_refuses_a_dim_stick() -> None:
    dim = tuple(current / 4 for current in LEVELS)
    assert calibration.QCNR in calibration.faults(calibration.fit(sweep(NOMINAL, currents=dim), 3), BASELINE)


def test_values_are_written_as_people_write_them() -> None:
    assert [series(x, "R") for x in (100.0, 28e3, 220.0)] == ["100R", "28k", "220R"]
    assert [series(x, "F") for x in (4.7e-12, 100e-9, 10e-6, 22e-6)] == ["4.7p", "100n", "10u", "22u"]
    assert corner(1e3, 100e-9) == pytest.approx(1591.5, rel=1e-3)
    with pytest.raises(ValueError, match="1e-12"):
        series(0.0, "F")

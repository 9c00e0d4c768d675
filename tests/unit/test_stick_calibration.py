"""The fit of variance over photocurrent: recovers what the model put in, and names what is wrong."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal.stick import calibration, messages

CURRENTS = (0, 2000, 4000, 8000, 16000)  # 1/16 code above dark
N = 8160


def _records(
    a: float, b: float, c: float, *, mean: float = 2048, saturated: int = 0, scale: int = 1
) -> list[messages.Record]:
    """A sweep with exactly the variance a + b I + c I^2 (rounded to the integers the sums are)."""
    records = []
    for led, current in enumerate(CURRENTS):
        variance = a + b * current + c * current**2
        total = round(N * mean)
        squares = round(variance * (N - 1) + total * total / N)
        records.append(
            messages.Record(
                led=led,
                count=N,
                total=total,
                squares=squares,
                products=round((N - 1) * (total / N) ** 2),
                v_dc=6554 + current // scale,
                saturated=saturated,
                low=0,
                high=4095,
            )
        )
    return records


@given(
    dark=st.floats(100, 1000),
    slope=st.floats(0.05, 1),
    excess=st.floats(0, 0.3),
)
@settings(max_examples=50)
def test_the_fit_recovers_the_three_coefficients(dark: float, slope: float, excess: float) -> None:
    c = excess * slope / CURRENTS[3]
    result = calibration.fit(_records(dark, slope, c), 3)
    assert result.a == pytest.approx(dark, rel=0.02)
    assert result.b == pytest.approx(slope, rel=0.01)
    assert result.excess == pytest.approx(excess, abs=0.01)
    classical = dark + c * CURRENTS[3] ** 2
    assert result.qcnr_db == pytest.approx(10 * math.log10(slope * CURRENTS[3] / classical), abs=0.1)
    assert result.sigma == pytest.approx(math.sqrt(dark + slope * CURRENTS[3] + c * CURRENTS[3] ** 2), rel=1e-3)


GOOD = calibration.Baseline(slope=0.5, off=300.0)


def _faults(records: list[messages.Record]) -> list[str]:
    return calibration.faults(calibration.fit(records, 3), GOOD)


def test_a_good_stick_has_no_faults() -> None:
    assert _faults(_records(300, 0.5, 0)) == []
    assert calibration.faults(calibration.fit(_records(300, 0.5, 0), 3)) == []


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        (_records(300, 0.02, 0), calibration.QCNR),
        (_records(300, 0.5, 0.5 * 0.15 / 8000), calibration.EXCESS),
        (_records(300, 0.8, 0), calibration.SLOPE),
        (_records(300, 0.3, 0), calibration.SLOPE),
        (_records(450, 0.5, 0), calibration.OFF_VARIANCE),
        (_records(150, 0.5, 0), calibration.OFF_VARIANCE),
        (_records(300, 0.5, 0, saturated=1), calibration.CLIPPED),
        (_records(300, 0.5, 0, mean=2090), calibration.OPERATING_POINT),
        (_records(300, 1.2, 0), calibration.OPERATING_POINT),
    ],
)
def test_each_fault_is_named(records: list[messages.Record], fault: str) -> None:
    assert fault in _faults(records)


def test_no_light_is_no_calibration() -> None:
    with pytest.raises(calibration.CalibrationError, match="photocurrent must rise"):
        calibration.fit(_records(300, 0.5, 0, scale=10**6), 3)
    bright_first = _records(300, 0.5, 0)
    bright_first[2].v_dc = bright_first[1].v_dc
    with pytest.raises(calibration.CalibrationError, match="photocurrent must rise"):
        calibration.fit(bright_first, 3)
    with pytest.raises(calibration.CalibrationError, match="levels"):
        calibration.fit(_records(300, 0.5, 0)[:4], 3)
    for nominal in (0, 5):
        with pytest.raises(calibration.CalibrationError, match="levels"):
            calibration.fit(_records(300, 0.5, 0), nominal)


def test_light_that_makes_no_noise_is_no_quantum_source() -> None:
    result = calibration.fit(_records(300, 0, 0), 3)
    assert result.qcnr_db < -20
    assert calibration.QCNR in calibration.faults(result)


def test_variance_that_falls_with_light_is_refused() -> None:
    result = calibration.fit(_records(9000, -0.5, 0), 3)
    assert result.qcnr_db == -math.inf
    assert calibration.QCNR in calibration.faults(result)
    assert calibration.EXCESS in calibration.faults(result)


def test_purely_classical_light_is_refused() -> None:
    """A source whose noise is all quadratic: intensity noise posing as shot noise."""
    assert calibration.EXCESS in _faults(_records(300, 0.001, 0.5 / 8000))


def test_neighbours_that_move_together_show_in_the_lag() -> None:
    records = _records(300, 0.5, 0)
    at = records[3]
    at.products = round((at.count - 1) * ((at.total / at.count) ** 2 + 0.25 * at.variance))
    assert calibration.fit(records, 3).lag == pytest.approx(0.25, abs=1e-3)


def test_constant_samples_have_no_variance_and_no_division_by_zero() -> None:
    result = calibration.fit(_records(0, 0, 0), 3)
    assert result.lag == 0
    assert calibration.QCNR in calibration.faults(result)

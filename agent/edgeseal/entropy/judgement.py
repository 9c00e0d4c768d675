"""What a calibration proves, against absolute limits and against the device's own first one here.

The limits are those of edgeseal.stick.calibration (docs/qrng-model.md). The first good calibration of a device on this
agent is kept as its baseline: one that was exchanged under its serial number, or that ages, shows here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.stick.calibration import EXCESS_MAX, MEAN_MIDDLE, MEAN_TOLERANCE, OFF_TOLERANCE, QCNR_MIN_DB, SIGMA_MAX
from edgeseal.stick.calibration import SLOPE_TOLERANCE as _SLOPE_TOLERANCE

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Calibration
    from edgeseal.entropy.records import Baseline

DRIFT: Final = 0.15  # of sigma since the baseline: a warning, and half the claim


def calibration_fault(found: Calibration, baseline: Baseline | None) -> str | None:
    """Return why a calibration is not good enough to make blocks, or None."""
    if not found.qcnr_db >= QCNR_MIN_DB:  # also when it is no number
        return f"quantum noise is {found.qcnr_db:.1f} dB above the classical, {QCNR_MIN_DB:.0f} dB are needed"
    if not found.excess < EXCESS_MAX:
        return f"intensity noise is {100 * found.excess:.0f} % of the shot noise, {100 * EXCESS_MAX:.0f} % is too much"
    if not abs(found.mean - MEAN_MIDDLE) <= MEAN_TOLERANCE or not found.sigma <= SIGMA_MAX:
        return f"operating point {found.mean:.0f} +- {found.sigma:.1f} codes is too near to an uneven code of the ADC"
    return _fault_against(found, baseline) if baseline else None


def drift(found: Calibration, baseline: Baseline) -> str | None:
    """Return how a good calibration has moved since the baseline, if it is worth a warning."""
    moved = found.sigma / baseline.sigma - 1
    return f"its spread has drifted by {100 * moved:+.0f} % since its first calibration" if abs(moved) > DRIFT else None


def _fault_against(found: Calibration, baseline: Baseline) -> str | None:
    """Compare with the device's first calibration; a baseline that is no measurement refuses."""
    pairs = (
        ("shot noise per current", found.slope, baseline.slope, _SLOPE_TOLERANCE),
        ("noise without light", found.off_variance, baseline.off_variance, OFF_TOLERANCE),
    )
    for what, now, before, tolerance in pairs:
        if not before > 0 or not abs(now / before - 1) <= tolerance:
            return f"{what} was {before:.4g} at its first calibration here and is {now:.4g}"
    return None

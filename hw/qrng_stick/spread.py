"""How far a good board may lie from the model: limits from the parts' tolerances, for the acceptance table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hw.qrng_stick import noise_model as model
from hw.qrng_stick.values import ELEMENTARY_CHARGE, NOMINAL, NOMINAL_CURRENT, SPREAD, FrontEnd

if TYPE_CHECKING:
    from collections.abc import Callable

NOMINAL_VOLTAGE = NOMINAL_CURRENT * NOMINAL.r_f


@dataclass(frozen=True, slots=True)
class Range:
    """A value of the model and the limits its parts' tolerances give it."""

    low: float
    nominal: float
    high: float


def varied(v: FrontEnd, name: str, factor: float) -> FrontEnd:
    """Return `v` with one value multiplied; `op_amp.x` reaches into the op-amp."""
    owner, dot, field = name.partition(".")
    if not dot:
        changed: dict[str, Any] = {name: getattr(v, name) * factor}
        return replace(v, **changed)
    inner = getattr(v, owner)
    return replace(v, op_amp=replace(inner, **{field: getattr(inner, field) * factor}))


def limits(v: FrontEnd, quantity: Callable[[FrontEnd], float]) -> Range:
    """Add up what each tolerance does alone, in the direction that hurts: a worst case, not a likely one."""
    nominal = quantity(v)
    low = high = nominal
    for name, share in SPREAD.items():
        moved = [quantity(varied(v, name, factor)) - nominal for factor in (1 - share, 1 + share)]
        low += min(0.0, *moved)
        high += max(0.0, *moved)
    return Range(low, nominal, high)


def dark_rms(v: FrontEnd) -> float:
    """Rms in the dark, LSB."""
    return model.levels(v).classical / v.lsb


def lit_rms(v: FrontEnd) -> float:
    """Rms with the nominal voltage across r_f, LSB: the current is set by that voltage, not by the LED."""
    return model.levels(v, NOMINAL_VOLTAGE / v.r_f).total / v.lsb


def ratio_db(v: FrontEnd) -> float:
    """QCNR at the nominal voltage across r_f, dB."""
    return model.levels(v, NOMINAL_VOLTAGE / v.r_f).qcnr_db


def code_slope(v: FrontEnd) -> float:
    """Slope as the firmware sees it: variance in LSB^2 per microampere of photocurrent."""
    return model.slope(v) * 2 * ELEMENTARY_CHARGE * 1e-6 / v.lsb**2


def monitor_slope(v: FrontEnd) -> float:
    """Slope as the agent's calibration fits it: LSB^2 per 1/16 code of the photocurrent monitor."""
    return code_slope(v) / (1e-6 * v.r_f / v.lsb * 16)

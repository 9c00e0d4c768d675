"""The stochastic model of the stick, in closed form: noise spectra at the ADC, and the min-entropy that follows.

Derivation and assumptions: docs/qrng-model.md. All spectral densities are one-sided (V^2/Hz over f >= 0), as ngspice
prints them. It does not model the ADC's own noise or bits lost in code widths other than through `code_width`, and
it says nothing about a board that was never measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hw.qrng_stick.values import BOLTZMANN, COUPLING, ELEMENTARY_CHARGE, NOMINAL, FrontEnd, OpAmp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Real = NDArray[np.floating]
    Complex = NDArray[np.complexfloating]

BAND = (1.0, 10e6)
"""Integration limits, Hz: five decades above and below everything the circuit passes at these sample rates."""

_POINTS_PER_DECADE = 400


def frequencies(low: float = BAND[0], high: float = BAND[1]) -> Real:
    """Logarithmic grid for integrals over the band."""
    decades = math.log10(high / low)
    return np.logspace(math.log10(low), math.log10(high), round(decades * _POINTS_PER_DECADE) + 1)


def integrate(density: Real, f: Real) -> float:
    """Variance under a one-sided density by the trapezium rule, V^2."""
    return float(np.trapezoid(density, f))


def _laplace(f: Real) -> Complex:
    return 2j * math.pi * f


def open_loop(op: OpAmp, f: Real) -> Complex:
    """One-pole gain A(f)."""
    return 1 / (1 / op.open_loop_gain + 1j * f / op.gain_bandwidth)


def closed(ideal: Complex, noise_gain: Complex, op: OpAmp, f: Real) -> Complex:
    """Correct the transfer function of an ideal op-amp for finite gain: H = H_ideal / (1 + noise_gain / A)."""
    return ideal / (1 + noise_gain / open_loop(op, f))


@dataclass(frozen=True, slots=True)
class Transfer:
    """Transfer functions to the ADC pin over a grid of frequencies."""

    current: Complex
    """From a current into the summing node, V/A."""

    tia_noise: Complex
    """From the transimpedance op-amp's input noise voltage."""

    stage_noise: tuple[Complex, Complex]
    """From the input noise voltage of gain stage 1 and 2."""

    stage_feedback: tuple[Complex, Complex]
    """From a noise current across r_fb of stage 1 and 2, V/A."""

    stage_ground: tuple[Complex, Complex]
    """From a noise voltage in series with r_g of stage 1 and 2."""

    bias_resistor: Complex
    """From a noise voltage in series with r_couple."""


def transfer(v: FrontEnd, f: Real) -> Transfer:
    """Transfer functions of the chain at frequencies `f` (Hz)."""
    s, op = _laplace(f), v.op_amp
    z_f = v.r_f / (1 + s * v.r_f * v.c_f)
    tia_gain = 1 + s * v.input_capacitance * z_f
    z_fb = v.r_fb / (1 + s * v.r_fb * v.c_fb)
    z_g = v.r_g + 1 / (s * v.c_g)
    ideal = 1 + z_fb / z_g
    stage = closed(ideal, ideal, op, f)
    rc = s * v.r_couple * v.c_couple
    adc = 1 / (1 + s * v.r_adc * v.c_adc)
    after_1 = rc / (1 + rc) * stage * adc
    return Transfer(
        current=closed(z_f, tia_gain, op, f) * stage * after_1,
        tia_noise=closed(tia_gain, tia_gain, op, f) * stage * after_1,
        stage_noise=(stage * after_1, stage * adc),
        stage_feedback=(closed(z_fb, ideal, op, f) * after_1, closed(z_fb, ideal, op, f) * adc),
        stage_ground=(closed(z_fb / z_g, ideal, op, f) * after_1, closed(z_fb / z_g, ideal, op, f) * adc),
        bias_resistor=stage * adc / (1 + rc),
    )


def _power(h: Complex) -> Real:
    return (h * h.conj()).real


def shot_density(v: FrontEnd, current: float, f: Real) -> Real:
    """Shot noise 2 q I of the photocurrent at the ADC, V^2/Hz (Schottky)."""
    return 2 * ELEMENTARY_CHARGE * current * _power(transfer(v, f).current)


def classical_parts(v: FrontEnd, f: Real) -> dict[str, Real]:
    """Noise in the dark, by origin, V^2/Hz at the ADC (Johnson-Nyquist noise is 4 k T R)."""
    h, op, kt4 = transfer(v, f), v.op_amp, 4 * BOLTZMANN * v.temperature
    en2 = op.voltage_noise**2
    stages = sum((en2 * _power(x) for x in h.stage_noise), np.zeros_like(f))
    resistors = kt4 * v.r_couple * _power(h.bias_resistor)
    for feedback, ground in zip(h.stage_feedback, h.stage_ground, strict=True):
        resistors = resistors + kt4 / v.r_fb * _power(feedback) + kt4 * v.r_g * _power(ground)
    return {
        "feedback resistor": kt4 / v.r_f * _power(h.current),
        "transimpedance op-amp": en2 * _power(h.tia_noise) + op.current_noise**2 * _power(h.current),
        "gain stages": stages + resistors,
        "ADC resistor": kt4 * v.r_adc / (1 + (2 * math.pi * f * v.r_adc * v.c_adc) ** 2),
    }


def classical_density(v: FrontEnd, f: Real) -> Real:
    """All noise in the dark, V^2/Hz."""
    return sum(classical_parts(v, f).values(), np.zeros_like(f))


def quantum_density(v: FrontEnd, current: float, f: Real, *, coupling: float = COUPLING) -> Real:
    """Partition noise: the part of the shot noise that no knowledge of the LED's current reduces, V^2/Hz.

    Each LED electron becomes a photoelectron with probability `coupling`; the variance of that choice is
    (1 - coupling) of the full shot noise, whatever the LED's own current does (docs/qrng-model.md, section 3).
    """
    return (1 - coupling) * shot_density(v, current, f)


def pump_density(v: FrontEnd, current: float, f: Real, *, coupling: float = COUPLING, fano: float = 1.0) -> Real:
    """Noise of the LED's current, seen through the coupling: classical. `fano` 1 is a Poissonian LED current."""
    return coupling * fano * shot_density(v, current, f)


@dataclass(frozen=True, slots=True)
class Levels:
    """Rms values at the ADC pin, volt."""

    current: float
    total: float
    shot: float
    classical: float

    @property
    def qcnr_db(self) -> float:
        """Quantum-to-classical noise ratio, dB."""
        return 20 * math.log10(self.shot / self.classical)


def levels(v: FrontEnd = NOMINAL, current: float = 0.0) -> Levels:
    """Rms noise at the ADC for one photocurrent (A)."""
    f = frequencies()
    shot, dark = integrate(shot_density(v, current, f), f), integrate(classical_density(v, f), f)
    return Levels(current, math.sqrt(shot + dark), math.sqrt(shot), math.sqrt(dark))


def slope(v: FrontEnd = NOMINAL) -> float:
    """(variance lit - variance dark) / (2 q I): integral of |H|^2, ohm^2 Hz; the acceptance criterion of a board."""
    f = frequencies()
    return integrate(_power(transfer(v, f).current), f)


def qcnr_thermal_db(v: FrontEnd, current: float) -> float:
    """Upper bound of the ratio, r_f being the only classical source: V_dc over 2kT/q, dB."""
    return 10 * math.log10(current * v.r_f / (2 * v.thermal_voltage))


_FOLD_POINTS = 1024


def folded(v: FrontEnd, density: Real, sample_rate: float) -> Real:
    """Fold a density given on the grid of `frequencies()`: two-sided spectrum of the samples, LSB^2.

    At `_FOLD_POINTS` midpoints of [0, fs/2): S_d(f) = fs * sum over k of S(f + k fs), with S two-sided. Its mean over
    the interval is the variance.
    """
    grid = frequencies()
    base = (np.arange(_FOLD_POINTS) + 0.5) * (sample_rate / 2 / _FOLD_POINTS)
    first = np.arange(math.ceil(BAND[1] / sample_rate))[:, None] * sample_rate
    images = np.log(np.stack([first + base, first + sample_rate - base]))  # both edges fold onto `base`
    total: Real = np.interp(images, np.log(grid), density, right=0.0).sum(axis=(0, 1))
    return total * (sample_rate / 2) / v.lsb**2


def folded_density(v: FrontEnd, current: float, sample_rate: float, *, coupling: float = COUPLING) -> Real:
    """Fold the quantum noise alone."""
    return folded(v, quantum_density(v, current, frequencies(), coupling=coupling), sample_rate)


def autocorrelation(v: FrontEnd, current: float, sample_rate: float, lag: int) -> float:
    """Correlation of two samples `lag` apart, all noise together: what a capture shows."""
    grid = frequencies()
    density = folded(v, shot_density(v, current, grid) + classical_density(v, grid), sample_rate)
    phase = np.pi * (np.arange(_FOLD_POINTS) + 0.5) / _FOLD_POINTS
    return float(np.mean(density * np.cos(phase * lag)) / np.mean(density))


def innovation_rms(density: Real) -> float:
    """One-step prediction error of a stationary process (Kolmogorov-Szego): exp(mean of ln S_d over a period / 2)."""
    return math.exp(float(np.mean(np.log(density))) / 2)


def innovation_sigma(
    v: FrontEnd = NOMINAL, current: float = 0.0, sample_rate: float = 20e3, *, coupling: float = COUPLING
) -> float:
    """Rms of what the whole past does not tell of the next sample's quantum noise, LSB."""
    if current <= 0:
        return 0.0
    return innovation_rms(folded_density(v, current, sample_rate, coupling=coupling))


def min_entropy(sigma: float, *, code_width: float = 1.0) -> float:
    """Bits of a Gaussian of rms `sigma` LSB read in codes `code_width` LSB wide, for the best placed mean.

    -log2 of the probability of the likeliest code: erf(w / (2 sqrt2 sigma)).
    """
    if sigma <= 0:
        return 0.0
    return -math.log2(math.erf(code_width / (2 * math.sqrt(2) * sigma)))


def sigma_for(bits: float, *, code_width: float = 1.0) -> float:
    """Innovation rms (LSB) at which `min_entropy` gives `bits`, by bisection."""
    low, high = 1e-3, 1e6
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if min_entropy(middle, code_width=code_width) < bits else (low, middle)
    return math.sqrt(low * high)


def widest_code(sigma: float, bits: float) -> float:
    """Code width (LSB) up to which `bits` per sample still hold at innovation rms `sigma`."""
    return sigma / sigma_for(bits)


def ripple(v: FrontEnd, current: float, *, coupling: float = COUPLING) -> float:
    """Rms of the LED's PWM fundamental at the ADC, LSB; the worst duty, 1/2; capacitors at half their marked value."""
    f = np.array([v.pwm_frequency])
    amplitude = math.sqrt(2) / math.pi * v.logic  # rms of the fundamental of a square wave
    pole = 1 + 1j * 2 * math.pi * f * v.r_pwm * v.c_pwm / 2
    led_current = current / coupling
    dynamic = 2 * v.thermal_voltage / led_current  # an LED's ideality is about 2
    photo = amplitude / np.abs(pole**2) / (v.r_led + dynamic) * coupling
    return float(photo[0] * np.abs(transfer(v, f).current)[0] / v.lsb)


def phase_margin(v: FrontEnd = NOMINAL) -> float:
    """Phase margin of the transimpedance stage, degrees (one-pole op-amp: the real one has a few less)."""
    f = frequencies(1e3, 1e8)
    s = _laplace(f)
    z_f = v.r_f / (1 + s * v.r_f * v.c_f)
    loop = open_loop(v.op_amp, f) / (1 + s * v.input_capacitance * z_f)
    crossing = int(np.argmin(np.abs(np.log(np.abs(loop)))))
    return 180 + math.degrees(float(np.angle(loop[crossing])))

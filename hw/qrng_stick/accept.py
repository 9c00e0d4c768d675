"""Accept or reject a finished stick: `.venv/bin/python -m hw.qrng_stick.accept` with the stick on this machine's USB.

Runs calibration sweeps and reads samples through the agent's own driver, and compares both with the model's limits
(`spread.py`). It says nothing about what needs a probe: README.md, tables 1 and 2, come first.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from contextlib import closing
from statistics import fmean
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import DriverError, Options
from edgeseal.entropy.drivers.stick import NAME
from edgeseal.stick import calibration
from hw.qrng_stick import noise_model as model
from hw.qrng_stick import spread
from hw.qrng_stick.checks import Check, show
from hw.qrng_stick.values import (
    CLAIMED_MIN_ENTROPY,
    COUPLING_LIMIT,
    NOMINAL,
    NOMINAL_CURRENT,
    SAMPLE_RATE,
)

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Calibration
    from edgeseal.entropy.drivers.stick import Stick

SWEEPS: Final = 5
FRAMES: Final = 220  # about 100,000 samples, five seconds
LAGS: Final = 10
SEGMENT: Final = 1024  # samples of one spectrum: lines 20 Hz apart
LINE_LIMIT: Final = 4.0  # power over the median; 100 averaged spectra of plain noise stay under 2
CODE_LIMIT: Final = 2.0  # counts of a code over those of its neighbours


def _between(name: str, came: float, low: float, high: float, unit: str) -> Check:
    return Check(name, f"{low:.4g} to {high:.4g} {unit}", f"{came:.4g} {unit}", low <= came <= high)


def judge_sweeps(sweeps: list[Calibration]) -> list[Check]:
    """Compare the mean of some calibration sweeps with the limits of a good board."""
    off = fmean(s.off_variance for s in sweeps)
    sigma = math.sqrt(fmean(s.sigma**2 for s in sweeps))
    slope = fmean(s.slope for s in sweeps)
    volts = (sigma**2 - off) / slope / 16 * NOMINAL.lsb if slope > 0 else 0.0
    quantities = (spread.dark_rms, spread.lit_rms, spread.ratio_db, spread.monitor_slope)
    dark, lit, ratio, steep = (spread.limits(NOMINAL, quantity) for quantity in quantities)
    nominal = spread.NOMINAL_VOLTAGE
    return [
        _between("voltage across r_f, nominal level", volts, 0.95 * nominal, 1.05 * nominal, "V"),
        _between("rms, LED off", math.sqrt(off), dark.low, dark.high, "LSB"),
        _between("rms, nominal level", sigma, lit.low, lit.high, "LSB"),
        _between("slope of the variance", slope, steep.low, steep.high, "LSB^2 per 1/16 code"),
        _between("QCNR", fmean(s.qcnr_db for s in sweeps), ratio.low, ratio.high, "dB"),
        _between("intensity noise, of the shot noise", fmean(s.excess for s in sweeps), 0, calibration.EXCESS_MAX, ""),
    ]


def strongest_line(samples: np.ndarray) -> tuple[float, float]:
    """Return frequency (Hz) and power over the median of the strongest line (Welch's method, Hann window)."""
    pieces = samples[: len(samples) // SEGMENT * SEGMENT].reshape(-1, SEGMENT)
    power = (np.abs(np.fft.rfft((pieces - samples.mean()) * np.hanning(SEGMENT))) ** 2).mean(axis=0)[2:-1]
    at = int(np.argmax(power))
    return (at + 2) * SAMPLE_RATE / SEGMENT, float(power[at] / np.median(power))


def widest_code(samples: np.ndarray) -> tuple[int, float]:
    """Return the code whose count stands out most over its sixteen neighbours, within one sigma, and by how much."""
    counts, middle, reach = Counter(samples.tolist()), round(float(samples.mean())), round(float(samples.std()))
    found = (middle, 1.0)
    for code in range(middle - reach, middle + reach + 1):
        around = fmean(counts[code + k] for k in range(-8, 9) if k)
        found = max(found, (code, counts[code] / max(around, 1.0)), key=lambda pair: pair[1])
    return found


def judge_samples(samples: np.ndarray) -> list[Check]:
    """Look for what a sweep cannot show: offset, tones, memory between samples, uneven codes."""
    mean, middle = float(samples.mean()), calibration.MEAN_MIDDLE
    centred = samples - mean
    allowed = 5 / math.sqrt(len(samples)) + 0.01
    differences = {
        lag: float(np.mean(centred[lag:] * centred[:-lag]) / np.mean(centred**2))
        - model.autocorrelation(NOMINAL, NOMINAL_CURRENT, SAMPLE_RATE, lag)
        for lag in range(1, LAGS + 1)
    }
    lag = max(differences, key=lambda key: abs(differences[key]))
    line, power = strongest_line(samples)
    code, width = widest_code(samples)
    return [
        _between("mean", mean, middle - calibration.MEAN_TOLERANCE, middle + calibration.MEAN_TOLERANCE, "LSB"),
        _between(f"strongest line, {line:.0f} Hz", power, 0, LINE_LIMIT, "of the median"),
        _between(f"correlation off the model, lag {lag}", differences[lag], -allowed, allowed, ""),
        _between(f"widest code, {code}", width, 0, CODE_LIMIT, "of its neighbours"),
    ]


def judge_claim(sweeps: list[Calibration], samples: np.ndarray) -> Check:
    """Recompute the min-entropy from what was measured: slope alone, worst coupling, the widest code seen."""
    quantum = fmean(s.sigma**2 for s in sweeps) - fmean(s.off_variance for s in sweeps)
    shape = model.innovation_sigma(NOMINAL, NOMINAL_CURRENT, SAMPLE_RATE, coupling=0.0) / (
        model.levels(NOMINAL, NOMINAL_CURRENT).shot / NOMINAL.lsb
    )
    sigma = math.sqrt(max(quantum, 0.0) * (1 - COUPLING_LIMIT)) * shape
    bits = model.min_entropy(sigma, code_width=max(1.0, widest_code(samples)[1]))
    wanted = f"at least {CLAIMED_MIN_ENTROPY:g} bit"
    return Check("min-entropy from these numbers", wanted, f"{bits:.2f} bit", bits >= CLAIMED_MIN_ENTROPY)


def measure(driver: Stick) -> list[Check]:
    """Run sweeps, read samples, judge both. Raises DriverError."""
    sweeps = [found for _ in range(SWEEPS) if (found := driver.calibrate(timeout=30.0)) is not None]
    frames = [np.asarray(driver.read(timeout=1.0).samples, dtype=np.int64) for _ in range(FRAMES)]
    samples = np.concatenate(frames)
    return [*judge_sweeps(sweeps), *judge_samples(samples), judge_claim(sweeps, samples)]


def main() -> int:
    """Find the one stick on USB, measure it, print the verdict; 0 accepted, 1 rejected, 2 nothing to measure."""
    try:
        sticks = [found for found in detect.scan(ports=list, kernel=lambda: None) if found.profile.name == NAME]
        if len(sticks) != 1:
            print(f"exactly one stick was expected on USB, {len(sticks)} are there", file=sys.stderr)
            return 2
        driver = cast("Stick", sticks[0].open(Options()))
        with closing(driver):
            results, serial = measure(driver), driver.describe().serial
    except DriverError as e:
        print(f"no verdict: {e}", file=sys.stderr)
        return 2
    show(results)
    accepted = all(check.ok for check in results)
    print(f"\nstick {serial}: {'ACCEPTED' if accepted else 'REJECTED'}")
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main())

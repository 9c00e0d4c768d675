"""What a calibration sweep says about the noise: variance over photocurrent, split into its three causes.

    variance(I) = a + b I + c I^2

a is electronics noise (LED off), b I is shot noise, whose variance is linear in the photocurrent I, c I^2 is classical
intensity noise of the LED, whose variance is quadratic (docs/qrng-model.md). QCNR = b I / (a + c I^2) at the nominal
level. I is measured in 1/16 code of the photocurrent monitor above its LED-off value: ratios need no reference voltage.
"""

import math

from . import frame, messages

QCNR, SLOPE, EXCESS, OFF_VARIANCE, OPERATING_POINT = "qcnr", "slope", "excess", "off-variance", "operating-point"
CLIPPED = "saturated"

QCNR_MIN_DB = 8.0
EXCESS_MAX = 0.1  # c I / b
SLOPE_TOLERANCE = OFF_TOLERANCE = 0.3  # of the values the station measured
# DNL spikes of the RP2040 (erratum E11) sit at codes 512, 1536, 2560, 3584: 6 sigma away from here
MEAN_MIDDLE, MEAN_TOLERANCE, SIGMA_MAX = 2048, 30, 80.0
_CURRENT_MIN = 16  # one whole code of the monitor between off and L4, or there was no light


class CalibrationError(ValueError):
    """A sweep from which nothing can be fitted: says what is missing."""


class Fit:
    """Coefficients of one sweep and what follows from them at the nominal level.

    a codes^2; b codes^2 per unit of current; c codes^2 per unit squared (not below 0); current at the nominal level;
    mean, sigma in codes and lag-1 correlation at the nominal level; off: variance with the LED off.
    """

    __slots__ = ("a", "b", "c", "current", "lag", "mean", "off", "saturated", "sigma")

    def __init__(
        self, coefficients: tuple[float, float, float], current: float, records: list[messages.Record], nominal: int
    ) -> None:
        """Take the fitted coefficients and the records they came from."""
        self.a, self.b, self.c = coefficients
        self.current = current
        at = records[nominal]
        self.mean, self.sigma, self.lag = at.mean, math.sqrt(at.variance), _lag(at)
        self.off = records[0].variance
        self.saturated = any(r.saturated for r in records)

    @property
    def excess(self) -> float:
        """Return c I / b: classical intensity noise per shot noise at the nominal level."""
        return self.c * self.current / self.b if self.b > 0 else math.inf

    @property
    def qcnr_db(self) -> float:
        """Quantum-to-classical noise ratio in dB at the nominal level; -inf if there is no shot noise."""
        classical = self.a + self.c * self.current * self.current
        if self.b <= 0:
            return -math.inf
        return 10 * math.log10(self.b * self.current / classical) if classical > 0 else math.inf


class Baseline:
    """What the station measured when the stick was made: slope b and LED-off variance."""

    __slots__ = ("off", "slope")

    def __init__(self, *, slope: float, off: float) -> None:
        """Both positive, in the units of Fit."""
        self.slope, self.off = slope, off


def fit(records: list[messages.Record], nominal: int) -> Fit:
    """Fit a sweep: messages.Record of off, L1 to L4 in this order; `nominal` is the level of RAW frames, 1 to 4.

    Weighted least squares: a variance estimated from n normal samples has standard error variance * sqrt(2/n), so each
    level weighs 1/variance^2. Raises CalibrationError if the photocurrent monitor saw no light or the levels do not
    rise.
    """
    currents = [float(r.v_dc - records[0].v_dc) for r in records]
    if len(records) != frame.LEVELS or not 1 <= nominal < frame.LEVELS:
        raise CalibrationError(f"{frame.LEVELS} levels and a nominal level of 1 to 4 are needed")
    if currents[-1] < _CURRENT_MIN or any(b <= a for a, b in zip(currents, currents[1:])):
        raise CalibrationError(f"photocurrent must rise from level to level, measured {currents} in 1/16 code")
    scale = currents[-1]
    points = [(i / scale, max(r.variance, 1.0 / 12)) for i, r in zip(currents, records)]  # a code is 1 wide
    a, b, c = _parabola(points)
    if c < 0:  # intensity noise cannot be negative: what is left is a straight line
        (a, b), c = _line(points), 0.0
    return Fit((a, b / scale, c / (scale * scale)), currents[nominal], records, nominal)


def faults(result: Fit, baseline: Baseline | None = None) -> list[str]:
    """Return the names of the criteria a fit fails, [] for a good one; without a baseline only the absolute ones."""
    failed = []
    if not result.qcnr_db >= QCNR_MIN_DB:
        failed.append(QCNR)
    if not result.excess < EXCESS_MAX:
        failed.append(EXCESS)
    if result.saturated:
        failed.append(CLIPPED)
    if abs(result.mean - MEAN_MIDDLE) > MEAN_TOLERANCE or result.sigma > SIGMA_MAX:
        failed.append(OPERATING_POINT)
    if baseline is not None:
        if abs(result.b / baseline.slope - 1) > SLOPE_TOLERANCE:
            failed.append(SLOPE)
        if abs(result.off / baseline.off - 1) > OFF_TOLERANCE:
            failed.append(OFF_VARIANCE)
    return failed


def _lag(record: messages.Record) -> float:
    """Return the lag-1 correlation of a record; end effects of one sample in thousands are neglected."""
    n, mean = record.count, record.total / record.count
    covariance = record.products / (n - 1) - mean * mean
    return covariance / record.variance if record.variance > 0 else 0.0


def _parabola(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return a, b, c of the weighted parabola through (x, variance) by the normal equations (Cramer's rule)."""
    s = [sum(x**k / (y * y) for x, y in points) for k in range(5)]
    t = [sum(x**k / y for x, y in points) for k in range(3)]  # y / y^2
    d = _det((s[0], s[1], s[2]), (s[1], s[2], s[3]), (s[2], s[3], s[4]))
    a = _det((t[0], s[1], s[2]), (t[1], s[2], s[3]), (t[2], s[3], s[4]))
    b = _det((s[0], t[0], s[2]), (s[1], t[1], s[3]), (s[2], t[2], s[4]))
    c = _det((s[0], s[1], t[0]), (s[1], s[2], t[1]), (s[2], s[3], t[2]))
    return a / d, b / d, c / d


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return a, b of the weighted straight line."""
    s = [sum(x**k / (y * y) for x, y in points) for k in range(3)]
    t = [sum(x**k / y for x, y in points) for k in range(2)]
    d = s[0] * s[2] - s[1] * s[1]
    return (t[0] * s[2] - t[1] * s[1]) / d, (s[0] * t[1] - s[1] * t[0]) / d


def _det(p: tuple[float, float, float], q: tuple[float, float, float], r: tuple[float, float, float]) -> float:
    """Return the determinant of three rows of three."""
    return float(
        p[0] * (q[1] * r[2] - q[2] * r[1]) - p[1] * (q[0] * r[2] - q[2] * r[0]) + p[2] * (q[0] * r[1] - q[1] * r[0])
    )

"""Continuous tests of raw samples: SP 800-90B §4.4, and tests of what the noise model predicts.

The 90B tests find total failure, but are blunt: with H = 4 claimed, a source of 3 bits passes. The model's tests know
mean, spread and whiteness of the healthy source and find a dead LED, a stuck bit, saturation and hum in the first
frame. None of them can tell a good liar from a noise source; that is why blocks are only ever mixed in.
Cutoffs are computed with integers only: MicroPython's floats have 24 bits. Not here: what an alarm leads to.
"""

import hashlib
import math
from array import array

CONTINUOUS_ALPHA = 40  # false alarm 2^-40 while running
STARTUP_ALPHA = 20  # 2^-20 at start-up, where a repetition costs nothing
STARTUP_SAMPLES = 4096  # SP 800-90B §4.3 asks for 1024 at least
WINDOW = 512  # APT window of a source that is not binary
BINARY_WINDOW = 1024

_H_UNIT = 256  # claims are kept in 1/256 bit, as GET_INFO sends them
_FIXED = 128  # fraction bits of fixed-point probabilities
_UNIT = 1 << _FIXED
_PLANES = 5  # least significant bits: a healthy spread of 16 codes or more leaves each of them fair
_LOW = (1 << _PLANES) - 1
_WITH_BIT = tuple(tuple(v for v in range(_LOW + 1) if v >> bit & 1) for bit in range(_PLANES))
_DEVIATIONS = 8  # false alarm 2^-50 of a normal statistic
_SIGMA_TOLERANCE = 0.2  # of the calibrated sigma: 6 standard errors at 480 samples
_SATURATED_PARTS = 100  # more than one sample in so many at the ends of the range
REMEMBERED = 4096  # frames whose hashes are kept: 98 s at 20 kS/s

RCT, APT = "rct", "apt"
MEAN, SIGMA, LAG, BITS, SATURATION, DUPLICATE = "mean", "sigma", "lag", "bits", "saturation", "duplicate"


def rct_cutoff(h: float, alpha_exp: int) -> int:
    """Return the repetition count cutoff C = 1 + ceil(-log2(alpha) / H), alpha = 2^-alpha_exp (SP 800-90B §4.4.1)."""
    units = _claim_units(h)
    return 1 - (-alpha_exp * _H_UNIT // units)


def apt_cutoff(h: float, window: int, alpha_exp: int) -> int:
    """Return the adaptive proportion cutoff C = 1 + CRITBINOM(W, 2^-H, 1 - alpha) (SP 800-90B §4.4.2).

    The binomial weights are integers relative to the first one, kept to 128 bits, and summed twice instead of stored:
    512 big integers do not fit beside a frame on a small device.
    """
    p = _power_of_half(_claim_units(h))
    weight = total = _UNIT
    for k in range(window):
        weight = _next_weight(weight, window, k, p)
        total += weight
    weight = below = _UNIT
    critical = 0
    while (total - below) << alpha_exp > total:  # P(X > critical) > alpha
        weight = _next_weight(weight, window, critical, p)
        below += weight
        critical += 1
    return 1 + critical


def _claim_units(h: float) -> int:
    """Return a claim in 1/256 bit, rounded down: a lower claim is the careful one."""
    units = int(h * _H_UNIT)
    if units <= 0:
        raise ValueError("a claim of at least 1/256 bit per sample is needed")
    return units


def _power_of_half(units: int) -> int:
    """Return 2^-(units/256) as a fixed-point integer: halvings for whole bits, square roots for the fraction."""
    power = _UNIT
    root = power >> 1  # 2^-1, then 2^-1/2, 2^-1/4, ... 2^-1/256
    bit = _H_UNIT
    fraction = units % _H_UNIT
    while bit > 1:
        bit >>= 1
        root = _isqrt(root << _FIXED)
        if fraction & bit:
            power = power * root >> _FIXED
    return power >> units // _H_UNIT


def _isqrt(n: int) -> int:
    """Return the integer square root (Newton); math.isqrt does not exist on MicroPython."""
    x = 1 << _FIXED + 1
    while True:
        y = (x + n // x) >> 1
        if y >= x:
            return x
        x = y


def _next_weight(weight: int, n: int, k: int, p: int) -> int:
    """Return C(n, k+1) p^(k+1) q^(n-k-1) from C(n, k) p^k q^(n-k)."""
    return weight * (n - k) * p // ((k + 1) * (_UNIT - p))


class Rct:
    """Repetition count test. Runs go on across frames; call `reset` after a gap."""

    __slots__ = ("_last", "_run", "cutoff", "longest")

    def __init__(self, cutoff: int) -> None:
        """Alarm when one value comes `cutoff` times in a row."""
        self.cutoff = cutoff
        self.longest = 0  # longest run seen, for status
        self.reset()

    def reset(self) -> None:
        """Forget the current run: the next sample does not follow the last one."""
        self._last = -1
        self._run = 0

    def feed(self, samples: "array[int] | list[int] | bytes") -> bool:
        """Return whether the test failed within `samples`."""
        last, run, longest = self._last, self._run, 0
        for sample in samples:
            if sample == last:
                run += 1
            else:
                if run > longest:  # noqa: PLR1730  max() here would double the cost of a frame
                    longest = run
                last = sample
                run = 1
        longest = max(longest, run)
        self._last, self._run = last, run
        self.longest = max(self.longest, longest)
        return longest >= self.cutoff


class Apt:
    """Adaptive proportion test over consecutive windows; call `reset` after a gap."""

    __slots__ = ("_count", "_left", "_reference", "cutoff", "highest", "window")

    def __init__(self, cutoff: int, window: int) -> None:
        """Alarm when the first value of a window of `window` samples comes `cutoff` times in it, itself included."""
        self.cutoff, self.window = cutoff, window
        self.highest = 0  # highest count seen, for status
        self.reset()

    def reset(self) -> None:
        """Begin a new window with the next sample."""
        self._reference = -1
        self._count = 0
        self._left = 0

    def feed(self, samples: "array[int] | list[int] | bytes") -> bool:
        """Return whether the test failed within `samples`."""
        at, worst = 0, 0
        while at < len(samples):
            if not self._left:
                self._reference, self._count, self._left = samples[at], 0, self.window
            part = samples[at : at + self._left]
            reference, count = self._reference, self._count
            for sample in part:
                if sample == reference:
                    count += 1
            self._count = count
            self._left -= len(part)
            at += len(part)
            worst = max(worst, count)
        self.highest = max(self.highest, worst)
        return worst >= self.cutoff


class Duplicates:
    """Remembers the last `capacity` frames by hash: a replayed stretch of that length is found at its first repeat."""

    __slots__ = ("_at", "_ring", "_seen")

    def __init__(self, capacity: int = REMEMBERED) -> None:
        """Start without a history."""
        self._ring = [b""] * capacity
        self._seen: set[bytes] = set()
        self._at = 0

    def feed(self, samples: "array[int] | bytes") -> bool:
        """Return whether exactly these samples were there before, and remember them."""
        digest = hashlib.sha256(samples).digest()[:16]
        if digest in self._seen:
            return True
        self._seen.discard(self._ring[self._at])
        self._ring[self._at] = digest
        self._seen.add(digest)
        self._at = (self._at + 1) % len(self._ring)
        return False


class Model:
    """What the stochastic model says about one frame of the calibrated source.

    mean, sigma: of the calibration at the nominal LED level, in ADC codes; lag: expected correlation of neighbours;
    bits: width of a sample.
    """

    __slots__ = ("_duplicates", "bits", "lag", "mean", "sigma")

    def __init__(
        self, mean: float, sigma: float, *, bits: int = 12, lag: float = 0.0, remembered: int = REMEMBERED
    ) -> None:
        """Raise ValueError for a sigma that leaves the tested bit planes predictable."""
        if sigma * 2 < _LOW:
            raise ValueError(f"the bit-plane test needs sigma >= {_LOW // 2 + 1} codes, not {sigma:.1f}")
        self.mean, self.sigma, self.lag, self.bits = mean, sigma, lag, bits
        self._duplicates = Duplicates(remembered)

    def feed(self, samples: "array[int] | bytes") -> "list[str]":
        """Return the names of the tests that this frame fails, [] for a healthy one. At least two samples."""
        n = len(samples)
        total, squares, products, low = _sums(samples)
        alarms = []
        if abs(total / n - self.mean) > _DEVIATIONS * self.sigma / math.sqrt(n):
            alarms.append(MEAN)
        spread = n * squares - total * total  # n^2 times the variance, exact
        if not (1 - _SIGMA_TOLERANCE) * self.sigma <= math.sqrt(spread) / n <= (1 + _SIGMA_TOLERANCE) * self.sigma:
            alarms.append(SIGMA)
        if spread and abs(_lagged(samples, total, products) / spread - self.lag) > _DEVIATIONS / math.sqrt(n):
            alarms.append(LAG)
        if any(_unfair(low, plane, n) for plane in _WITH_BIT):
            alarms.append(BITS)
        if _at_the_ends(samples, self.bits) * _SATURATED_PARTS > n:
            alarms.append(SATURATION)
        if self._duplicates.feed(samples):
            alarms.append(DUPLICATE)
        return alarms


def _sums(samples: "array[int] | bytes") -> "tuple[int, int, int, list[int]]":
    """Return sum x, sum x^2, sum x[i] x[i+1] and the histogram of the five least significant bits."""
    total = squares = products = previous = 0
    low = [0] * (_LOW + 1)
    for x in samples:
        total += x
        squares += x * x
        products += x * previous
        low[x & _LOW] += 1
        previous = x
    return total, squares, products, low


def _lagged(samples: "array[int] | bytes", total: int, products: int) -> int:
    """Return n^2 times the sum over neighbours of (x[i] - mean)(x[i+1] - mean), divided by n: exact."""
    n = len(samples)
    ends = 2 * total - samples[0] - samples[-1]
    return (n * n * products - n * total * ends + (n - 1) * total * total) // n


def _unfair(low: "list[int]", plane: "tuple[int, ...]", n: int) -> bool:
    """Whether a bit plane's count of ones is 8 sigma from n/2: (ones - n/2)^2 > 64 n/4."""
    ones = sum(low[value] for value in plane)
    return (2 * ones - n) ** 2 > _DEVIATIONS * _DEVIATIONS * n


def _at_the_ends(samples: "array[int] | bytes", bits: int) -> int:
    """Return how many samples are the lowest or the highest code."""
    top = (1 << bits) - 1
    if min(samples) and max(samples) < top:
        return 0
    return sum(1 for x in samples if x in (0, top))

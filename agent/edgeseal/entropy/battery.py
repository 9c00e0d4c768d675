"""The tests of one device's samples: which ones, at which level, and what each of their alarms means.

    start-up     RCT and APT at 2^-20, the model if a calibration is known, repeated frames; over 4096 samples
    continuous   RCT and APT at 2^-40 (doubt) and 2^-60 (certainty), the model, repeated frames

Two levels, as jitterentropy has them: a doubt is worth a new start-up test, certainty is not. Its 2^-30 is not used for
doubt: at 2^-40 a healthy source of full claim alarms once in years instead of once a month (docs/decisions). The second
level is computed only for a frame that failed the first, so it costs a healthy stream nothing.

Which model: the calibrated Gaussian for a source with a light to switch off; uniform bytes for a source that conditions
its own output; for any other raw source only what start-up saw of it, within wide bounds. Cutoffs and tests themselves
are in edgeseal.stick.health, shared with the firmware.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, cast

from edgeseal.stick import health

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Symbols

Samples: TypeAlias = "array[int] | bytes"
Level: TypeAlias = Literal["doubt", "certain", "security"]

FRAME: Final = 480  # samples judged at once: below it the spread of a healthy frame is wider than the tolerance
CERTAIN_ALPHA: Final = 60
_UNIFORM_MEAN, _UNIFORM_SIGMA = 127.5, 73.9  # of a byte
_COLLAPSE: Final = 2.0  # how far the spread of a source without a model may move: half to double

WORDS: Final = {
    health.RCT: "one value came too often in a row",
    health.APT: "one value came too often in a window",
    health.MEAN: "the mean has moved",
    health.SIGMA: "the spread has changed",
    health.LAG: "neighbouring samples depend on each other",
    health.BITS: "a bit is stuck or biased",
    health.SATURATION: "samples are at the end of the range",
    health.DUPLICATE: "a frame came twice",
}


@dataclass(frozen=True, slots=True)
class Alarm:
    """A test that failed. `security`: no defect does this, somebody is replaying samples."""

    test: str
    level: Level

    def __str__(self) -> str:
        """Return what an operator reads."""
        return f"{WORDS.get(self.test, self.test)} ({self.test})"


class Modelled(Protocol):
    """Anything that judges one frame."""

    def feed(self, samples: Samples) -> list[str]:
        """Return the names of the tests that failed."""


class Spread:
    """Stands in for a model where there is none: the spread stays near what start-up saw, no frame comes twice."""

    def __init__(self, sigma: float) -> None:
        """`sigma` as start-up measured it."""
        self._sigma = sigma
        self._duplicates = health.Duplicates()

    def feed(self, samples: Samples) -> list[str]:
        """Return the names of the tests that failed."""
        _, sigma = moments(samples)
        moved = not self._sigma / _COLLAPSE <= sigma <= self._sigma * _COLLAPSE
        return [health.SIGMA] * moved + [health.DUPLICATE] * self._duplicates.feed(samples)


@lru_cache(maxsize=32)
def _cutoffs(claim: float, window: int, alpha: int) -> tuple[int, int]:
    return health.rct_cutoff(claim, alpha), health.apt_cutoff(claim, window, alpha)


def window_for(symbols: Symbols) -> int:
    """Return the window of the adaptive proportion test for this width of sample (SP 800-90B §4.4.2)."""
    return health.BINARY_WINDOW if symbols.bits == 1 else health.WINDOW


class _Counting:
    """RCT and APT of one level."""

    def __init__(self, symbols: Symbols, alpha: int) -> None:
        window = window_for(symbols)
        rct, apt = _cutoffs(symbols.claim, window, alpha)
        self._rct, self._apt = health.Rct(rct), health.Apt(apt, window)

    def feed(self, samples: Samples) -> list[str]:
        failed = [health.RCT] if self._rct.feed(samples) else []
        return failed + ([health.APT] if self._apt.feed(samples) else [])

    def reset(self) -> None:
        self._rct.reset()
        self._apt.reset()


class Framer:
    """Collects readings until there is enough to judge; what a device sends in large frames passes through."""

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: Samples = b""

    def feed(self, samples: Samples) -> Samples | None:
        """Return the samples to judge now, or None while there are fewer than FRAME."""
        if not self._waiting and len(samples) >= FRAME:
            return samples
        self._waiting = _joined(self._waiting, samples)
        if len(self._waiting) < FRAME:
            return None
        judged, self._waiting = self._waiting, b""
        return judged


class StartUp:
    """The start-up test of one device, and what it learns of it: mean and spread."""

    def __init__(self, symbols: Symbols, model: Modelled | None) -> None:
        """`model` if the device is known from before."""
        self._symbols = symbols
        self._counting = _Counting(symbols, health.STARTUP_ALPHA)
        self._model = model
        self._duplicates = health.Duplicates()
        self._count, self._sum, self._squares = 0, 0, 0

    @property
    def done(self) -> bool:
        """Whether enough samples have passed."""
        return self._count >= health.STARTUP_SAMPLES

    @property
    def mean(self) -> float:
        """Of what passed."""
        return self._sum / self._count

    @property
    def sigma(self) -> float:
        """Of what passed."""
        return math.sqrt(max(0.0, self._squares / self._count - self.mean**2))

    def feed(self, samples: Samples) -> list[Alarm]:
        """Judge one frame; return the alarms."""
        names = self._counting.feed(samples)
        names += self._model.feed(samples) if self._model else [health.DUPLICATE] * self._duplicates.feed(samples)
        self._count += len(samples)
        self._sum += sum(samples)
        self._squares += sum(x * x for x in samples)
        return _alarms(names)

    def restart_windows(self) -> None:
        """Begin anew after a gap: the next sample does not follow the last one."""
        self._counting.reset()


class Continuous:
    """The tests that run as long as the device does."""

    def __init__(self, symbols: Symbols, model: Modelled | None) -> None:
        """`model`: what the device's samples are held against."""
        self._symbols = symbols
        self._counting = _Counting(symbols, health.CONTINUOUS_ALPHA)
        self._model = model

    def feed(self, samples: Samples) -> list[Alarm]:
        """Judge one frame; return the alarms."""
        names = self._counting.feed(samples)
        certain = _Counting(self._symbols, CERTAIN_ALPHA).feed(samples) if names else []
        return _alarms(names + (self._model.feed(samples) if self._model else []), certain)

    def restart_windows(self) -> None:
        """Begin anew after a gap: the next sample does not follow the last one."""
        self._counting.reset()


class _Uniform:
    """Uniform bytes. Two of 256 values are at the ends of the range, so that being there is no sign of saturation."""

    def __init__(self) -> None:
        self._model = cast("Modelled", health.Model(_UNIFORM_MEAN, _UNIFORM_SIGMA, bits=8))

    def feed(self, samples: Samples) -> list[str]:
        return [name for name in self._model.feed(samples) if name != health.SATURATION]


def uniform_model() -> Modelled:
    """Return the model of a source that conditions its own output: uniform bytes."""
    return _Uniform()


def gaussian_model(mean: float, sigma: float, bits: int) -> Modelled | None:
    """Return the model of a calibrated source; None if its spread is too small for it, which is a fault."""
    try:
        return cast("Modelled", health.Model(mean, sigma, bits=bits))
    except ValueError:
        return None


def plausible(sigma: float, symbols: Symbols) -> bool:
    """Whether noise of this spread can carry the claim at all: a Gaussian's densest code has 1/(sigma sqrt(2 pi))."""
    if symbols.bits == 1:
        return sigma > 0
    return sigma * math.sqrt(2 * math.pi) >= 2.0**symbols.claim or not symbols.raw


def moments(samples: Samples) -> tuple[float, float]:
    """Return mean and standard deviation."""
    n = len(samples)
    mean = sum(samples) / n
    return mean, math.sqrt(max(0.0, sum(x * x for x in samples) / n - mean * mean))


def _alarms(names: list[str], certain: list[str] | None = None) -> list[Alarm]:
    def level(name: str) -> Level:
        if name == health.DUPLICATE:
            return "security"
        return "certain" if name in (certain or []) else "doubt"

    return [Alarm(name, level(name)) for name in dict.fromkeys(names)]


def _joined(first: Samples, second: Samples) -> Samples:
    """Return both, in the type of the second."""
    if not first:
        return second
    if isinstance(first, bytes) and isinstance(second, bytes):
        return first + second
    return array("H", first) + array("H", second)

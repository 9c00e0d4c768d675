"""Vibration of a rolling bearing in a machine, from its geometry: what an accelerometer on the housing would record.

A fault is struck each time something rolls over it. Each strike rings the housing: a damped oscillation at a few
kilohertz. How often it is struck follows from geometry, how hard from the load that the struck place carries. Shaft
unbalance, misalignment, stray knocks and noise lie on top. Speed, load, resonance, damage and noise vary.

Not here: what is computed from a signal (spectra.py) and what learns from it (train.py). Needs numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Signal: TypeAlias = NDArray[np.float64]

SAMPLE_RATE: Final = 12_000
SAMPLES: Final = 8_192  # 0.68 s: 10 to 20 turns of the shaft
CLASSES: Final = ("healthy", "inner race", "outer race", "ball")
CONTACT_EXPONENT: Final = 1.5  # Hertz: load of a point contact over its deflection
SLIP: Final = 0.012  # rolling elements slide a little: each interval differs by about this fraction


@dataclass(frozen=True, slots=True)
class Bearing:
    """Geometry, and the rates that follow from it, each as a multiple of the shaft's speed."""

    balls: int
    ball_mm: float
    pitch_mm: float
    contact_degrees: float = 0.0

    @property
    def _ratio(self) -> float:
        return self.ball_mm / self.pitch_mm * math.cos(math.radians(self.contact_degrees))

    @property
    def cage(self) -> float:
        """FTF: turns of the cage."""
        return (1 - self._ratio) / 2

    @property
    def outer_race(self) -> float:
        """BPFO: balls passing one place of the outer race."""
        return self.balls * (1 - self._ratio) / 2

    @property
    def inner_race(self) -> float:
        """BPFI: balls passing one place of the inner race."""
        return self.balls * (1 + self._ratio) / 2

    @property
    def ball(self) -> float:
        """Twice BSF: a damaged place of a ball strikes both races in each turn of the ball."""
        return self.pitch_mm / self.ball_mm * (1 - self._ratio**2)

    def strikes(self, fault: str) -> float:
        """Strikes per turn of the shaft for a fault of CLASSES; 0 when healthy."""
        return {
            "healthy": 0.0,
            "inner race": self.inner_race,
            "outer race": self.outer_race,
            "ball": self.ball,
        }[fault]


BEARING_6205: Final = Bearing(balls=9, ball_mm=7.94, pitch_mm=39.04)  # deep groove, 25 mm bore: in many small motors


@dataclass(frozen=True, slots=True)
class Conditions:
    """What differs from machine to machine and from minute to minute."""

    speed_hz: float
    load: float  # 0 idle .. 1 full
    severity: float  # height of a strike, in units of the noise-free shaft vibration
    noise: float  # standard deviation of broadband noise, same units
    resonance_hz: float
    damping: float


@dataclass(frozen=True, slots=True)
class Site:
    """A range of conditions: the machines of one plant."""

    speed_hz: tuple[float, float] = (15.0, 30.0)
    severity: tuple[float, float] = (0.6, 3.0)
    noise: tuple[float, float] = (0.3, 1.0)
    resonance_hz: tuple[float, float] = (2_600.0, 4_200.0)
    damping: tuple[float, float] = (0.02, 0.06)

    def draw(self, rng: np.random.Generator) -> Conditions:
        """Pick conditions at random."""
        return Conditions(
            speed_hz=rng.uniform(*self.speed_hz),
            load=rng.uniform(0.1, 1.0),
            severity=rng.uniform(*self.severity),
            noise=rng.uniform(*self.noise),
            resonance_hz=rng.uniform(*self.resonance_hz),
            damping=rng.uniform(*self.damping),
        )


FIRST_PLANT: Final = Site()
SECOND_PLANT: Final = Site(severity=(0.6, 3.0), noise=(0.6, 1.2), resonance_hz=(3_800.0, 5_000.0), damping=(0.01, 0.04))


def vibration(
    fault: str, conditions: Conditions, rng: np.random.Generator, *, bearing: Bearing = BEARING_6205
) -> Signal:
    """Return SAMPLES of acceleration at SAMPLE_RATE for a bearing with `fault`, one of CLASSES."""
    turns = _turns(conditions, rng)
    strikes = _stray_knocks(conditions, rng)
    if fault != "healthy":
        strikes += _strike_train(fault, bearing, turns, conditions, rng)
    signal = _ringing(strikes, conditions) + _shaft(turns, conditions, rng)
    return signal + conditions.noise * rng.standard_normal(SAMPLES)


def load_zone(angle: Signal, load: float) -> Signal:
    """Share of the greatest load that a place at `angle` from the load's direction carries (Stribeck).

    A heavily loaded bearing is loaded round more of its circumference.
    """
    extent = 0.25 + 0.25 * load
    deflection = 1 - (1 - np.cos(angle)) / (2 * extent)
    return np.maximum(deflection, 0.0) ** CONTACT_EXPONENT


def _turns(conditions: Conditions, rng: np.random.Generator) -> Signal:
    """Count turns of the shaft since the beginning, at each sample; the speed sways by a few thousandths."""
    time = np.arange(SAMPLES) / SAMPLE_RATE
    sway = 0.003 * np.sin(2 * np.pi * (rng.uniform(0.5, 2.0) * time + rng.uniform()))
    return np.cumsum(conditions.speed_hz * (1 + sway)) / SAMPLE_RATE


def _strike_train(
    fault: str, bearing: Bearing, turns: Signal, conditions: Conditions, rng: np.random.Generator
) -> Signal:
    """Impulses at the moments of the strikes, each as high as the load where it happens."""
    rate = bearing.strikes(fault)
    count = int(turns[-1] * rate) + 2
    intervals = (1 + SLIP * rng.standard_normal(count)) / rate
    at_turns = np.cumsum(intervals) - rng.uniform() / rate
    at_turns = at_turns[(at_turns > 0) & (at_turns < turns[-1])]
    heights = (
        conditions.severity * (0.4 + 0.6 * conditions.load) * _struck_load(fault, bearing, at_turns, conditions, rng)
    )
    samples = np.interp(at_turns, turns, np.arange(SAMPLES)).astype(int)
    train = np.zeros(SAMPLES)
    np.add.at(train, samples, heights)
    return train


def _struck_load(
    fault: str, bearing: Bearing, at_turns: Signal, conditions: Conditions, rng: np.random.Generator
) -> Signal:
    """How much load the damaged place carries at each strike.

    An inner race turns with the shaft through the load zone, a ball with the cage; an outer race stands still in it.
    """
    travel = {"inner race": 1.0, "ball": bearing.cage, "outer race": 0.0}[fault]
    start = rng.uniform(0, 2 * np.pi) if travel else rng.uniform(-0.4, 0.4)
    height = load_zone(2 * np.pi * travel * at_turns + start, conditions.load)
    return height * (1 + 0.1 * rng.standard_normal(len(at_turns)))


def _stray_knocks(conditions: Conditions, rng: np.random.Generator) -> Signal:
    """Knocks from the surroundings at random moments: strong, but without a rhythm."""
    train = np.zeros(SAMPLES)
    count = rng.poisson(4)
    np.add.at(train, rng.integers(SAMPLES, size=count), conditions.severity * rng.uniform(0.2, 1.0, size=count))
    return train


def _ringing(strikes: Signal, conditions: Conditions) -> Signal:
    """Each strike rings the housing: convolution with its damped oscillation."""
    time = np.arange(512) / SAMPLE_RATE
    omega = 2 * np.pi * conditions.resonance_hz
    ring = np.exp(-conditions.damping * omega * time) * np.sin(omega * time)
    size = 2 * SAMPLES  # room for the tail: a circular convolution would let the end ring into the beginning
    product = np.fft.rfft(strikes, size) * np.fft.rfft(ring, size)
    return np.fft.irfft(product, size)[:SAMPLES] * 4


def _shaft(turns: Signal, conditions: Conditions, rng: np.random.Generator) -> Signal:
    """Unbalance once a turn, misalignment twice, looseness three times."""
    signal = np.zeros(SAMPLES)
    for order, height in ((1, 1.0), (2, 0.2 + 0.5 * conditions.load), (3, 0.2)):
        signal += height * rng.uniform(0.5, 1.5) * np.sin(2 * np.pi * (order * turns + rng.uniform()))
    return signal

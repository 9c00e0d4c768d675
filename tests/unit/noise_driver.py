"""A stick in memory behind the driver Protocol, for tests of everything above the drivers.

Its noise is a seeded Gaussian: as far as statistics can see, a healthy device. A fault is a function from a frame of
samples to a frame of samples, or an exception that `read` raises instead.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from edgeseal.entropy.drivers.base import Calibration, Description, Found, Options, Profile, Reading, Symbols

Fault: TypeAlias = Callable[["array[int]", int], "array[int] | Exception"]

MEAN, SIGMA = 2048.0, 68.0
SAMPLES = 480
FRAME_US = 24_000
GOOD = Calibration(MEAN, SIGMA, off_variance=272.0, slope=4.3, quadratic=1e-5, excess=0.01, qcnr_db=12.1)
PROFILE = Profile("edgeseal-qrng", "quantum", "model+calibration")
SYMBOLS = Symbols(12, 4.0, raw=True)


@dataclass
class NoiseDriver:
    """One stick, open. `faults` holds what to do to the frames from a certain number on."""

    seed: int = 1
    serial: str = "E66138528361BC32"
    profile: Profile = PROFILE
    symbols: Symbols = SYMBOLS
    calibration: Calibration | None = GOOD
    faults: list[tuple[int, Fault]] = field(default_factory=list)
    number: int = 0  # of the next frame
    closed: int = 0
    reads: int = 0
    sweeps: int = 0
    flags: int = 1
    us: int = 1_000_000
    first: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def describe(self) -> Description:
        return Description("edgeseal-qrng", "usb:1-1", 0x1209, 1, "edgeseal", "edgeseal QRNG", self.serial, "1.0.0")

    def noise(self) -> array[int]:
        gauss = self._random.gauss
        return array("H", [int(gauss(MEAN + 0.5, SIGMA)) for _ in range(SAMPLES)])

    def read(self, *, timeout: float) -> Reading:
        assert timeout > 0
        self.reads += 1
        number, self.number = self.number, self.number + 1
        samples: array[int] | Exception = self.noise()
        for since, fault in self.faults:
            if number >= since and not isinstance(samples, Exception):
                samples = fault(samples, number)
        if isinstance(samples, Exception):
            raise samples
        self.us += FRAME_US
        first, self.first = self.first, self.first + SAMPLES
        return Reading(samples, first, self.us, self.flags)

    def calibrate(self, *, timeout: float) -> Calibration | None:
        assert timeout > 0
        self.sweeps += 1
        return self.calibration

    def close(self) -> None:
        self.closed += 1

    def found(self) -> Found:
        """What a scan would show of it; opening gives this very driver."""
        return Found(self.describe(), self.profile, self.opened)

    def opened(self, _options: Options) -> NoiseDriver:
        return self


def from_frame(number: int, fault: Fault) -> list[tuple[int, Fault]]:
    """Shorthand for one fault."""
    return [(number, fault)]

"""One open device: its counters, its tests and its conditioner. Nothing of it outlives the opening.

A device that is opened again, after a loss, an alarm or a fork, starts from nothing: other nonce, other numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.entropy import battery
from edgeseal.entropy.conditioner import Conditioner
from edgeseal.entropy.pace import Pace
from edgeseal.stick import frame

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Calibration, Profile, Reading, Symbols
    from edgeseal.entropy.records import Baseline

DISCARDED: Final = 16  # first samples of a stream: an ADC's first results are stale
BROKEN_SHARE: Final = 0.01  # of the frames that may be damaged before it is an alarm
_BROKEN_LEAST: Final = 3


class Opened:
    """What the monitor knows about the device that is open now."""

    def __init__(self, name: str, profile: Profile, symbols: Symbols, *, calibrates: bool) -> None:
        """`calibrates`: the device can measure its own quantum-to-classical noise ratio.

        Raises ConditionerError, or ValueError for a device that claims no entropy.
        """
        self.profile, self.symbols, self.calibrates = profile, symbols, calibrates
        self.conditioner = Conditioner(name, symbols.claim)
        self.starting = battery.StartUp(symbols, None)
        self.pace = Pace()
        self.calibrated = False
        self.gaps = 0
        self.hung = 0
        self._running = battery.Continuous(symbols, None)
        self._model: battery.Modelled | None = None
        self._framer = battery.Framer()
        self._next: int | None = None
        self._device_us: int | None = None
        self._skip = DISCARDED
        self._frames = self._broken = 0

    @property
    def evidence(self) -> str:
        """What the profile declares, worth no more than what was seen: no calibration, no model."""
        unproven = self.profile.evidence == "model+calibration" and not self.calibrated
        return "none" if unproven else self.profile.evidence

    def take(self, reading: Reading, now: float) -> tuple[str | None, battery.Samples | None]:
        """Take a reading's numbers; return what shows a replay, or the samples that are to be judged now."""
        self._frames += 1
        count = len(reading.samples)
        if fault := self._sequence(reading, count):
            return fault, None
        self.pace.feed(reading.first, count, reading.device_us, now)
        skipped, self._skip = min(self._skip, count), max(0, self._skip - count)
        return None, self._framer.feed(reading.samples[skipped:])

    def start_up(self, baseline: Baseline | None) -> None:
        """Begin the start-up test; a device known from before is held against its baseline at once."""
        model = None if self.symbols.raw else battery.uniform_model()
        if baseline is not None and self.calibrates:
            model = battery.gaussian_model(baseline.mean, baseline.sigma, self.symbols.bits)
        self.starting = battery.StartUp(self.symbols, model)
        self.conditioner.drop()

    def calibrate(self, found: Calibration, *, drifted: bool) -> None:
        """Hold the samples to come against this calibration; count half the claim of a device that has drifted."""
        self.calibrated = True
        self._model = battery.gaussian_model(found.mean, found.sigma, self.symbols.bits)
        self.conditioner.lower(0.5 if drifted else 1.0)

    def run(self) -> None:
        """Begin the continuous tests, after start-up and calibration."""
        model = self._model
        if not self.symbols.raw:
            model = battery.uniform_model()
        elif model is None and self.symbols.bits > 1:
            model = battery.Spread(self.starting.sigma)
        self._running = battery.Continuous(self.symbols, model)

    def judge(self, samples: battery.Samples, *, running: bool) -> list[battery.Alarm]:
        """Run the tests of the moment."""
        return self._running.feed(samples) if running else self.starting.feed(samples)

    def broken_frames(self, count: int) -> bool:
        """Count damaged frames; return whether there are too many of them."""
        self._broken += count
        self._gap()
        too_many = self._broken >= max(_BROKEN_LEAST, BROKEN_SHARE * self._frames)
        if too_many:
            self._broken = 0
        return too_many

    def _sequence(self, reading: Reading, count: int) -> str | None:
        """Numbers and clock of the device must advance. A jump ahead is a gap, a step back is a replay."""
        before, self._device_us = self._device_us, reading.device_us
        if before is not None and reading.device_us is not None and reading.device_us <= before:
            return "the device's clock did not advance: samples are being replayed"
        if reading.first is None:
            if reading.flags & frame.OVERRUN:
                self._gap()
            return None
        expected, self._next = self._next, reading.first + count
        if expected is not None and reading.first < expected:
            return "sample numbers go back: samples are being replayed"
        if expected is not None and reading.first > expected:
            self._gap()
        return None

    def _gap(self) -> None:
        """Begin runs and windows anew: samples are missing, which no one is blamed for."""
        self.gaps += 1
        self.starting.restart_windows()
        self._running.restart_windows()

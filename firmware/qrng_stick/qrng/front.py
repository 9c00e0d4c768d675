"""The real front end: photodiode, amplifier and LED behind the interface that core wants."""

import time

import machine
from machine import ADC, Pin

from edgeseal.stick import frame

from . import board, interface
from .light import Indicator, Source
from .sampler import Sampler

_READS = 256  # of the monitor: averages over its own noise


class Front(interface.Front):
    """Sampler, LED, monitor, strap and clock of this board."""

    simulated = False

    def __init__(self, chip: board.Chip, rate: int, levels: tuple[int, int, int, int]) -> None:
        """Set up pins; sampling begins with the first `restart`."""
        Pin(board.SMPS_MODE, Pin.OUT, value=1)
        self._strap = Pin(board.STRAP, Pin.IN, Pin.PULL_UP)
        self._source, self._indicator = Source(levels), Indicator()
        self._sampler = Sampler(chip, rate)
        self._monitor = ADC(Pin(board.ADC_MONITOR))
        self._die = ADC(ADC.CORE_TEMP)
        self._block = bytearray(2 * frame.SAMPLES)
        self._ticks = time.ticks_us()
        self._now = 0

    def take(self) -> tuple[bytearray, int, int] | None:
        """Return the next block if it is complete; keeps the status LED's pattern going."""
        now = self.now_us()
        self._indicator.tick(now)
        self.overruns += self._sampler.poll(now)
        taken = self._sampler.take(self._block, now)
        return None if taken is None else (self._block, taken[0], taken[1])

    def restart(self) -> None:
        """Begin a new run."""
        self._sampler.start(self.now_us())

    def led(self, level: int) -> None:
        """Set the light source."""
        self._source.set(level)

    def alarm(self, on: bool) -> None:
        """Show or end the alarm pattern."""
        self._indicator.alarmed = on

    def monitor(self) -> int:
        """Return the mean of 256 readings in 1/16 code (read_u16 is the 12-bit code, left-justified)."""
        self._sampler.stop()
        total = 0
        for _ in range(_READS):
            total += self._monitor.read_u16() >> 4
        return total * 16 // _READS

    def temperature(self) -> int:
        """Return 27 C - (V - 0.706 V) / 1.721 mV (RP2040 data sheet §4.9.5, RP2350 §12.4.6) in 1/100 degree C."""
        self._sampler.stop()
        microvolts = (self._die.read_u16() >> 4) * board.REFERENCE_MV * 1000 // 4096
        return 2700 - (microvolts - 706000) * 100 // 1721

    def now_us(self) -> int:
        """Return microseconds since power-up: ticks_us wraps after 18 minutes, this does not."""
        ticks = time.ticks_us()
        self._now += time.ticks_diff(ticks, self._ticks)
        self._ticks = ticks
        return self._now

    def strapped(self) -> bool:
        """Whether the strap is closed."""
        return self._strap.value() == 0

    def bootloader(self) -> None:
        """Reset into the boot ROM."""
        machine.bootloader()

"""Infinite Noise TRNG: amplified thermal noise, folded; a classical source that is always raw, one bit per step.

Protocol (waywardgeek/infnoise software/libinfnoise.c and libinfnoise_private.h): an FT240X in synchronous bit-bang.
The host writes the clocks of two switched capacitors (SWEN1 = bit 2, SWEN2 = bit 0, in turn) and gets one byte of
pins back for each, from which comparator 1 (bit 1) and comparator 2 (bit 4) are taken in turn.

Claim: the multiplier's gain K = 1.82 or more makes any sequence of n bits at most K^-n likely: log2(1.82) = 0.86 bit
per bit, of which 0.8 is claimed. What took longer than 5 ms is thrown away, as the maker does: the capacitors leak
towards a rail.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Hung, Options, Profile, Reading, Symbols
from edgeseal.entropy.drivers.ftdi import IN, OUT, SYNC_BITBANG, Ftdi
from edgeseal.entropy.drivers.pins import Pin, packet_size
from edgeseal.entropy.drivers.usbdriver import UsbDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.usb import Attached

PROFILE: Final = Profile("infinite-noise", "classical", "vendor")
SYMBOLS: Final = Symbols(bits=1, claim=0.8, raw=True)
PIN: Final = Pin(
    frozenset({(0x0403, 0x6015)}),
    manufacturer=r"13-37\.org",
    product="Infinite Noise TRNG",
    endpoints=frozenset({IN, OUT}),
    only=True,
)
COMP1, COMP2, SWEN1, SWEN2 = 1, 4, 2, 0  # pin numbers
MASK: Final = 0xFF & ~(1 << COMP1) & ~(1 << COMP2)  # outputs
BAUD: Final = 30_000
STEPS: Final = 512
CLOCKS: Final = bytes((1 << SWEN1, 1 << SWEN2)) * (STEPS // 2)
SLOWEST: Final = 0.005  # seconds for one batch of steps


class InfiniteNoise(UsbDriver):
    """An open Infinite Noise TRNG."""

    symbols = SYMBOLS

    def __init__(self, found: Attached, _options: Options) -> None:
        """Claim it from ftdi_sio, and start bit-bang. Raises DriverError."""
        super().__init__(found, PIN, PROFILE, detach=True)
        try:
            self._ftdi = Ftdi(self._port, packet_size(found, IN))
            self._ftdi.baud(BAUD)
            self._ftdi.bitmode(MASK, SYNC_BITBANG)
        except BaseException:
            self.close()
            raise

    def read(self, *, timeout: float) -> Reading:
        """Return 512 bits, one per byte. Raises DriverError; Hung also if no batch was fast enough."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            begun = time.monotonic()
            self._ftdi.purge(timeout=left)
            self._ftdi.write(CLOCKS, timeout=left)
            pins = self._ftdi.read_exact(STEPS, timeout=left)
            if time.monotonic() - begun <= SLOWEST:
                return Reading(extract(pins))
        raise Hung(f"{self._found.path}: no batch of {STEPS} bits within {1000 * SLOWEST:.0f} ms")


def extract(pins: bytes) -> bytes:
    """Return one bit (0 or 1) per byte of pins: comparator 1 of even steps, comparator 2 of odd ones."""
    bits = bytearray(len(pins))
    bits[0::2] = bytes(p >> COMP1 & 1 for p in pins[0::2])
    bits[1::2] = bytes(p >> COMP2 & 1 for p in pins[1::2])
    return bytes(bits)

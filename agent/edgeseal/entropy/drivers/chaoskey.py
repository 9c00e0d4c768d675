"""Altus Metrum ChaosKey: reverse-biased junction in avalanche, a classical source whose raw samples can be read.

Protocol (keith-packard/chaosread README.md and chaosread.c; Linux drivers/usb/misc/chaoskey.c): bulk IN 0x85
conditioned bytes, 0x86 raw 12-bit samples in u16 little-endian, 0x87 the firmware's image. The kernel's driver
`chaoskey` normally holds the device and feeds /dev/hwrng with the conditioned endpoint; it is left alone.

Claim: 4 of 12 bits. chaosread's own byte mode keeps 8 of the 12; half of that is claimed until a device was assessed.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.pins import Pin
from edgeseal.entropy.drivers.usbdriver import UsbDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.usb import Attached

PROFILE: Final = Profile("chaoskey", "classical", "vendor")
RAW: Final = Symbols(bits=12, claim=4.0, raw=True)
COOKED: Final = Symbols(bits=8, claim=4.0, raw=False)
RAW_ENDPOINT, COOKED_ENDPOINT = 0x86, 0x85
PIN: Final = Pin(
    frozenset({(0x1D50, 0x60C6)}),
    product=r"ChaosKey.*",  # followed by hardware and firmware version
    endpoints=frozenset({RAW_ENDPOINT, COOKED_ENDPOINT}),
    dedicated=True,
)
SAMPLES: Final = 512  # per frame
_TOP: Final = 1 << 12


class ChaosKey(UsbDriver):
    """An open ChaosKey, raw unless asked otherwise."""

    def __init__(self, found: Attached, options: Options) -> None:
        """Claim it. Raises DriverError; Busy while the kernel's driver holds it."""
        super().__init__(found, PIN, PROFILE)
        self.symbols = COOKED if options.conditioned else RAW
        self._raw = not options.conditioned

    def read(self, *, timeout: float) -> Reading:
        """Return 512 samples: u16 of 12 bits, or conditioned bytes. Raises DriverError."""
        if not self._raw:
            return Reading(self._port.read_exact(COOKED_ENDPOINT, SAMPLES, timeout=timeout))
        return Reading(decode_raw(self._port.read_exact(RAW_ENDPOINT, 2 * SAMPLES, timeout=timeout)))


def decode_raw(data: bytes) -> array[int]:
    """Return the 12-bit samples of raw endpoint data. Raises Refused if a sample has more than 12 bits."""
    samples = array("H", data)
    if sys.byteorder == "big":
        samples.byteswap()
    if max(samples, default=0) >= _TOP:
        raise Refused("chaoskey: a raw sample of more than 12 bits: this is not the raw endpoint's format")
    return samples

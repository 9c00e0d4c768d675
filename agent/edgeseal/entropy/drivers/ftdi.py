"""The little of FTDI's protocol that noise devices behind an FTDI chip need (libftdi ftdi.h, ftdi.c; FT240X datasheet).

Vendor requests to the device (0x40): reset and purge 0, baud 3, latency timer 9, bit mode 11. Bulk OUT 0x02, bulk IN
0x81; every IN packet starts with two status bytes, also when there is nothing else in it, so silence must be judged by
what is left after they are taken off.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Hung, Stalled
from edgeseal.entropy.drivers.usb import CONTROL_TIMEOUT

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.usb import Port

OUT, IN = 0x02, 0x81
VENDOR_OUT: Final = 0x40
RESET, SET_BAUD, SET_LATENCY, SET_BITMODE = 0x00, 0x03, 0x09, 0x0B
RESET_SIO, PURGE_RX, PURGE_TX = 0, 1, 2
SYNC_BITBANG: Final = 0x04
BASE_CLOCK: Final = 3_000_000  # Hz; whole divisors only, which is all the devices here use
LATENCY_MS: Final = 2
STATUS_LENGTH: Final = 2
OVERRUN: Final = 0x02  # second status byte: the chip dropped input
_TRANSFER: Final = 4096


class Ftdi:
    """The chip behind one claimed port."""

    def __init__(self, port: Port, packet: int) -> None:
        """Reset the chip and empty both of its buffers. `packet` is wMaxPacketSize. Raises DriverError."""
        self._port = port
        self._packet = packet
        self._read = bytearray()
        for value in (RESET_SIO, PURGE_RX, PURGE_TX):
            self._set(RESET, value)
        self._set(SET_LATENCY, LATENCY_MS)

    def baud(self, rate: int) -> None:
        """Set the rate; only whole divisors of 3 MHz. Raises DriverError."""
        divisor, rest = divmod(BASE_CLOCK, rate)
        if rest:
            raise ValueError(f"{rate} does not divide {BASE_CLOCK}")
        self._set(SET_BAUD, divisor)

    def bitmode(self, mask: int, mode: int) -> None:
        """Choose which pins are outputs, and the mode. Raises DriverError."""
        self._set(SET_BITMODE, mode << 8 | mask)

    def purge(self, *, timeout: float) -> None:
        """Empty both buffers, and what was read here beyond the last frame. Raises DriverError."""
        self._read.clear()
        self._set(RESET, PURGE_RX, timeout)
        self._set(RESET, PURGE_TX, timeout)

    def write(self, data: bytes, *, timeout: float) -> None:
        """Send bytes. Raises DriverError."""
        self._port.write(OUT, data, timeout=timeout)

    def read_exact(self, length: int, *, timeout: float) -> bytes:
        """Return exactly `length` bytes without the status bytes. Raises DriverError."""
        deadline = time.monotonic() + timeout
        while len(self._read) < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Hung(f"{self._port.path}: gave {len(self._read)} of {length} bytes in {timeout:.2f} s")
            self._read += strip(self._port.read(IN, _TRANSFER, timeout=left), self._packet, self._port.path)
        data = bytes(self._read[:length])
        del self._read[:length]
        return data

    def _set(self, request: int, value: int, timeout: float = CONTROL_TIMEOUT) -> None:
        self._port.control_out(VENDOR_OUT, request, value=value, timeout=timeout)


def strip(transfer: bytes | bytearray, packet: int, path: str = "ftdi") -> bytes:
    """Return a transfer without the two status bytes of each packet. Raises Stalled if the chip dropped input."""
    data = bytearray()
    for at in range(0, len(transfer), packet):
        if len(transfer) < at + STATUS_LENGTH or transfer[at + 1] & OVERRUN:
            raise Stalled(f"{path}: the FTDI chip lost bytes: what follows has no known place")
        data += transfer[at + STATUS_LENGTH : at + packet]
    return bytes(data)

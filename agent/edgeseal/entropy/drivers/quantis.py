"""ID Quantique Quantis USB: photon detection, conditioned output only, so class quantum with the vendor's evidence.

Protocol: bulk IN 0x86, one packet per transfer; vendor requests to the interface (0xC1/0x41, wValue = wIndex = 0).
Public source: QuantisUsb_Commands.h and QuantisUsb_Unix.c of the vendor's library, version 20.2.4, as stored in
qursa-uc3m/quantis-qrng-tls-pq-bench. Not taken over from there: its read returns success for a short packet.

The output has passed the device's own processing, and measured devices were biased in spite of certificates
(Hurley-Smith and Hernandez-Castro, ePrint 2017/842; Petrov et al., EPJ Quantum Technology 9:17): half of it is claimed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Hung, Options, Profile, Reading, Refused, Stalled, Symbols
from edgeseal.entropy.drivers.pins import Pin, packet_size
from edgeseal.entropy.drivers.usb import CONTROL_TIMEOUT
from edgeseal.entropy.drivers.usbdriver import UsbDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Description
    from edgeseal.entropy.drivers.usb import Attached

PROFILE: Final = Profile("quantis-usb", "quantum", "vendor")
SYMBOLS: Final = Symbols(bits=8, claim=4.0, raw=False)
ENDPOINT: Final = 0x86
PIN: Final = Pin(frozenset({(0x0ABA, 0x0102)}), endpoints=frozenset({ENDPOINT}), dedicated=True)
FRAME: Final = 512  # bytes: one packet at high speed, eight at full speed

_IN, _OUT = 0xC1, 0x41
BOARD_VERSION, DISABLE, ENABLE, STATUS, RATE, STARTUP_FLAG, CLEAR_STARTUP_FLAG = (
    0x10,
    0x11,
    0x12,
    0x13,
    0x16,
    0x17,
    0x18,
)
_MAX_VERSION: Final = 0xFFFF


class Quantis(UsbDriver):
    """An open Quantis USB."""

    symbols = SYMBOLS

    def __init__(self, found: Attached, _options: Options) -> None:
        """Claim it, switch its module on, and take over its request for a start-up test. Raises DriverError.

        AIS 31 leaves that test to the host: whoever opens a driver runs one before using a sample.
        """
        super().__init__(found, PIN, PROFILE)
        try:
            self._packet = packet_size(found, ENDPOINT)
            self._version = self._number(BOARD_VERSION)
            self._rate = self._number(RATE) * 1000
            if not self._status():
                self._port.control_out(_OUT, DISABLE)
                self._port.control_out(_OUT, ENABLE)
            self._port.control_out(_OUT, CLEAR_STARTUP_FLAG)
        except BaseException:
            self.close()
            raise

    def describe(self) -> Description:
        """Return strings, board version and the rate the board reports."""
        return self._describe(firmware=f"board {self._version}", rate_bits_s=self._rate or None)

    def read(self, *, timeout: float) -> Reading:
        """Return 512 bytes. Raises Refused if the module is unwell, Stalled if it asks for another start-up test."""
        deadline = time.monotonic() + timeout
        if self._port.control_in(_IN, STARTUP_FLAG, 1, timeout=timeout)[0]:
            raise Stalled(f"{self._found.path}: asks for its start-up test again", hint="it is opened and tested anew")
        data = bytearray()
        while len(data) < FRAME:
            if not self._status(deadline - time.monotonic()):
                raise Refused(f"{self._found.path}: module status 0: the device calls itself faulty")
            packet = self._port.read(ENDPOINT, self._packet, timeout=deadline - time.monotonic())
            if len(packet) != self._packet:
                raise Hung(f"{self._found.path}: gave {len(packet)} bytes where a packet has {self._packet}")
            data += packet
        return Reading(bytes(data[:FRAME]))

    def _status(self, timeout: float = CONTROL_TIMEOUT) -> int:
        return self._port.control_in(_IN, STATUS, 1, timeout=timeout)[0]

    def _number(self, request: int) -> int:
        return int.from_bytes(self._port.control_in(_IN, request, 4), "little")

"""ComScire / Core Invention generators with serial numbers that begin with QWR; conditioned output only.

Protocol (vfp2/MeterFeeder src/constants.h, driver.cpp, generator.cpp): an FTDI chip, 0x96 starts the stream, 0xE0
stops it. The same protocol serves pseudorandom and bias-amplifying experimental units (MED_DEVICES.md there); the
letter after the QWR4 tells them apart, and they are refused.

Class: the maker calls the noise quantum for some models and thermal for others, so it is declared unknown here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import DriverError, Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.ftdi import IN, OUT, Ftdi
from edgeseal.entropy.drivers.pins import Pin, packet_size
from edgeseal.entropy.drivers.usbdriver import UsbDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.usb import Attached

PROFILE: Final = Profile("comscire", "unknown", "vendor")
SYMBOLS: Final = Symbols(bits=8, claim=4.0, raw=False)
PIN: Final = Pin(
    frozenset({(0x0403, 0x6001), (0x0403, 0x6014)}),
    serial=r"QWR[0-9A-Z]+",
    endpoints=frozenset({IN, OUT}),
    only=True,
)
START, STOP = b"\x96", b"\xe0"
FRAME: Final = 512
UNFIT: Final = {
    "P": "pseudorandom",
    **dict.fromkeys("ABCDE", "bias amplifying"),
    "X": "experimental",
}


class ComScire(UsbDriver):
    """An open QWR generator."""

    symbols = SYMBOLS

    def __init__(self, found: Attached, _options: Options) -> None:
        """Claim it from ftdi_sio and start its stream. Raises DriverError, Refused for models made for experiments."""
        super().__init__(found, PIN, PROFILE, detach=True)
        try:
            _check_model(found.path, self._texts[2] or "")
            self._ftdi = Ftdi(self._port, packet_size(found, IN))
            self._ftdi.write(START, timeout=0.5)
        except BaseException:
            super().close()
            raise

    def read(self, *, timeout: float) -> Reading:
        """Return 512 bytes. Raises DriverError."""
        return Reading(self._ftdi.read_exact(FRAME, timeout=timeout))

    def close(self) -> None:
        """Stop the stream if that is still possible, and give the device back. Idempotent; never raises."""
        with suppress(DriverError):  # Gone if it is lost or was closed before
            self._ftdi.write(STOP, timeout=0.1)
        super().close()


def unfit(serial: str) -> str | None:
    """Return why a model must not feed keys, by the letter after QWR4 (MED_DEVICES.md); None if it may."""
    return UNFIT.get(serial[4:5]) if serial.startswith("QWR4") else None


def _check_model(path: str, serial: str) -> None:
    if what := unfit(serial):
        raise Refused(
            f"{path}: {serial} is a {what} model",
            hint="attach a PQ model; these are made for experiments, not for keys",
        )

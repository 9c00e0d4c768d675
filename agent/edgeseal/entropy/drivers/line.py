"""What every serial driver shares: an exclusive port, exact reads with a deadline, and pyserial errors translated.

Never opened here: a port nobody identified. A serial device cannot refuse to be written to, so only ports that carry a
known vendor and product number, or that the operator named, are ever touched (detect.py).
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import serial

from edgeseal.entropy.drivers.base import Busy, Description, DriverError, Gone, Hung
from edgeseal.entropy.drivers.handover import Handover

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Profile

CHUNK: Final = 4096
WRITE_TIMEOUT: Final = 0.2  # seconds; a device that takes no command for so long hangs


class Line:
    """One open serial port. One thread transfers; `close` may come from another and never waits for it."""

    def __init__(self, path: str, baud: int) -> None:
        """Open `path`, raw 8N1 at `baud`, with DTR and RTS set, locked against other programs. Raises DriverError."""
        self.path = path
        try:
            # inter_byte_timeout would end a read early: lengths are checked here instead
            self._port = serial.Serial(path, baud, timeout=0, write_timeout=WRITE_TIMEOUT, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as e:
            raise _open_error(path, e) from e
        self._handover = Handover(path, self._dispose)

    def read(self, length: int, *, timeout: float) -> bytes:
        """Return up to `length` bytes, whatever came within `timeout` seconds. Raises DriverError."""
        with self._handover:
            try:
                self._port.timeout = max(0.0, timeout)
                return bytes(self._port.read(length))
            except (serial.SerialException, OSError, TypeError) as e:
                raise Gone(f"{self.path}: reading: {e}", hint="the device was unplugged or its cable is bad") from e

    def read_exact(self, length: int, *, timeout: float) -> bytes:
        """Return exactly `length` bytes within `timeout` seconds; what is there of less is dropped."""
        data = self.read(length, timeout=timeout)
        if len(data) != length:
            raise Hung(f"{self.path}: gave {len(data)} of {length} bytes in {timeout:.2f} s")
        return data

    def write(self, data: bytes) -> None:
        """Send a command. Raises DriverError."""
        with self._handover:
            try:
                self._port.write(data)
            except serial.SerialTimeoutException as e:
                raise Hung(f"{self.path}: takes no commands") from e
            except (serial.SerialException, OSError, TypeError) as e:
                raise Gone(f"{self.path}: writing: {e}") from e

    def drain(self, *, quiet: float, at_most: float = 2.0) -> bool:
        """Throw bytes away until none came for `quiet` seconds; whether that was reached within `at_most` seconds."""
        deadline = time.monotonic() + at_most
        while time.monotonic() < deadline:
            if not self.read(1, timeout=quiet):
                return True
            self.read(CHUNK, timeout=0)
        return False

    def close(self) -> None:
        """Close the port: now, or when the running read returns. Never raises."""
        self._handover.close()

    def _dispose(self) -> None:
        with suppress(serial.SerialException, OSError):
            self._port.close()


class SerialDriver:
    """The part serial drivers have in common."""

    def __init__(self, line: Line, profile: Profile, description: Description) -> None:
        """Keep what was opened; families identify the device and start it."""
        self._line = line
        self._profile = profile
        self._description = description

    @property
    def profile(self) -> Profile:
        """Name, class and evidence as declared."""
        return self._profile

    def describe(self) -> Description:
        """Return what the device said at opening."""
        return self._description

    def close(self) -> None:
        """Give the device back. Idempotent; never raises."""
        self._line.close()


def _open_error(path: str, e: Exception) -> DriverError:
    number = getattr(e, "errno", None)
    text = f"{path}: cannot be opened: {e}"
    if number in (errno.EACCES, errno.EPERM):
        return Busy(text, hint="no permission for the port: install edgeseal's udev rules and plug the device in again")
    if number == errno.EBUSY or "exclusively lock" in str(e):
        return Busy(text, hint="another program holds the port; ModemManager does that without edgeseal's udev rules")
    return Gone(text)

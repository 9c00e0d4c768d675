"""/dev/hwrng: whatever generator the kernel knows, by way of its hwrng core (Documentation/admin-guide/hw_random.rst).

It may be the SoC's, a TPM, a ChaosKey held by the kernel, or a hypervisor's; nothing shows which physics is behind it,
so class unknown and evidence none. Half of each byte is claimed.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgeseal.entropy.drivers.base import (
    Busy,
    Description,
    DriverError,
    Gone,
    Hung,
    Options,
    Profile,
    Reading,
    Symbols,
)
from edgeseal.entropy.drivers.handover import Handover

DEVICE: Final = Path("/dev/hwrng")
CURRENT: Final = Path("/sys/class/misc/hw_random/rng_current")
PROFILE: Final = Profile("hwrng", "unknown", "none")
SYMBOLS: Final = Symbols(bits=8, claim=4.0, raw=False)
FRAME: Final = 256
_PAUSE: Final = 0.005  # between looks; the device cannot be polled (drivers/char/hw_random/core.c has no .poll)


class HwRng:
    """The open character device."""

    profile = PROFILE
    symbols = SYMBOLS

    def __init__(self, description: Description, _options: Options) -> None:
        """Open it without blocking. Raises DriverError."""
        self._description = description
        path = description.path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise _error(path, e) from e
        self._handover = Handover(path, self._dispose)

    def describe(self) -> Description:
        """Return the path and the kernel's name of the generator."""
        return self._description

    def read(self, *, timeout: float) -> Reading:
        """Return 256 bytes. Raises DriverError."""
        deadline = time.monotonic() + timeout
        data = bytearray()
        with self._handover:
            while len(data) < FRAME:
                data += self._some(FRAME - len(data))
                if len(data) < FRAME:
                    if time.monotonic() >= deadline:
                        raise Hung(f"{self._description.path}: gave {len(data)} of {FRAME} bytes in {timeout:.2f} s")
                    time.sleep(_PAUSE)
        return Reading(bytes(data))

    def close(self) -> None:
        """Close it. Idempotent; never raises."""
        self._handover.close()

    def _some(self, length: int) -> bytes:
        try:
            return os.read(self._fd, length)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise _error(self._description.path, e) from e

    def _dispose(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


def describe(device: Path = DEVICE, current: Path = CURRENT) -> Description | None:
    """Return what the kernel says is behind the device; None if there is no generator."""
    try:
        name = current.read_text("ascii", "replace").strip()
    except OSError:
        name = ""
    if not device.is_char_device() or name in ("", "none"):
        return None
    return Description(PROFILE.name, str(device), product=name[:64])


def _error(path: str, e: OSError) -> DriverError:
    text = f"{path}: {errno.errorcode.get(e.errno or 0, 'error')} {e.strerror}"
    if e.errno in (errno.EACCES, errno.EPERM):
        return Busy(text, hint="no permission: install edgeseal's udev rules, or run as the service's user")
    return Gone(text, hint="the kernel has no hardware generator any more")

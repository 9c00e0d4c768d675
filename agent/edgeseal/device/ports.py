"""The lines of a device: serial ports that come and go, or standard input and output. Never blocks, never gives up."""

from __future__ import annotations

import contextlib
import errno
import os
import termios
from typing import TYPE_CHECKING, Final

from edgeseal.errors import UsageError

if TYPE_CHECKING:
    import serial

CHUNK: Final = 4096
STDIO: Final = "stdio"
_GONE: Final = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBADF, errno.EPIPE, errno.ECONNRESET})


class Port:
    """One line; `open` may be tried again and again. After an error that means it is gone, it is closed."""

    def __init__(self, name: str, *, baud: int) -> None:
        """Nothing is opened yet. `name` is a device's path, or `stdio`."""
        self.name = name
        self._baud = baud
        self._serial: serial.Serial | None = None
        self._pending = b""
        self.is_open = False
        self.ended = False

    def open(self) -> bool:
        """Open it if it is there; True if it is open then."""
        if self.is_open or self.ended:
            return self.is_open
        if self.name == STDIO:
            for fd in (0, 1):
                os.set_blocking(fd, False)
            self.is_open = True
        else:
            self._open_serial()
        return self.is_open

    def _open_serial(self) -> None:
        import serial

        try:
            self._serial = serial.Serial(self.name, self._baud, timeout=0, write_timeout=0, exclusive=True)
        except ValueError as e:
            raise UsageError(f"{self.name}: {e}") from e
        except (serial.SerialException, OSError):
            return  # not there, or another program has it: the next try may find it
        fd = self._serial.fileno()
        os.set_blocking(fd, False)
        settings = termios.tcgetattr(fd)
        settings[6][termios.VMIN] = 1  # pyserial's 0 makes "nothing yet" look like "the line is gone"
        termios.tcsetattr(fd, termios.TCSANOW, settings)
        self._pending = b""
        self.is_open = True

    @property
    def descriptors(self) -> tuple[int, int]:
        """To read from and to write to."""
        if self._serial is not None:
            return self._serial.fileno(), self._serial.fileno()
        return 0, 1

    @property
    def waiting(self) -> bool:
        """Whether bytes wait to be written."""
        return bool(self._pending)

    def read(self) -> bytes:
        """Return what came, empty if nothing did."""
        try:
            data = os.read(self.descriptors[0], CHUNK)
        except BlockingIOError:
            return b""
        except OSError as e:
            self._lost(e)
            return b""
        if not data:
            self.close()
            self.ended = self.name == STDIO
        return data

    def write(self, data: bytes) -> None:
        """Write what fits now and keep the rest."""
        self._pending += data
        if not self._pending:
            return
        try:
            sent = os.write(self.descriptors[1], self._pending)
        except BlockingIOError:
            return
        except OSError as e:
            self._lost(e)
            return
        self._pending = self._pending[sent:]

    def close(self) -> None:
        """Close it."""
        self.is_open = False
        self._pending = b""
        if self._serial is not None:
            with contextlib.suppress(OSError):
                self._serial.close()
            self._serial = None

    def _lost(self, e: OSError) -> None:
        if e.errno not in _GONE:
            raise e
        self.close()
        if self.name == STDIO:
            self.ended = True

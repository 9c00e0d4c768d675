"""One open serial port: never blocks, says when it is gone."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import serial

CHUNK: Final = 4096
MAX_PENDING: Final = 65_536  # bytes that wait for a port that takes none


class Cable:
    """A port that may come and go. After any error it is closed."""

    def __init__(self, path: str, baud: int) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._baud = baud
        self._serial: serial.Serial | None = None
        self._pending = b""
        self.problem = ""

    @property
    def is_open(self) -> bool:
        """Whether bytes can come."""
        return self._serial is not None

    @property
    def waiting(self) -> bool:
        """Whether bytes wait to be written."""
        return bool(self._pending)

    def fileno(self) -> int:
        """Descriptor, for select."""
        assert self._serial is not None  # noqa: S101 - callers ask `is_open`
        return int(self._serial.fileno())

    def open(self) -> bool:
        """Try to open it; `problem` says why not."""
        import serial

        try:
            port = serial.Serial(self.path, self._baud, timeout=0, write_timeout=0, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as e:
            self.problem = getattr(e, "strerror", None) or str(e)
            return False
        os.set_blocking(port.fileno(), False)
        self._serial, self._pending, self.problem = port, b"", ""
        return True

    def read(self) -> bytes:
        """Return what came; closes itself if the port is gone."""
        try:
            data = os.read(self.fileno(), CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            self.close()
            return b""
        if not data:
            self.close()
        return data

    def write(self, data: bytes) -> None:
        """Write what fits now and keep the rest."""
        self._pending = (self._pending + data)[:MAX_PENDING]
        if not self._pending:
            return
        try:
            self._pending = self._pending[os.write(self.fileno(), self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def close(self) -> None:
        """Close it."""
        if self._serial is not None:
            with contextlib.suppress(OSError):
                self._serial.close()
        self._serial, self._pending = None, b""

"""One open serial port: never blocks, says when it is gone."""

from __future__ import annotations

import contextlib
import errno
import getpass
import grp
import os
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import serial

CHUNK: Final = 4096
MAX_PENDING: Final = 65_536  # bytes that wait for a port that takes none


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a port cannot be opened, and what to do."""

    reason: str
    remedy: str


class Cable:
    """A port that may come and go. After any error it is closed."""

    def __init__(self, path: str, baud: int) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._baud = baud
        self._serial: serial.Serial | None = None
        self._pending = b""
        self.problem: Problem | None = None  # why it could not be opened the last time

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
            os.set_blocking(port.fileno(), False)
        except (OSError, ValueError, OverflowError, termios.error) as e:
            self.problem = _problem(e, self.path, self._baud)
            return False
        self._serial, self._pending, self.problem = port, b"", None
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
        self._serial, self._pending, self.problem = None, b"", None


def _problem(error: Exception, path: str, baud: int) -> Problem:
    """Say what pyserial found, for whoever stands at the line."""
    if isinstance(error, ValueError | OverflowError):
        return Problem(f"it cannot do {baud} baud", "choose another --baud")
    number = error.errno if isinstance(error, OSError) else next(iter(error.args), None)
    match number:
        case errno.EAGAIN | errno.EBUSY:
            return Problem("another program has it open", f"close that program; `fuser -v {path}` names it")
        case errno.EACCES | errno.EPERM:
            return Problem("this user may not open it", _how_to_get_in(path))
        case errno.ENOENT | errno.ENODEV | errno.ENXIO | errno.EIO:
            return Problem("it is gone", "plug it in again")
        case int():
            return Problem(os.strerror(number), "plug it in again, or use another port")
    return Problem("it is no serial port", "use another port")


def _how_to_get_in(path: str) -> str:
    """Name the group that owns the port: `dialout` on Debian, `uucp` elsewhere."""
    try:
        group, user = _group_of(path), getpass.getuser()
    except (KeyError, OSError):
        return "ask whoever looks after this computer for the group that may use serial ports"
    if group == "root":
        return f"only root may use {path}: ask whoever looks after this computer"
    return f"sudo usermod -aG {group} {user}; then log out and in again"


def _group_of(path: str) -> str:
    return grp.getgrgid(os.stat(path).st_gid).gr_name

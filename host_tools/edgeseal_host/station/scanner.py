"""What a barcode scanner types on standard input, line by line; never blocks.

A line ends with CR, LF or both: what a scanner sends depends on how it was set, and a pipe does not turn one into the
other as a terminal does. A line that is too long, or has bytes that are no text, is no serial number: nothing of it is
taken. On a terminal the lines are not echoed: they would be typed across the full-screen view.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE: Final = 256  # bytes
CHUNK: Final = 4096
_DISABLED: Final = b"\0"  # _POSIX_VDISABLE of Linux
_END: Final = re.compile(rb"\r\n|\n|\r")


class Scanner:
    """Lines of one descriptor."""

    def __init__(self, fd: int) -> None:
        """Take an open descriptor."""
        self._fd = fd
        self._pending = b""
        self._after_cr = False
        self._too_long = False
        self.is_open = True
        self.refused = 0
        self._told = 0
        self._told_end = False

    def fileno(self) -> int:
        """Descriptor, for select."""
        return self._fd

    def read(self) -> list[str]:
        """Return the lines that are complete; an empty one is the Enter key alone. `refused` counts those left out."""
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.is_open = False
            data = b"\n" if self._pending or self._too_long else b""  # the last line of a file may lack its end
        *lines, rest = _END.split(self._without_half_an_end(data))
        found = []
        for line in lines:
            text = None if self._too_long else _clean(self._pending + line)
            self._pending, self._too_long = b"", False
            if text is None:
                self.refused += 1
            else:
                found.append(text)
        self._keep(rest)
        return found

    def complaint(self) -> str:
        """Return, once, what a person should know: a line was left out, or nothing more can come."""
        refused, self._told = self.refused - self._told, self.refused
        if refused:
            return "what was scanned is no serial number: too long, or not text; scan it again"
        if not self.is_open and not self._told_end:
            self._told_end = True
            return "standard input has ended: nothing can be scanned any more"
        return ""

    def _without_half_an_end(self, data: bytes) -> bytes:
        """Drop the LF of a CR LF that came in two pieces: it would be the Enter key alone."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data

    def _keep(self, rest: bytes) -> None:
        """Keep the beginning of a line, no more of it than a line may have."""
        self._pending += rest
        if len(self._pending) > MAX_LINE:
            self._pending, self._too_long = b"", True


def _clean(line: bytes) -> str | None:
    """Return a line's text without blanks around it; None if it is none that a scanner types."""
    if len(line) > MAX_LINE:
        return None
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


@contextlib.contextmanager
def standard_input() -> Iterator[Scanner | None]:
    """Give a scanner on standard input, if there is one that can be waited for."""
    try:
        fd = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        yield None
        return
    if not os.isatty(fd):
        yield Scanner(fd)
        return
    before = termios.tcgetattr(fd)
    termios.tcsetattr(fd, termios.TCSANOW, _for_a_run(termios.tcgetattr(fd)))
    try:
        yield Scanner(fd)
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone: a closed window
            termios.tcsetattr(fd, termios.TCSANOW, before)


def _for_a_run(settings: list[Any]) -> list[Any]:
    """Change a terminal's settings (termios(3)): no echo, and no key but Ctrl-C stops anything.

    Ctrl-S would stop the output and with it every line, Ctrl-Z the process while devices talk to it, and Ctrl-Backslash
    would leave its memory, secrets included, in a core file.
    """
    settings[0] &= ~termios.IXON
    settings[3] &= ~termios.ECHO
    for key in (termios.VSUSP, termios.VQUIT):
        settings[6][key] = _DISABLED
    return settings

"""What a barcode scanner types on standard input, line by line; never blocks.

On a terminal the lines are not echoed: they would be typed across the full-screen view.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE: Final = 256


class Scanner:
    """Lines of one descriptor."""

    def __init__(self, fd: int) -> None:
        """Take an open descriptor."""
        self._fd = fd
        self._pending = b""
        self.is_open = True

    def fileno(self) -> int:
        """Descriptor, for select."""
        return self._fd

    def read(self) -> list[str]:
        """Return the lines that are complete; an empty one is the Enter key alone."""
        try:
            data = os.read(self._fd, 4096)
        except OSError:
            data = b""
        if not data:
            self.is_open = False
            return []
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._pending = self._pending[-MAX_LINE:]
        return [_clean(line) for line in lines]


def _clean(line: bytes) -> str:
    text = line[:MAX_LINE].decode("ascii", "replace")
    return "".join(c for c in text if c.isprintable()).strip()


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
    changed = termios.tcgetattr(fd)
    changed[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, changed)
    try:
        yield Scanner(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)

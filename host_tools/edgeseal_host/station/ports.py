"""Which ports there are: those named, as far as they are plugged in, or every USB one there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

AUTO: Final = "auto"


def finder(names: Sequence[str], *, without: Collection[str] = ()) -> Callable[[], list[str]]:
    """Return what looks for ports; called again and again, it sees what was plugged in since.

    `names` are paths, or `auto` for all USB serial ports but those in `without`.
    """
    paths = [name for name in names if name != AUTO]
    automatic = AUTO in names

    def find() -> list[str]:
        found = [path for path in paths if Path(path).exists()]
        if automatic:
            found += [path for path in _usb_ports() if path not in without and path not in found]
        return found

    return find


def _usb_ports() -> list[str]:
    """USB only: a board's own UARTs exist whether anything is wired to them or not."""
    from serial.tools import list_ports

    return sorted(port.device for port in list_ports.comports() if port.vid is not None)

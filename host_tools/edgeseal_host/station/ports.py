"""Which ports there are: those named, as far as they are plugged in, or every USB one there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

AUTO: Final = "auto"
_DEVICES: Final = Path("/dev")
_TTYS: Final = Path("/sys/class/tty")
_BUSES: Final = {"usb", "usb-serial"}  # CDC ACM, and adapters with a driver of their own


def finder(names: Sequence[str], *, without: Collection[str] = ()) -> Callable[[], list[str]]:
    """Return what looks for ports; called again and again, it sees what was plugged in since.

    `names` are paths, or `auto` for all USB serial ports but those in `without`.
    """
    paths = _once_each(name for name in names if name != AUTO)
    automatic = AUTO in names

    def find() -> list[str]:
        found = [path for path in paths if Path(path).exists()]
        if automatic:
            named = {os.path.realpath(path) for path in (*found, *without)}
            found += [path for path in _usb_ports() if os.path.realpath(path) not in named]
        return found

    return find


def check(names: Sequence[str], *, once: bool) -> list[str]:
    """Look at the ports that were named; return what to tell about those that are not there yet.

    Raises UsageError for what can never be a serial port, and for one that is missing where nobody will wait for it.
    """
    missing = []
    for name in (name for name in names if name != AUTO):
        path = Path(name)
        if path.exists():
            if not path.is_char_device():
                raise UsageError(f"{name} is no serial port", hint=_ports_now())
        elif once or not name.startswith("/dev/"):
            raise UsageError(f"there is no port {name}", hint=_ports_now())
        else:
            missing.append(f"{name} is not there yet: the run waits for it; {_ports_now()}")
    return missing


def _ports_now() -> str:
    return f"serial ports on USB now: {', '.join(_usb_ports()) or 'none'}"


def _once_each(names: Iterable[str]) -> list[str]:
    """Two names of one port are one port: /dev/serial/by-id leads to /dev/ttyUSB0."""
    return list({os.path.realpath(name): name for name in names}.values())


def _usb_ports() -> list[str]:
    """USB only: a board's own UARTs exist whether anything is wired to them or not.

    Not by pyserial's `comports`: it reads more of a port than its name, and raises TypeError when one is pulled out
    while it reads (3.5).
    """
    found = []
    for entry in _TTYS.glob("tty*"):
        bus = os.path.basename(os.path.realpath(entry / "device" / "subsystem"))
        if bus in _BUSES and (_DEVICES / entry.name).exists():
            found.append(str(_DEVICES / entry.name))
    return sorted(found, key=lambda path: (len(path), path))  # ttyUSB10 after ttyUSB9

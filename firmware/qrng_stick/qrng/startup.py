"""Power-up: who this stick is, and the main loop. boot.py calls `power_up`, main.py calls `run`."""

import os

import machine

from . import board
from .core import NOMINAL, RATE, Identity, Stick
from .front import Front
from .link import Link

_WATCHDOG_MS = 8000
_K_STICK, _LEVELS, _BUILD = "k_stick", "levels", "build"  # files: 32 bytes; four numbers; 16 bytes

_started: list[tuple[Stick, Link]] = []


def power_up() -> None:
    """Put the stick together and on the bus: before the USB stack starts, so that the host enumerates once."""
    chip = board.chip()
    levels = _levels()
    identity = Identity(
        unique_id=machine.unique_id(),
        board=chip.board,
        boot_id=int.from_bytes(os.urandom(4), "little"),  # must differ after a reset, need not be unpredictable
        levels=levels,
        firmware_hash=_file(_BUILD, 16) or bytes(16),
    )
    front = Front(chip, RATE, levels)
    stick = Stick(identity, front, _file(_K_STICK, 32))
    front.led(NOMINAL)
    front.restart()
    link = Link(stick, machine.unique_id().hex())
    link.activate()
    _started.append((stick, link))


def run() -> None:
    """Move frames for ever. An exception ends here: the watchdog then resets the stick."""
    stick, link = _started[0]
    watchdog = machine.WDT(timeout=_WATCHDOG_MS)
    while True:
        watchdog.feed()
        if link.idle:
            frame = stick.step()
            if frame is not None:
                link.send(frame)


def started() -> bool:
    """Whether power_up has run: not when the strap was closed."""
    return bool(_started)


def _file(name: str, length: int) -> bytes | None:
    """Return a file of exactly `length` bytes, None if there is none or it has another length."""
    try:
        with open(name, "rb") as f:
            data = f.read(length + 1)
    except OSError:
        return None
    return data if len(data) == length else None


def _levels() -> tuple[int, int, int, int]:
    """Return the PWM duties measured at acceptance, or the built-in ones."""
    try:
        with open(_LEVELS) as f:
            numbers = [int(word) for word in f.read(64).split()]
    except (OSError, ValueError):
        return board.LEVELS
    rising = all(a < b for a, b in zip([0] + numbers, numbers))  # noqa: RUF005  MicroPython has no [0, *numbers]
    if len(numbers) != 4 or not rising or numbers[3] > 65535:  # noqa: PLR2004  four duties of 16 bits
        return board.LEVELS
    return numbers[0], numbers[1], numbers[2], numbers[3]

"""Devices that are none, on pseudo-terminals: for a dry run without any hardware, and for training.

Each plays the device's own role of the dialogue (`edgeseal.provisioning`) with its disk in memory; one thread serves
them all, as slowly as a line of `baud` would. A copied one shows the key of the first: what a cloned card does.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import threading
import time
import tty
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.provisioning import Board
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.provisioning import Device

TICK: Final = 0.01  # seconds
HARDWARE: Final = "simulated-board"


@dataclass
class Simulated:
    """One device and its end of the line; `path` is the station's."""

    home: MemoryHome
    device: Device
    master: int
    keeper: int
    allowed: dict[str, float]
    waiting: bytes = b""

    @property
    def path(self) -> str:
        """The port at the station."""
        return os.ttyname(self.keeper)

    def serve(self, more: float) -> None:
        """Carry what a line could in the time that allows `more` bytes each way."""
        for way in self.allowed:
            self.allowed[way] = min(self.allowed[way] + more, 4 * more + 64)
        with contextlib.suppress(BlockingIOError, OSError):
            data = os.read(self.master, int(self.allowed["down"]))
            self.allowed["down"] -= len(data)
            self.device.feed(data)
        self.waiting += self.device.outgoing()
        if self.waiting:
            with contextlib.suppress(BlockingIOError, OSError):
                sent = os.write(self.master, self.waiting[: int(self.allowed["up"])])
                self.allowed["up"] -= sent
                self.waiting = self.waiting[sent:]

    def close(self) -> None:
        """Close both ends."""
        for fd in (self.master, self.keeper):
            with contextlib.suppress(OSError):
                os.close(fd)


def _made(number: int, hardware: str) -> Simulated:
    master, keeper = pty.openpty()
    for fd in (master, keeper):
        tty.setraw(fd)
    os.set_blocking(master, False)
    mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"  # locally administered: nobody's
    board = Board(mac, f"simulated-cid-{number:04}", f"simulated-duid-{number:04}", "000000")
    home = MemoryHome(serial=f"simulated-{number:04}", hardware=hardware, board=board, healthy=True)
    return Simulated(home, home.device(time.monotonic), master, keeper, {"down": 0.0, "up": 0.0})


@contextlib.contextmanager
def simulated(
    count: int, *, baud: int, suite: int, hardware: str = HARDWARE, copies: int = 0
) -> Iterator[list[Simulated]]:
    """Make `count` devices, the last `copies` of them copies of the first, and the thread that serves them."""
    devices = [_made(n + 1, hardware) for n in range(count)]
    if copies:
        key = devices[0].home.new_key(suite, "require", b"")
        for device in devices[-copies:]:
            device.home.pending = key
    stop = threading.Event()

    def serve() -> None:
        last = time.monotonic()
        masters = [device.master for device in devices]
        while not stop.wait(TICK):
            select.select(masters, [], [], 0.05)
            now = time.monotonic()
            for device in devices:
                device.serve((now - last) * baud / 10)
            last = now

    thread = threading.Thread(target=serve, name="simulated-devices", daemon=True)
    thread.start()
    try:
        yield devices
    finally:
        stop.set()
        thread.join(5)
        for device in devices:
            device.close()

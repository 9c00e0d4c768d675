"""Devices in memory at the device ends of serial lines: one thread answers for all of them."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgeseal.provisioning import Device


@dataclass
class Powered:
    """A device at a port; `restart` is its power going off and on: what it said is forgotten, what it kept is there."""

    home: MemoryHome
    port: str
    clock: Callable[[], float] = time.monotonic
    starts: int = 0
    _device: Device = field(init=False)
    _pending: bytes = b""

    def __post_init__(self) -> None:
        self.fd = os.open(self.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.restart()

    def restart(self) -> None:
        self._device, self._pending = self.home.device(self.clock), b""
        self.starts += 1

    def serve(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._device.feed(os.read(self.fd, 4096))
        self._pending += self._device.outgoing()
        if self._pending:
            with contextlib.suppress(BlockingIOError):
                self._pending = self._pending[os.write(self.fd, self._pending) :]


@contextlib.contextmanager
def powered(
    ports: Sequence[str],
    homes: Sequence[MemoryHome] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    each: Callable[[Powered], None] = lambda _: None,
) -> Iterator[list[Powered]]:
    """Put a device at each port; `each` is called whenever one has taken or given bytes."""
    made = [Powered(home, port, clock) for home, port in zip(homes or numbered(len(ports)), ports, strict=True)]
    stop = threading.Event()

    def serve() -> None:
        by_fd = {device.fd: device for device in made}
        while not stop.is_set():
            waiting = [d.fd for d in made if d._pending]
            came, goes, _ = select.select(list(by_fd), waiting, [], 0.05)
            for fd in {*came, *goes}:
                by_fd[fd].serve()
                each(by_fd[fd])

    thread = threading.Thread(target=serve, name="devices", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join(5)
        for device in made:
            os.close(device.fd)


def numbered(count: int) -> list[MemoryHome]:
    return [MemoryHome(serial=f"1000{n:04}", healthy=True) for n in range(1, count + 1)]

"""Closing a device from one thread while another one is inside a read, without waiting and without a crash.

Closing a libusb handle, or a file descriptor, under a running transfer is undefined at best. So `close` only marks the
device closed when a transfer runs, and the thread inside the transfer disposes of it on its way out.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from edgeseal.entropy.drivers.base import Gone

if TYPE_CHECKING:
    from collections.abc import Callable


class Handover:
    """A context manager around every transfer, and the `close` that goes with it."""

    def __init__(self, path: str, dispose: Callable[[], None]) -> None:
        """`dispose` is called exactly once, by whoever is last; it must not raise."""
        self._path = path
        self._dispose = dispose
        self._guard = threading.Lock()  # held while the flags change, never during a transfer
        self._running = 0  # transfers; more than one while a driver says goodbye to its device
        self._closing = self._disposed = False

    def __enter__(self) -> None:
        """Begin a transfer. Raises Gone after `close`."""
        with self._guard:
            if self._closing:
                raise Gone(f"{self._path}: was closed")
            self._running += 1

    def __exit__(self, *_: object) -> None:
        """End it, and dispose if `close` came meanwhile."""
        with self._guard:
            self._running -= 1
        if self._closing:
            self.close()

    def close(self) -> None:
        """Dispose now, or leave it to the running transfer. Idempotent."""
        with self._guard:
            self._closing = True
            now = not self._running and not self._disposed
            self._disposed = self._disposed or now
        if now:
            self._dispose()

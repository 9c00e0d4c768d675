"""A deadline that a dripping peer cannot stretch: it shuts the socket down.

Socket timeouts start anew with every byte; a peer that sends one byte a minute defeats them. A timer does not care.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    from collections.abc import Iterator


class Watch:
    """The socket in use by one thread, and a timer that shuts it down."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self.over = False
        self._socket: socket.socket | None = None

    @contextlib.contextmanager
    def until(self, ends: float) -> Iterator[None]:
        """Shut the socket down at `ends` (time.monotonic) unless the block ends before; `over` says so."""
        self.over = False
        timer = threading.Timer(max(0.0, ends - time.monotonic()), self._shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def pool_classes(self) -> dict[str, type[HTTPConnectionPool]]:
        """Return urllib3's pools with connections that show us their socket."""
        watch = self

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                watch._connected(self.sock)

        class Tls(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                watch._connected(self.sock)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = Tls

        return {"http": PlainPool, "https": TlsPool}

    def _connected(self, connected: socket.socket | None) -> None:
        self._socket = connected
        if self.over:  # the timer fired while a name was being resolved: nobody would watch this connection
            self._shut()

    def _shut(self) -> None:
        self.over = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not SSLSocket's: it drops TLS state in use

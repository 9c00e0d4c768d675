"""One HTTP connection of edgeseal-serve: uvicorn's over h11, with bounds on what a client can hold without asking.

h11 bounds a request's head to 64 KiB. Here are the others: a head has HEAD_SECONDS to arrive, and of more than
MOST_OPEN connections the one that has been silent longest is closed. Otherwise a client that leaks its connections
would take the device from everybody, health checks included: a process has 1,024 files.

Not here: bodies, requests waiting and their time (app).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeseal.runtime.listen import BACKLOG

if TYPE_CHECKING:
    import asyncio

HEAD_SECONDS: Final = 30.0
MOST_OPEN: Final = 256
AT_A_TIME: Final = 64  # connections that asyncio takes in a row, a few rows before it looks at the first of them


class Listener(socket.socket):
    """A listening socket whose queue stays as long as it is: asyncio would make it as short as AT_A_TIME."""

    def listen(self, _backlog: int = BACKLOG, /) -> None:
        """Listen, with a queue of BACKLOG connections."""
        super().listen(BACKLOG)


class Connection(H11Protocol):
    """A connection is `silent` while no request is being answered on it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's own, passed on
        """Take what uvicorn gives."""
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self.silent_since = 0.0

    @property
    def silent(self) -> bool:
        """Whether nobody waits for an answer on it."""
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is None or bool(cycle.response_complete)

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it yet."""
        return not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room first where there is none."""
        super().connection_made(transport)
        self._fall_silent()
        if len(self.connections) > MOST_OPEN:
            # Perhaps this one itself, if all the others are being answered.
            silent = [c for c in self.connections if isinstance(c, Connection) and c.silent and c.is_open]
            min(silent, key=lambda c: c.silent_since).transport.close()

    def data_received(self, data: bytes) -> None:
        """Let a head's time run from its first byte on, not anew with each."""
        super().data_received(data)
        if not self.silent:
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def on_response_complete(self) -> None:
        """Count as silent until the next head is whole; uvicorn closes it before HEAD_SECONDS if nothing comes."""
        super().on_response_complete()
        if self.silent:  # a pipelined request may be under way already
            self.silent_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._stop_timer()
        super().connection_lost(exc)

    def _fall_silent(self) -> None:
        self.silent_since = self.loop.time()
        self._start_timer()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.silent:
            self.transport.close()

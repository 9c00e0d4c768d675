"""The device's end of an in-memory line when the device itself is a file that somebody carries.

Answers with the request from that file and keeps the grant for it. Proves nothing: whether the device holds its key
shows when it opens the grant. A real device never takes part in this (`Hello.carried` is refused there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeseal.errors import FormatError
from edgeseal.provisioning import wire
from edgeseal.provisioning.inbox import Inbox
from edgeseal.provisioning.machine import Machine
from edgeseal.provisioning.messages import (
    FORMAT,
    NONCE_LENGTH,
    Board,
    EntropyReport,
    Hello,
    Identity,
    Kind,
    cut,
    frame,
)
from edgeseal.smp import LineDecoder, Packet, encode_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.enrolment import Request


class Carried:
    """Plays the device for one enrolment request. `grant` is there once the station has made it."""

    def __init__(self, request: Request, *, clock: Callable[[], float]) -> None:
        """`request` as `Request.from_bytes` read it."""
        self._request = request
        self._machine = Machine(carried=True)
        self._decoder = LineDecoder()
        self._inbox = Inbox(clock=clock, begin=lambda _: None, respond=self._respond, over=lambda: self._machine.over)
        self._out = b""
        self.grant: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Take what the station wrote."""
        for raw in self._decoder.feed(data):
            request = Packet.from_bytes(raw)
            answer = self._inbox.put(request) if request.command == wire.PUT else self._inbox.get(request)
            self._out += encode_lines(answer.to_bytes())

    def outgoing(self) -> bytes:
        """Return what the station is to read."""
        out, self._out = self._out, b""
        return out

    def _respond(self, message: bytes) -> bytes:
        kind, body = cut(message)
        self._machine.move(kind)
        if kind is Kind.HELLO:
            answer = Kind.IDENTITY, self._identity(Hello.from_bytes(body))
        else:
            self.grant = body
            answer = Kind.CONFIRM, b""
        self._machine.move(answer[0])
        return frame(*answer)

    def _identity(self, hello: Hello) -> bytes:
        if not hello.carried:
            raise FormatError("a request file answers only a station that knows it for one")
        report = EntropyReport("mix", 0, list(self._request.entropy))
        return Identity(FORMAT, False, self._request.to_bytes(), Board(), report, bytes(NONCE_LENGTH)).to_bytes()  # noqa: FBT003

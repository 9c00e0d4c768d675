"""The device's end of the line: puts messages together, hands out answers, and lets one station in at a time.

Answers are kept until the next message begins, so that anything may be asked again. A session's name begins with 4
bytes of the station's id: the station that has the device may call anew after a second of silence, another after ten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError
from edgeseal.provisioning import wire
from edgeseal.smp import Packet, Rc

if TYPE_CHECKING:
    from collections.abc import Callable

OWN_SILENCE: Final = 1.0  # seconds
OTHER_SILENCE: Final = 10.0


class Inbox:
    """One session: its number of the message that comes in or is answered, its pieces, its answer."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        begin: Callable[[bytes], None],
        respond: Callable[[bytes], bytes],
        over: Callable[[], bool],
    ) -> None:
        """`begin` is told of a new session, `respond` answers a whole message, `over` says that nothing can follow."""
        self._clock = clock
        self._begin = begin
        self._respond = respond
        self._over = over
        self._session: bytes | None = None
        self._number = 0
        self._incoming: wire.Assembly | None = None
        self._check = b""
        self._answer: bytes | None = None
        self._heard_at = 0.0

    def put(self, request: Packet) -> Packet:
        """Answer a PUT."""
        put = wire.read(request.body, wire.Put)
        if put.s != self._session and (refused := self._open(put, request)) is not None:
            return refused
        self._heard_at = self._clock()
        if not self._reach(put):
            return request.failure(Rc.BAD_STATE, "no such message in this session")
        if self._answer is None:
            return self._collect(put, request)
        if put.h != self._check:
            return request.failure(Rc.BAD_STATE, "this message was another one before")
        return self._hand_out(request, put.n, 0, len(put.d))

    def get(self, request: Packet) -> Packet:
        """Answer a GET."""
        get = wire.read(request.body, wire.Get)
        if get.s != self._session or get.n != self._number or self._answer is None or get.o >= len(self._answer):
            return request.failure(Rc.BAD_STATE, "no such answer in this session")
        self._heard_at = self._clock()
        return self._hand_out(request, get.n, get.o, get.c)

    def _open(self, put: wire.Put, request: Packet) -> Packet | None:
        """Begin a session for its first message; return the refusal if that may not be."""
        if put.n:
            return request.failure(Rc.BAD_STATE, "no such session")
        if self._session is not None and not self._over():
            same = put.s[: wire.OWNER_LENGTH] == self._session[: wire.OWNER_LENGTH]
            silence = self._clock() - self._heard_at
            if silence < (OWN_SILENCE if same else OTHER_SILENCE):
                return request.failure(Rc.BUSY, "another station is talking to this device")
        self._session = put.s
        self._begin(put.s)
        self._start(0)
        return None

    def _reach(self, put: wire.Put) -> bool:
        """Go on to the next message once the one before is answered; whether `put` is for the current one."""
        if put.n == self._number + 1 and self._answer is not None:
            self._start(put.n)
        return put.n == self._number

    def _start(self, number: int) -> None:
        self._number, self._incoming, self._answer, self._check = number, None, None, b""

    def _collect(self, put: wire.Put, request: Packet) -> Packet:
        if self._incoming is None or (self._incoming.length, self._incoming.check) != (put.l, put.h):
            self._incoming = wire.Assembly(put.l, put.h)
        if not self._incoming.add(put.o, put.d):
            return request.failure(Rc.INVALID, "a piece off the grid")
        try:
            message = self._incoming.whole()
        except FormatError:
            self._incoming = None
            return request.answer(wire.write(wire.Piece(put.s, put.n, put.o, x=True)))
        if message is None:
            return request.answer(wire.write(wire.Piece(put.s, put.n, put.o)))
        self._incoming, self._check = None, put.h
        self._answer = self._respond(message)
        self._heard_at = self._clock()  # making a key may take longer than a station's silence
        return self._hand_out(request, put.n, 0, len(put.d))

    def _hand_out(self, request: Packet, number: int, offset: int, count: int) -> Packet:
        assert self._answer is not None  # noqa: S101 - every caller has checked
        assert self._session is not None  # noqa: S101
        data = wire.cut_piece(self._answer, offset, count)
        length, check = len(self._answer), wire.check_value(self._answer)
        return request.answer(wire.write(wire.Piece(self._session, number, offset, length, check, data)))

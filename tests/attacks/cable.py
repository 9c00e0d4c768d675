"""An attacker on the cable who speaks the line perfectly: sessions, pieces, CRCs. Also what tests do with dialogues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.line_world import Line

from edgeseal.errors import EdgesealError
from edgeseal.provisioning import Dialogue, Station, Verdict
from edgeseal.provisioning.device import session_name
from edgeseal.provisioning.inbox import Inbox
from edgeseal.provisioning.messages import Hello, Kind, Refused, Reset, cut, frame
from edgeseal.smp import LineDecoder, Op, Packet, encode_lines
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable


class Impostor:
    """A device's end of a line that answers each message with what `respond` says."""

    def __init__(self, line: Line, respond: Callable[[bytes], bytes]) -> None:
        self._decoder = LineDecoder()
        self._inbox = Inbox(clock=line.link.clock, begin=lambda _: None, respond=respond, over=lambda: True)
        self._out = b""

    def feed(self, data: bytes) -> None:
        for raw in self._decoder.feed(data):
            request = Packet.from_bytes(raw)
            answer = self._inbox.put(request) if request.op is Op.WRITE else self._inbox.get(request)
            self._out += encode_lines(answer.to_bytes())

    def outgoing(self) -> bytes:
        out, self._out = self._out, b""
        return out


class Middle(Impostor):
    """Sits between a station and a device, sees every message and may alter it. Writes down what passed."""

    def __init__(
        self,
        line: Line,
        *,
        down: Callable[[Kind, bytes], bytes] = lambda _, body: body,
        up: Callable[[Kind, bytes], bytes] = lambda _, body: body,
    ) -> None:
        self.dialogue = Dialogue(line.home, random=line.home.random, clock=line.link.clock)
        self.said: list[bytes] = []
        self.answered: list[bytes] = []
        self._down, self._up = down, up
        super().__init__(line, self._pass)

    def _pass(self, message: bytes) -> bytes:
        kind, body = cut(message)
        altered = frame(kind, self._down(kind, body))
        if kind in {Kind.HELLO, Kind.RESET}:
            begin(self.dialogue, altered)
        self.said.append(message)
        answer = self.dialogue._respond(altered)
        self.answered.append(answer)
        kind, body = cut(answer)
        return frame(kind, self._up(kind, body))


def begin(dialogue: Dialogue, message: bytes) -> None:
    kind, body = cut(message)
    try:
        asked = Hello.from_bytes(body) if kind is Kind.HELLO else Reset.from_bytes(body)
    except EdgesealError:  # an altered message may be none: any session will do
        dialogue._begin(bytes(12))
        return
    dialogue._begin(session_name(asked.station, asked.nonce))


def refusal(answer: bytes) -> int:
    kind, body = cut(answer)
    assert kind is Kind.REFUSED, f"{kind.name} instead of a refusal"
    return Refused.from_bytes(body).code


def run(line: Line, station: Station, end: Any) -> Verdict:
    line.link.run(station, end, until=lambda: station.verdict is not None)
    assert station.verdict is not None
    return station.verdict


def recorded(line: Line) -> Middle:
    """Watch one good dialogue."""
    middle = Middle(line)
    assert run(line, line.station(), middle).passed
    return middle


def restored(line: Line) -> Line:
    """The same device with its card as it was before: the key waits, nothing was granted."""
    assert line.home.identity is not None
    key = line.home.identity[0]
    report = MemoryHome().new_key(1, "mix", bytes(64))[1]
    return Line(home=MemoryHome(pending=(key, report)))

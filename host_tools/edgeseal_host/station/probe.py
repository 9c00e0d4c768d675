"""Asks a line who is there, again and again, and changes nothing: command 0 of group 64 (docs/spec/provisioning.md §3).

An empty port is no failure: a station that only ever said hello would show FAIL wherever no board was put in yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError
from edgeseal.provisioning import Stage, wire
from edgeseal.smp import LineDecoder, Op, Packet, encode_lines

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY: Final = 0.5  # seconds between two questions
GONE: Final = 3.0  # seconds of silence after which another device may be there
_MAX_SERIAL: Final = 256


@dataclass(frozen=True, slots=True)
class Status:
    """What a device says of itself. Unproven: good for the screen, and to know that it is still the same."""

    stage: Stage
    serial: str


class Probe:
    """One line's questions. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Ask at once."""
        self._clock = clock
        self._decoder = LineDecoder()
        self._next_at = clock()
        self._sequence = 0
        self._heard_at = clock()

    def outgoing(self) -> bytes:
        """Return a question if one is due."""
        if self._clock() < self._next_at:
            return b""
        self._next_at = self._clock() + EVERY
        self._sequence = (self._sequence + 1) % 256
        return encode_lines(Packet(Op.READ, wire.GROUP, wire.STATUS, {}, self._sequence).to_bytes())

    def wait(self) -> float:
        """Seconds until the next question."""
        return max(0.0, self._next_at - self._clock())

    @property
    def silent(self) -> bool:
        """Whether whoever was there is gone."""
        return self._clock() - self._heard_at > GONE

    def feed(self, data: bytes) -> Status | None:
        """Take what the line brought; return the newest answer in it."""
        found = None
        for raw in self._decoder.feed(data):
            try:
                packet = Packet.from_bytes(raw)
            except FormatError:
                continue
            if packet.group == wire.GROUP and packet.command == wire.STATUS and packet.op is Op.READ_RSP:
                found = _status(packet) or found
        if found is not None:
            self._heard_at = self._clock()
        return found


def _status(packet: Packet) -> Status | None:
    stage, serial = packet.body.get("stage"), packet.body.get("serial")
    if stage not in set(Stage) or not isinstance(serial, str) or len(serial) > _MAX_SERIAL:
        return None
    return Status(Stage(stage), serial)


def printable(text: str) -> str:
    """Return a device's text so that nothing in it commands a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)

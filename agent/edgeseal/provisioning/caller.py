"""The station's end of the line: one message and its answer at a time, in a window of packets that may all get lost.

A serial line keeps its order, so an answer that overtakes another tells at once that the other one is lost; what is
lost at the end of a window is found by time (RFC 6298). Sans-IO: `clock` in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError
from edgeseal.provisioning import wire
from edgeseal.smp import LineDecoder, Op, Packet, Rc, encode_lines

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW: Final = 3  # packets in flight: 3.4 KB, below the 4 KB a terminal's input queue holds
FIRST_TIMEOUT: Final = 0.5  # seconds, before anything was measured
MAX_TIMEOUT: Final = 1.0  # nobody else is on this line: waiting longer than it takes makes nothing better
GROW_AFTER: Final = 8  # answers in a row until packets get longer again
_SEQUENCES: Final = 256


@dataclass(slots=True)
class _Flight:
    """A packet that waits for its answer: units it carries or asks for."""

    packet: Packet
    units: range
    sent_at: float
    repeated: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is none: the device refuses packets of this session."""

    rc: int
    reason: str


class Caller:
    """Carries messages of one session after another. `rate` is the line's, in bytes per second."""

    def __init__(self, *, clock: Callable[[], float], rate: float) -> None:
        """Nothing is sent before `call`."""
        self._clock = clock
        self._rate = rate
        self._decoder = LineDecoder()
        self._flights: dict[int, _Flight] = {}  # by sequence number, in the order they were sent
        self._sequence = 0
        self._units = wire.MAX_UNITS
        self._streak = 0
        self._smoothed: float | None = None
        self._variance = 0.0
        # A window of the longest answers that are queued before ours:
        self._queue = WINDOW * wire.UNIT * wire.MAX_UNITS * 3 / 2 / rate
        self._timeout = max(FIRST_TIMEOUT, self._queue)
        self._free_at = 0.0  # when the line has taken all that was written
        self._session = b""
        self._number = 0
        self._message: bytes | None = None
        self._to_send: set[int] = set()
        self._answer: wire.Assembly | None = None
        self._repeated: set[int] = set()
        self.heard_at: float | None = None  # when the device last answered in this session
        self.sent = 0
        self.received = 0
        self.lost = 0

    @property
    def damaged(self) -> int:
        """Packets that came in damaged."""
        return self._decoder.damaged

    def call(self, session: bytes, number: int, message: bytes) -> None:
        """Send `message` and ask until its answer is whole."""
        self._session, self._number, self._message = session, number, message
        self._flights.clear()
        self._answer = None
        self._restart()

    def hang_up(self) -> None:
        """Send nothing more."""
        self._message = None
        self._flights.clear()

    def feed(self, data: bytes) -> bytes | Problem | None:
        """Take what the line brought; return the whole answer once, or a problem."""
        self.received += len(data)
        for raw in self._decoder.feed(data):
            try:
                packet = Packet.from_bytes(raw)
            except FormatError:
                continue
            if packet.group == wire.GROUP and not packet.op.is_request:  # an echoing terminal shows us our own words
                done = self._take(packet)
                if done is not None:
                    return done
        return None

    def outgoing(self) -> bytes:
        """Return what is to be written now: what is due again and what the window allows."""
        if self._message is None:
            return b""
        now = self._clock()
        self._expire(now)
        out = b""
        while len(self._flights) < WINDOW and (units := self._next_units()):
            out += self._launch(units, now)
        self.sent += len(out)
        return out

    def wait(self) -> float | None:
        """Seconds until `outgoing` has something to say; None if only an answer can change that."""
        if self._message is None:
            return None
        if len(self._flights) < WINDOW and self._wanted():
            return 0.0
        ends = [f.sent_at + self._timeout for f in self._flights.values()]
        return max(0.0, min(ends) - self._clock()) if ends else None

    # Sending -----------------------------------------------------------------------------------------------------

    def _restart(self) -> None:
        assert self._message is not None  # noqa: S101 - both callers have just set or checked it
        self._to_send = set(range(-(-len(self._message) // wire.UNIT)))
        self._repeated.clear()

    def _wanted(self) -> set[int]:
        missing = self._to_send if self._answer is None else self._answer.missing
        return missing - {u for f in self._flights.values() for u in f.units}

    def _next_units(self) -> range:
        """Return the first run of units that is neither there nor on its way, as long as a packet may be now."""
        wanted = self._wanted()
        if not wanted:
            return range(0)
        start = stop = min(wanted)
        while stop in wanted and stop - start < self._units:
            stop += 1
        return range(start, stop)

    def _launch(self, units: range, now: float) -> bytes:
        offset, count = units.start * wire.UNIT, len(units) * wire.UNIT
        s, n = self._session, self._number
        if self._answer is None:
            assert self._message is not None  # noqa: S101 - `outgoing` has checked it
            data = wire.cut_piece(self._message, offset, count)
            check = wire.check_value(self._message)
            body = wire.write(wire.Put(s, n, offset, len(self._message), check, data))
            packet = Packet(Op.WRITE, wire.GROUP, wire.PUT, body, self._next_sequence())
        else:
            body = wire.write(wire.Get(s, n, offset, count))
            packet = Packet(Op.READ, wire.GROUP, wire.GET, body, self._next_sequence())
        lines = encode_lines(packet.to_bytes())
        self._free_at = max(self._free_at, now) + len(lines) / self._rate
        repeated = not self._repeated.isdisjoint(units)
        self._flights[packet.sequence] = _Flight(packet, units, self._free_at, repeated)
        return lines

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) % _SEQUENCES
        return self._sequence

    # Answers -----------------------------------------------------------------------------------------------------

    def _take(self, packet: Packet) -> bytes | Problem | None:
        flight = self._flights.get(packet.sequence)
        if flight is None or packet.command != flight.packet.command or packet.op != flight.packet.op + 1:
            return None
        if (problem := _problem(packet)) is not None:
            return problem
        try:
            piece = wire.read(packet.body, wire.Piece)
        except FormatError:
            return None
        if (piece.s, piece.n) != (self._session, self._number):
            return None
        self._arrived(packet.sequence, flight)
        return self._take_piece(piece, flight)

    def _take_piece(self, piece: wire.Piece, flight: _Flight) -> bytes | None:
        if piece.x:
            self._flights.clear()
            self._restart()
            return None
        if piece.l is None or piece.h is None or piece.d is None:
            self._to_send -= set(flight.units)
            return None
        if self._answer is None or (self._answer.length, self._answer.check) != (piece.l, piece.h):
            self._answer = wire.Assembly(piece.l, piece.h)
            self._flights.clear()
            self._repeated.clear()
        self._answer.add(piece.o, piece.d)
        try:
            whole = self._answer.whole()
        except FormatError:
            self._answer = wire.Assembly(piece.l, piece.h)
            return None
        if whole is not None:
            self.hang_up()
        return whole

    def _arrived(self, sequence: int, flight: _Flight) -> None:
        """Count an answer in: measure the line, and give up on every packet that was sent before this one."""
        now = self._clock()
        self.heard_at = now
        earlier = []
        for number in self._flights:
            if number == sequence:
                break
            earlier.append(number)
        for number in earlier:
            self._lose(number)
        del self._flights[sequence]
        # Karn: an answer to one of two equal questions measures nothing
        self._measure(None if flight.repeated else max(0.0, now - flight.sent_at))
        self._streak += 1
        if self._streak >= GROW_AFTER:
            self._streak = 0
            self._units = min(wire.MAX_UNITS, self._units + 1)

    def _expire(self, now: float) -> None:
        due = [number for number, f in self._flights.items() if now - f.sent_at >= self._timeout]
        for number in due:
            self._lose(number)
        if due:
            self._timeout = min(max(MAX_TIMEOUT, 2 * self._queue), self._timeout * 2)

    def _lose(self, number: int) -> None:
        flight = self._flights.pop(number)
        self._repeated |= set(flight.units)
        self.lost += 1
        self._streak = 0
        self._units = max(1, self._units // 2)

    def _measure(self, seconds: float | None) -> None:
        if seconds is None:
            pass
        elif self._smoothed is None:
            self._smoothed, self._variance = seconds, seconds / 2
        else:
            self._variance += (abs(self._smoothed - seconds) - self._variance) / 4
            self._smoothed += (seconds - self._smoothed) / 8
        expected = FIRST_TIMEOUT if self._smoothed is None else self._smoothed + 4 * self._variance
        self._timeout = max(self._queue, min(MAX_TIMEOUT, expected))


def _problem(packet: Packet) -> Problem | None:
    err = packet.body.get("err")
    rc = err.get("rc") if isinstance(err, dict) else packet.body.get("rc")
    if not isinstance(rc, int) or rc == Rc.OK:
        return None
    reason = packet.body.get("rsn", "")
    return Problem(rc, reason[:256] if isinstance(reason, str) and reason.isprintable() else "")

"""Serial cables for tests: pairs of pseudo-terminals with a proxy that is as slow and as bad as a real line.

    with bench(16, baud=115_200, faults=Faults(flip=1e-5, drop=1e-5, double=1e-5, noise=0.05, prompt=0.02)) as lines:
        the device opens lines[0].device, the station lines[0].station

A token bucket of baud / 10 bytes per second paces each direction. Faults are drawn from the line's seed: per byte a
flipped bit, a lost or a doubled one; per line feed towards the station some noise or a getty's prompt. `unplug` and
`cut_after` pull the cable, `taps` see what passed. One thread serves all lines.
"""

from __future__ import annotations

import contextlib
import math
import os
import pty
import random
import select
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK: Final = 0.002  # seconds; at 115,200 baud 23 bytes
PROMPT: Final = b"\r\nDebian GNU/Linux 12 raspberrypi ttyS0\r\n\r\nraspberrypi login: "
Direction: TypeAlias = Literal["up", "down"]  # up: to the station
Tap: TypeAlias = Callable[[Direction, bytes], None]


@dataclass(frozen=True)
class Faults:
    """Chances: `flip`, `drop`, `double` per byte, `noise` and `prompt` per line feed that goes to the station."""

    flip: float = 0.0
    drop: float = 0.0
    double: float = 0.0
    noise: float = 0.0
    prompt: float = 0.0


class Damage:
    """Does to bytes what `Faults` says; skips from fault to fault, so that a clean line costs nothing."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._rng = random.Random(seed)
        self._rate = faults.flip + faults.drop + faults.double
        self._next = self._gap()
        self.count = 0

    def _gap(self) -> float:
        return math.inf if not self._rate else self._rng.expovariate(self._rate)

    def apply(self, data: bytes, *, to_station: bool) -> bytes:
        if self._next >= len(data):
            self._next -= len(data)
            return self._with_noise(data) if to_station else data
        out = bytearray()
        for byte in data:
            if self._next >= 1:
                self._next -= 1
                out.append(byte)
                continue
            self._next = self._gap()
            self.count += 1
            out += self._faulty(byte)
        return self._with_noise(bytes(out)) if to_station else bytes(out)

    def _faulty(self, byte: int) -> bytes:
        x = self._rng.random() * self._rate
        if x < self._faults.flip:
            return bytes([byte ^ 1 << self._rng.randrange(8)])
        return b"" if x < self._faults.flip + self._faults.drop else bytes([byte, byte])

    def _with_noise(self, data: bytes) -> bytes:
        if not (self._faults.noise or self._faults.prompt) or b"\n" not in data:
            return data
        pieces = data.split(b"\n")
        for i in range(len(pieces) - 1):
            x = self._rng.random()
            if x < self._faults.prompt:
                pieces[i + 1] = PROMPT + pieces[i + 1]
            elif x < self._faults.prompt + self._faults.noise:
                pieces[i + 1] = self._rng.randbytes(self._rng.randrange(1, 20)) + pieces[i + 1]
        return b"\n".join(pieces)


@dataclass
class _Side:
    """One pseudo-terminal: the proxy's end, and the other end kept open so that nobody's exit hangs the line up."""

    master: int
    keeper: int

    @classmethod
    def make(cls) -> _Side:
        master, keeper = pty.openpty()
        for fd in (master, keeper):
            tty.setraw(fd)
        os.set_blocking(master, False)
        return cls(master, keeper)

    @property
    def path(self) -> str:
        return os.ttyname(self.keeper)

    def close(self) -> None:
        for fd in (self.master, self.keeper):
            with contextlib.suppress(OSError):
                os.close(fd)


@dataclass
class SerialLine:
    """One cable. `passed` counts bytes written by their sender, by direction."""

    baud: int
    faults: Faults
    seed: int
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    taps: list[Tap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._device, self._station = _Side.make(), _Side.make()
        self._damage = {d: Damage(self.faults, self.seed * 2 + i) for i, d in enumerate(("up", "down"))}
        self._tokens = {"up": 0.0, "down": 0.0}
        self._plugged = True
        self._left: float = math.inf

    @property
    def device(self) -> str:
        """Path of the port at the device."""
        return self._device.path

    @property
    def station(self) -> str:
        """Path of the port at the station."""
        return self._station.path

    @property
    def faulted(self) -> int:
        """Bytes that were damaged so far."""
        return sum(d.count for d in self._damage.values())

    def unplug(self) -> None:
        """Pull the cable: what is on it and what comes is lost."""
        self._plugged = False

    def plug(self) -> None:
        """Put the cable back in."""
        self._left = math.inf
        self._plugged = True

    def cut_after(self, count: int) -> None:
        """Pull the cable after that many bytes from now on, in both directions together."""
        self._left = count

    def descriptors(self) -> list[int]:
        return [self._device.master, self._station.master]

    def pump(self, seconds: float) -> None:
        """Carry what `seconds` of line time allow."""
        self._move("down", self._station, self._device, seconds)
        self._move("up", self._device, self._station, seconds)

    def _move(self, direction: Direction, source: _Side, sink: _Side, seconds: float) -> None:
        rate = self.baud / 10
        self._tokens[direction] = min(self._tokens[direction] + seconds * rate, max(64.0, rate * 0.02))
        allowed = int(self._tokens[direction])
        if allowed < 1:
            return
        try:
            data = os.read(source.master, allowed)
        except (BlockingIOError, OSError):
            return
        self._tokens[direction] -= len(data)
        self.passed[direction] += len(data)
        carried = data[: int(min(self._left, len(data)))] if self._plugged else b""
        self._left -= len(carried)
        if not carried:
            return
        arrived = self._damage[direction].apply(carried, to_station=direction == "up")
        for tap in self.taps:
            tap(direction, arrived)
        with contextlib.suppress(BlockingIOError):  # nobody reads: a UART overruns
            os.write(sink.master, arrived)

    def close(self) -> None:
        self._device.close()
        self._station.close()


@contextlib.contextmanager
def bench(
    count: int = 1, *, baud: int = 115_200, faults: Faults | None = None, seed: int = 0
) -> Iterator[list[SerialLine]]:
    """Make `count` cables and the thread that serves them."""
    lines = [SerialLine(baud, faults or Faults(), seed + i) for i in range(count)]
    stop = threading.Event()

    def serve() -> None:
        everything = [fd for line in lines for fd in line.descriptors()]
        last = time.monotonic()
        while not stop.is_set():
            select.select(everything, [], [], 0.05)
            now = time.monotonic()
            for line in lines:
                line.pump(now - last)
            last = now
            stop.wait(TICK)

    thread = threading.Thread(target=serve, name="serial-proxy", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        stop.set()
        thread.join(5)
        for line in lines:
            line.close()

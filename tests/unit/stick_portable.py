"""What the stick's shared modules answer, as lines of JSON: run by CPython and by MicroPython, compared line by line.

Plain Python of both; annotations are for the type checker, MicroPython does not evaluate them. `Noise` is a front end
without hardware, a linear congruential generator shaped into something like noise.
"""

import json
import struct
from array import array

from edgeseal.stick import calibration, frame, health, mac, messages
from qrng import loops_plain, sweep
from qrng.core import Identity, Stick
from qrng.interface import Front
from qrng.ring import Ring

try:  # for the type checker; MicroPython has neither
    from collections.abc import Callable, Iterator
    from typing import Any
except ImportError:
    pass


class Noise(Front):
    """Sums of twelve uniform numbers: about normal, the same everywhere. `stuck` makes it constant."""

    simulated = True

    def __init__(self) -> None:
        self.state, self.level, self.sample, self.stuck = 1, 3, 0, False
        self.alarms: list[bool] = []

    def take(self) -> tuple[bytearray, int, int]:
        codes = []
        for _ in range(480):
            total = 0
            for _ in range(6):
                self.state = (self.state * 1103515245 + 12345) & 0x7FFFFFFF
                total += (self.state >> 16 & 0xFF) - 127
            codes.append(2048 if self.stuck else 2048 + total * (1 + self.level) // 10)
        first = self.sample
        self.sample += 480
        return bytearray(struct.pack("<480H", *codes)), first, self.sample * 50

    def restart(self) -> None:
        self.sample += 16

    def led(self, level: int) -> None:
        self.level = level

    def alarm(self, on: bool) -> None:
        self.alarms.append(on)

    def monitor(self) -> int:
        return 6554 + 2184 * self.level

    def temperature(self) -> int:
        return 3000

    def now_us(self) -> int:
        return self.sample * 50

    def strapped(self) -> bool:
        return False


def cutoffs() -> Iterator[object]:
    for h in (0.5, 0.864, 1, 2, 3, 4, 5, 7, 7.38, 12):
        yield [health.rct_cutoff(h, a) for a in (20, 40, 60)] + [health.apt_cutoff(h, 512, a) for a in (20, 40, 60)]


def keys() -> Iterator[object]:
    yield mac.session_key(bytes(range(32)), bytes(32), 0xFFFFFFFF, "e661640843218c2f").hex()
    yield mac.tag(b"k", b"message").hex()
    for length in (0, 65):
        yield refused(mac.Hmac, bytes(length))


def refused(function: Callable[..., object], *arguments: object) -> str:
    """The message of a refusal, or what came instead of one."""
    try:
        return repr(function(*arguments))
    except ValueError as e:
        return str(e)


def vectors(cases: dict[str, Any]) -> Iterator[object]:
    """The frame vectors: fields of the good ones, messages about the broken ones."""
    for name in sorted(cases):
        data = bytes.fromhex(cases[name]["frame"])
        try:
            f = frame.decode(data)
            fields = [f.kind, f.flags, f.boot_id, f.seq, f.t_us, f.first_sample, f.count, f.bits, f.led]
            codes = list(f.samples())[:4] if f.kind == frame.RAW else f.payload.hex()
            yield [name, fields, codes, f.tag.hex()]
        except frame.FrameError as e:
            yield [name, str(e)]
        yield frame.find_frame(b"ESQ1" + data + data)


def packets(requests: dict[str, Any]) -> Iterator[object]:
    for group in ("accepted", "stalled"):
        for name in sorted(requests[group]):
            setup = messages.Setup.accept(bytes.fromhex(requests[group][name]))
            yield [name, setup and [setup.request, setup.value, setup.option, setup.length]]
            if setup:
                yield setup.encode().hex()


def records() -> Iterator[object]:
    info = messages.Info(
        firmware=(1, 2, 3),
        unique_id=b"12345678",
        bits=12,
        source_class=1,
        h_claim=1024,
        rate=20000,
        levels=(1, 2, 3, 4),
        nominal=3,
        board=1,
        features=1,
        boot_id=7,
        firmware_hash=bytes(16),
    )
    yield info.encode().hex()
    yield messages.Info.decode(info.encode()).serial
    for length in (0, 63, 64):
        yield refused(messages.Info.decode, bytes(length))
        yield refused(messages.Status.decode, bytes(length))


def tests() -> Iterator[object]:
    front = Noise()
    rct, apt, model = health.Rct(11), health.Apt(78, 512), health.Model(2048, 72, remembered=8)
    for number in range(12):
        front.stuck = number == 9
        if number == 10:
            front.state = 1  # repeats the first block, which is no longer remembered, and then new ones
        block = bytes(front.take()[0])
        samples = array("H", block)
        yield [rct.feed(samples), apt.feed(samples), model.feed(samples), rct.longest, apt.highest]


def stick() -> Iterator[object]:
    """The firmware's core: a paired session, a sweep, an alarm and its end."""
    front = Noise()
    identity = Identity(unique_id=b"12345678", board=1, boot_id=9, levels=(1, 2, 3, 4), firmware_hash=bytes(16))
    core = Stick(identity, front, bytes(range(32)))
    setup = messages.Setup(messages.SET_NONCE, 0, 0, 32).encode()
    buffer = core.request(setup)
    assert isinstance(buffer, bytearray)
    buffer[:] = bytes(range(32))
    core.commit(setup)
    core.commit(messages.Setup(messages.SET_STREAM, messages.STREAM_CALIBRATED, 10, 0).encode())
    frames = 0
    while frames < 20:
        front.stuck = frames == 14
        sent = core.step()
        if sent is not None:
            frames += 1
            f = frame.decode(sent)
            yield [f.kind, f.flags, f.seq, f.first_sample, f.t_us, f.tag.hex()]
            if f.kind == frame.CAL:
                fit = calibration.fit(messages.decode_sweep(f.payload), 3)
                numbers = (fit.a, fit.b, fit.c, fit.qcnr_db, fit.excess, fit.mean, fit.sigma, fit.lag)
                yield ["%.4g" % n for n in numbers] + calibration.faults(fit)  # noqa: UP031  MicroPython's round differs
    yield front.alarms
    status = core.request(messages.Setup(messages.GET_STATUS, 0, 0, 32).encode())
    assert status
    yield status.hex()


def plain_loops() -> Iterator[object]:
    front = Noise()
    state = array("i", [0] * loops_plain.SCAN_LENGTH)
    state[loops_plain.WINDOW] = 512
    for _ in range(2):
        loops_plain.scan(front.take()[0], 480, state)
        yield list(state)
    sums = sweep.Sweep()
    while not sums.feed(front.take()[0], gap=False):
        pass
    sums.close_level(6554)
    yield sums.records[0].encode().hex()


def ring() -> Iterator[object]:
    positions = Ring(20000)
    positions.begin(0, 16)
    memory = memoryview(bytearray(16384))
    block = bytearray(960)
    for now in range(0, 1000000, 23000):
        positions.update(now // 50 % 8192, now)
        while positions.available(480):
            yield [positions.copy(memory, block), positions.age_us()]
    positions.update(3000000 // 50 % 8192, 3000000)
    yield [positions.lost(480), positions.produced, positions.consumed]


def lines(cases: dict[str, Any], requests: dict[str, Any]) -> Iterator[str]:
    """Every answer as one line, with the name of its group."""
    groups = (
        ("cutoffs", cutoffs()),
        ("keys", keys()),
        ("vectors", vectors(cases)),
        ("packets", packets(requests)),
        ("records", records()),
        ("tests", tests()),
        ("stick", stick()),
        ("loops", plain_loops()),
        ("ring", ring()),
    )
    for name, answers in groups:
        for answer in answers:
            yield name + " " + json.dumps(answer)

"""The agent's `provision` over pseudo-terminals: slow and bad lines, kills at every message, other people's tools."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from smpclient import SMPClient
from smpclient.generics import success
from smpclient.requests.os_management import EchoWrite, MCUMgrParametersRead, OSApplicationInfoRead
from smpclient.transport.serial import SMPSerialTransport
from tests.sim.line_process import DeviceProcess, converse, device
from tests.sim.serial_line import Damage, Faults, SerialLine, bench
from tests.unit.line_card import Card, check, copied
from tests.unit.line_world import SIGNER, order, public

from edgeseal.provisioning import CONTEXT, Code, FactoryReset, Stage, Station, Step, wire
from edgeseal.smp import LineDecoder, Op, Packet
from edgeseal_host.testing.provisioning import MemoryBook

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.provisioning import Order

BAD = Faults(flip=2e-5, drop=2e-5, double=2e-5, noise=0.05, prompt=0.02)
FAST = 2_000_000  # baud, where the test is not about time


def station(book: MemoryBook, order_: Order | None = None, **changes: Any) -> Station:
    return Station(order_ or order(), book, random=os.urandom, clock=time.monotonic, **changes)


def agree(directory: Path, book: MemoryBook) -> None:
    """Assert that the card and the journal have one and the same identity."""
    home = Card(directory).home()
    (offer,) = book.offers.values()
    origin = home.origin()
    assert origin is not None
    assert (origin.kid, home._agent.keys.identity().device) == (offer.kid, offer.device)
    assert list(book.done) == [offer.kid]


# Lines ----------------------------------------------------------------------------------------------------------------


def test_bad_line_at_115200_baud_ends_provisioned_and_locked(tmp_path: Path) -> None:
    book = MemoryBook()
    with bench(faults=BAD, seed=7) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        verdict = converse(station(book), line.station)
        assert verdict.passed, verdict
        code, said = agent.wait()
    assert (code, "this device is locked" in said) == (0, True)
    agree(tmp_path, book)
    assert Card(tmp_path).home().stage() is Stage.LOCKED


def test_damage_is_what_was_asked_for() -> None:
    """Negative control of the proxy: a clean line changes nothing, a bad one does, and twice the same."""
    data = bytes(range(256)) * 400
    assert Damage(Faults(), 1).apply(data, to_station=True) == data
    bad = Damage(Faults(flip=1e-3, drop=1e-3, double=1e-3), 1)
    out = bad.apply(data, to_station=False)
    assert 200 < bad.count < 420
    assert out != data
    assert Damage(Faults(flip=1e-3, drop=1e-3, double=1e-3), 1).apply(data, to_station=False) == out
    assert b"login: " in Damage(Faults(prompt=1.0), 1).apply(b"a\nb\n", to_station=True)


def test_pacing_is_that_of_the_baud_rate() -> None:
    with bench(baud=115_200) as (line,):
        fd = os.open(line.station, os.O_RDWR | os.O_NOCTTY)
        began = time.monotonic()
        sent = sum(os.write(fd, bytes(1000)) for _ in range(4))
        while line.passed["down"] < sent:
            time.sleep(0.005)
        seconds = time.monotonic() - began
        os.close(fd)
    assert seconds > 0.8 * sent / 11_520, "faster than the line can be"


def test_two_lines_of_one_device_and_a_station_on_each(tmp_path: Path) -> None:
    books = [MemoryBook(), MemoryBook("drill")]
    with bench(2, baud=FAST) as lines, device(tmp_path, lines[0].device) as agent:
        agent.start("--port", lines[1].device)
        first = converse(station(books[0]), lines[0].station)
        other = converse(station(books[1], order(pin=bytes(48)), patience=2.0), lines[1].station)
        agent.wait()
    assert (first.passed, other.passed) == (True, False)
    assert other.code is Code.LOCKED
    agree(tmp_path, books[0])


def test_standard_input_and_output_are_a_line_too(tmp_path: Path) -> None:
    """For a shell over any other transport: ssh, adb, a socket unit."""
    config = DeviceProcess(tmp_path, "stdio").write_config()
    command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(config), "provision", "--port", "stdio"]
    book = MemoryBook()
    talk = station(book)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while talk.verdict is None:
            process.stdin.write(talk.outgoing())
            if select.select([process.stdout], [], [], min(0.05, talk.wait() or 0.05))[0]:
                talk.feed(os.read(process.stdout.fileno(), 4096))
        process.stdin.close()
        assert process.stdout.read() == b"", "nothing but the line is on standard output"
        assert process.wait(10) == 0
    assert talk.verdict.passed
    agree(tmp_path, book)


# Killed ---------------------------------------------------------------------------------------------------------------


class Killer:
    """Kills the device when message `number` reaches it whole (`before` it answers), or when its answer begins."""

    def __init__(self, line: SerialLine, agent: DeviceProcess, number: int, moment: str) -> None:
        self._decoders = {"up": LineDecoder(), "down": LineDecoder()}
        self._agent, self._number, self._moment = agent, number, moment
        self._length: dict[int, int] = {}
        self._seen: dict[int, set[int]] = {}
        self.killed = False
        self.up_again: bool | None = None
        line.taps.append(self._tap)

    def _tap(self, direction: Any, data: bytes) -> None:
        for raw in self._decoders[direction].feed(data):
            packet = Packet.from_bytes(raw)
            if packet.group != wire.GROUP or self.killed:
                continue
            if direction == "down" and packet.op is Op.WRITE:
                self._count(packet.body)
            elif packet.op is Op.WRITE_RSP and "l" in packet.body and packet.body["n"] == self._number:
                self._kill(self._moment == "after")

    def _count(self, body: dict[str, Any]) -> None:
        seen = self._seen.setdefault(body["n"], set())
        seen |= set(range(body["o"], body["o"] + len(body["d"])))
        whole = len(seen) == body["l"]
        self._kill(whole and body["n"] == self._number and self._moment == "before")

    def _kill(self, due: bool) -> None:
        """Kill it before the byte that decided is passed on."""
        if due:
            assert self._agent.process is not None
            os.kill(self._agent.process.pid, signal.SIGKILL)
            self.killed = True

    def __call__(self) -> None:
        if self.killed and self.up_again is None:
            self._agent.wait()
            self.up_again = self._agent.start_unless_locked()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_kill_9_of_the_device_at_every_message(tmp_path: Path, number: int, moment: str) -> None:
    """The station goes on with the device that comes up again; there is one identity, and the journal has it."""
    book = MemoryBook()
    with bench(baud=FAST) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        killer = Killer(line, agent, number, moment)
        verdict = converse(station(book, patience=4.0), line.station, each=killer)
        killer()
    assert killer.killed
    assert verdict.passed or not killer.up_again, verdict
    assert killer.up_again or number == 3, "only the lock keeps a device from coming up again"
    agree(tmp_path, book)
    assert Card(tmp_path).home().stage() is Stage.LOCKED


def test_device_that_forgets_what_it_was_given_is_caught(tmp_path: Path) -> None:
    """Negative control: the card is empty after the kill; the device comes to another identity than was offered."""
    book = MemoryBook()
    with bench(baud=FAST) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        killer = Killer(line, agent, 2, "after")

        def wipe() -> None:
            if killer.killed and killer.up_again is None:
                shutil.rmtree(tmp_path / "state")
            killer()

        assert converse(station(book, patience=8.0), line.station, each=wipe).passed
    with pytest.raises((AssertionError, ValueError)):
        agree(tmp_path, book)


@pytest.mark.parametrize("count", [300, 2600, 4200, 5600, 6600])
def test_cable_pulled_in_the_middle_and_plugged_in_again(tmp_path: Path, count: int) -> None:
    """Neither end restarts: the station waits, the device keeps its half."""
    book = MemoryBook()
    with bench(baud=FAST) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        line.cut_after(count)
        pulled_at = time.monotonic()

        def plug_again() -> None:
            if time.monotonic() - pulled_at > 1.5:
                line.plug()

        assert converse(station(book), line.station, each=plug_again).passed
        agent.wait()
    agree(tmp_path, book)


def test_station_killed_and_another_process_goes_on(tmp_path: Path) -> None:
    book = MemoryBook()
    with bench(baud=FAST) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        first = station(book)

        def die() -> None:
            if first.state is Step.GRANTED:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            converse(first, line.station, each=die)
        after = copied(book)
        assert converse(station(after), line.station).passed
        agent.wait()
    assert list(after.offers) == list(book.offers)
    check(Card(tmp_path), after)


# Tools, reset ---------------------------------------------------------------------------------------------------------


def test_smpclient_reads_echo_and_os_info(tmp_path: Path) -> None:
    async def ask(port: str) -> list[Any]:
        async with SMPClient(SMPSerialTransport(), port, timeout_s=5.0) as client:
            requests = (
                EchoWrite(d="hello, line"),
                EchoWrite(d="x" * 900),
                OSApplicationInfoRead(format="a"),
                MCUMgrParametersRead(),
            )
            return [await client.request(r) for r in requests]

    with bench(baud=FAST) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        hello, long, info, parameters = asyncio.run(ask(line.station))
        book = MemoryBook()
        assert converse(station(book), line.station).passed, "a tool before does not disturb the station"
    assert success(hello)
    assert hello.r == "hello, line"
    assert success(long)
    assert long.r == "x" * 900
    assert success(info)
    assert "0001" in info.output
    assert "test-board" in info.output
    assert success(parameters)
    assert (parameters.buf_size, parameters.buf_count) == (2048, 4)


def test_factory_reset_of_a_locked_device_over_the_line(tmp_path: Path) -> None:
    book = MemoryBook()
    with bench(baud=FAST) as (line,), device(tmp_path, line.device) as agent:
        agent.start()
        assert converse(station(book), line.station).passed
        agent.wait()
        assert not agent.start_unless_locked()
        agent.start("--reset")
        assert converse(station(MemoryBook()), line.station).code is Code.LOCKED
        reset = FactoryReset(
            public=public(SIGNER),
            sign=lambda message: SIGNER.sign(message, CONTEXT),
            expect=lambda kid, _serial: book.offers[kid].commitment,
            random=os.urandom,
            clock=time.monotonic,
        )
        assert converse(reset, line.station).passed
        assert reset.result is not None
        assert reset.result.kid in book.offers
        again = MemoryBook("again")
        assert converse(station(again), line.station).passed, "the same process goes on with a new device"
        agent.wait()
    agree(tmp_path, again)

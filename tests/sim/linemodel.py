"""Serial noise devices behind real ptys: pyserial opens them like any port, and they break on demand.

The model keeps the slave side open, so a driver may close and open it like a real port; `unplug` closes both ends. A
pty has no modem lines and no speed, so what depends on the speed (the TrueRNG's knock) is told by the opener, see
`openers`.
"""

from __future__ import annotations

import os
import random
import select
import struct
import tempfile
import threading
import tty
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import serial

if TYPE_CHECKING:
    from collections.abc import Callable

HANG, SHORT, STUCK = "hang", "short", "stuck"


class Line:
    """A pty with a thread that plays the device. Subclasses answer in `received` and stream from `stream`."""

    ids = (0, 0)
    names: tuple[str | None, str | None, str | None] = (None, None, None)  # manufacturer, product, serial
    interfaces: tuple[str, ...] = ("02", "0a")  # CDC-ACM

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.fault: str | None = None
        self.sent: list[bytes] = []
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self._sysfs = tempfile.TemporaryDirectory()
        self.grow(*self.interfaces)
        self._queue = bytearray()
        self._lock = threading.RLock()  # tests and the thread both send
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    @property
    def port(self) -> SimpleNamespace:
        """What serial.tools.list_ports says about it."""
        return SimpleNamespace(
            device=self.path,
            vid=self.ids[0],
            pid=self.ids[1],
            manufacturer=self.names[0],
            product=self.names[1],
            serial_number=self.names[2],
            usb_device_path=self._sysfs.name,
        )

    def grow(self, *classes: str) -> None:
        """Add interfaces to what sysfs shows of the device."""
        device = Path(self._sysfs.name)
        for one in classes:
            interface = device / f"1-1:1.{len(list(device.iterdir()))}"
            interface.mkdir()
            (interface / "bInterfaceClass").write_text(one + "\n")

    def opened(self, baud: int) -> None:
        """The port was opened at this speed."""

    def received(self, data: bytes) -> None:
        """The host sent something."""

    def stream(self) -> bytes:
        """What a streaming device has now; empty while it does not stream."""
        return b""

    def send(self, data: bytes) -> None:
        """Queue an answer; half of it if the fault is `short`, none if it is `hang`."""
        with self._lock:
            if self.fault == HANG:
                return
            self._queue += data[: len(data) // 2] if self.fault == SHORT else data

    def noise(self, length: int) -> bytes:
        """Random bytes, or the same one for ever."""
        data = b"\x55" * length if self.fault == STUCK else self.random.randbytes(length)
        self.sent.append(data)
        return data

    def unplug(self) -> None:
        """Pull it out."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(2)
            os.close(self._master)
            os.close(self._slave)
            self._sysfs.cleanup()

    def _serve(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if not self._queue and self.fault != HANG:
                    self._queue += self.stream()
                wants = [self._master] if self._queue else []
            readable, writable, _ = select.select([self._master], wants, [], 0.01)
            with self._lock, suppress(BlockingIOError, OSError):
                if readable:
                    self.received(os.read(self._master, 4096))
                if writable:
                    del self._queue[: os.write(self._master, bytes(self._queue))]

    def flush(self) -> None:
        """Forget what was not sent."""
        with self._lock:
            self._queue.clear()


def openers(*lines: Line) -> Callable[..., serial.Serial]:
    """Return a replacement for serial.Serial: the real one, which also tells each model the speed it was opened at."""
    by_path = {line.path: line for line in lines}
    real = serial.Serial

    def opener(path: str, baud: int, **more: Any) -> serial.Serial:
        port = real(path, baud, **more)
        by_path[os.path.realpath(path)].opened(baud)
        return port

    return opener


class TrueRng(Line):
    """TrueRNG v1 to v3: streams, knows no commands."""

    ids = (0x04D8, 0xF5FE)
    names = ("ubld.it", "TrueRNG", None)

    def stream(self) -> bytes:
        return self.noise(256)


class TrueRngPro(TrueRng):
    """TrueRNGpro: the knock changes its mode; raw mode tags every byte."""

    ids = (0x16D0, 0x0AA0)
    names = ("ubld.it", "TrueRNGpro", None)

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.speeds: list[int] = []
        self.mode = 300
        self.deaf = False  # does not hear the knock
        self.generators: tuple[list[int], list[int]] = ([], [])

    def opened(self, baud: int) -> None:
        self.speeds.append(baud)
        if self.speeds[-4:-1] == [110, 300, 110] and not self.deaf:
            self.mode = baud
            self.flush()

    def stream(self) -> bytes:
        if self.mode != 19200:
            return super().stream()
        made = bytearray()
        for _ in range(64):
            pair = [0x155, 0x155] if self.fault == STUCK else [self.random.getrandbits(10) for _ in range(2)]
            for which, code in enumerate(pair):
                self.generators[which].append(code)
                made += bytes([which << 7 | code >> 6, which << 7 | 0x40 | code & 0x3F])
        return bytes(made)


class TrueRngProV2(TrueRngPro):
    """TrueRNGproV2."""

    ids = (0x04D8, 0xEBB5)
    names = ("ubld.it", "TrueRNGpro V2", None)


class OneRng(Line):
    """OneRNG: `cmd` and a letter."""

    ids = (0x1D50, 0x6086)
    names = ("Moonbase Otago http://www.moonbaseotago.com/random", "OneRNG", "00")

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.mode, self.running = 0, True
        self.commands: list[str] = []
        self._typed = ""

    def received(self, data: bytes) -> None:
        self._typed += data.decode("ascii", "replace")
        while (at := self._typed.find("cmd")) >= 0 and len(self._typed) > at + 3:
            letter, self._typed = self._typed[at + 3], self._typed[at + 4 :]
            self.commands.append(letter)
            self._do(letter)

    def _do(self, letter: str) -> None:
        if letter in "0123456789abcdefABCDEF":
            self.mode = int(letter, 16)
        elif letter in "Oo":
            self.running = letter == "O"
        elif letter == "w":
            self.flush()
        elif letter == "v" and self.running:
            self.send(b"\r\nVersion 2\r\n")

    def stream(self) -> bytes:
        return self.noise(64) if self.running and not self.mode & 4 else b""


class SwiftRng(Line):
    """SwiftRNG: one character asks, the answer ends in a status byte."""

    ids = (0x1FC9, 0x8110)
    names = ("TectroLabs", "SwiftRNG", None)

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.status = 0
        self.asked = ""
        self.texts = {"v": b"V2.0", "m": b"SwiftRNG", "s": b"SWRNG1234567890"}

    def received(self, data: bytes) -> None:
        for command in data.decode("ascii"):
            self.asked += command
            if command in "<>x":
                self.send(self.noise(16_000) + bytes([self.status]))
            elif command in self.texts:
                self.send(self.texts[command] + b"\0")
            elif command == "d":
                self.send(bytes([self.status]))


class QCicada(Line):
    """QCicada: binary commands at 1 Mbaud."""

    ids = (0x0403, 0x6015)
    names = ("FTDI", "FT231X USB UART", "DK0HFP4T")
    interfaces = ("ff",)

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.status = 0x01
        self.config = bytearray(struct.pack("<BfBBBHH", 0, 0.5, 0b11_1111, 4, 64, 512, 2048))
        self.hardware = b"CICADA-QRNG-1.1"
        self.stubborn = False  # keeps generate_on_error
        self.nack = False
        self.continuous = False
        self.got: list[int] = []
        self._in = bytearray()

    def received(self, data: bytes) -> None:
        self._in += data
        while self._in:
            length = {0x04: 4, 0x08: 13}.get(self._in[0], 1)
            if len(self._in) < length:
                return
            command, payload = self._in[0], bytes(self._in[1:length])
            del self._in[:length]
            self.got.append(command)
            self._do(command, payload)

    def _do(self, command: int, payload: bytes) -> None:
        acknowledged = b"\x11" + struct.pack("<BI", self.status, 4096)
        if self.nack:
            self.send(b"\x12")
        elif command == 0x05:
            self.continuous = False
            self.flush()
            self.send(acknowledged)
        elif command == 0x04:
            self.send(acknowledged)
            self.send(self.noise(struct.unpack("<BH", payload)[1]))
        elif command == 0x07:
            self.send(b"\x17" + self.config)
        elif command == 0x08:
            self.config[:] = payload
            self.config[5] |= 0b10_0000 if self.stubborn else 0
            self.send(acknowledged)
        elif command == 0x0B:
            self.send(b"\x1b" + struct.pack("<II24s24s", 1, 5 << 16 | 13, b"QC0000000217", self.hardware))

    def stream(self) -> bytes:
        return self.noise(256) if self.continuous else b""

"""An RP2040/RP2350 as far as the firmware touches it: ADC, DMA with chaining and ring, PWM, pins, USB device, watchdog.

For what the WebAssembly MicroPython cannot run. Time is virtual; the ADC counts 0, 1, 2 ... so that every sample that
is lost, doubled or written elsewhere shows. The DMA writes real memory and refuses addresses nobody gave it.
"""

from __future__ import annotations

import ctypes
import sys
import time
import types
from typing import TYPE_CHECKING, Any, ClassVar

import qrng

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

CS, FCS, FIFO, DIV, SET, CLEAR = 0x00, 0x08, 0x0C, 0x10, 0x2000, 0x3000
EN, START_MANY, READY, DREQ_EN, EMPTY = 1, 8, 1 << 8, 8, 1 << 8


class Reset(BaseException):
    """What machine.reset and machine.bootloader end in."""


class Chip:
    """One chip. Install it with `install`, then import the firmware."""

    def __init__(self, *, rp2350: bool = True) -> None:
        self.machine = "Raspberry Pi Pico 2 with RP2350" if rp2350 else "Raspberry Pi Pico with RP2040"
        self.adc, self.dreq = (0x400A0000, 48) if rp2350 else (0x4004C000, 36)
        self.us = 0
        self.registers = {CS: READY, FCS: EMPTY, DIV: 0}
        self.fifo: list[int] = []
        self.converted = 0
        self.channels: list[DMA] = []
        self.owned: list[tuple[int, int]] = []
        self.pins: dict[int, int] = {22: 1}
        self.duty = 0
        self.analog = {27: 28000, "die": 15000}
        self.unique = bytes.fromhex("e661640843218c2f")
        self.fed = 0
        self._owed = 0.0

    def rate(self) -> float:
        """Return conversions per second: 48 MHz over 1 + DIV."""
        return 48e6 / (1 + self.registers[DIV] / 256)

    def advance(self, us: int) -> None:
        """Let time pass and the ADC and DMA work."""
        self.us += us
        if not self.registers[CS] & START_MANY or not self.registers[CS] & EN:
            return
        self._owed += us * self.rate() / 1e6
        while self._owed >= 1:
            self._owed -= 1
            self._convert()

    def _convert(self) -> None:
        value = self.converted % 4096
        self.converted += 1
        busy = [c for c in self.channels if c.busy and c.treq == self.dreq]
        if busy and self.registers[FCS] & DREQ_EN:
            busy[0].transfer(value)
        else:
            self.fifo = [*self.fifo, value][-4:]

    def load(self, address: int) -> int:
        """mem32 read."""
        offset = address - self.adc
        if offset == FIFO:
            return self.fifo.pop(0) if self.fifo else 0
        if offset == FCS:
            return self.registers[FCS] & ~EMPTY | (0 if self.fifo else EMPTY)
        return self.registers[offset]

    def store(self, address: int, value: int) -> None:
        """mem32 write, with the atomic aliases."""
        offset = address - self.adc
        if offset >= CLEAR:
            self.registers[offset - CLEAR] &= ~value
        elif offset >= SET:
            self.registers[offset - SET] |= value
        else:
            self.registers[offset] = value | (READY if offset == CS else 0)


class Memory:
    """machine.mem32."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip

    def __getitem__(self, address: int) -> int:
        return self.chip.load(address)

    def __setitem__(self, address: int, value: int) -> None:
        self.chip.store(address, value)


class DMA:
    """rp2.DMA: halfword transfers, ring on the write side, chaining; nothing else is let through."""

    def __init__(self, chip: Chip) -> None:
        self.chip, self.channel = chip, len(chip.channels)
        chip.channels.append(self)
        self.write = self.count = self.reload = 0
        self.busy = self.enabled = False
        self.treq, self.ring, self.chain = -1, 0, self.channel

    def pack_ctrl(self, **fields: Any) -> dict[str, Any]:
        return fields

    def config(
        self,
        *,
        read: int | None = None,
        write: int | None = None,
        count: int | None = None,
        ctrl: dict[str, Any] | None = None,
        trigger: bool = False,
    ) -> None:
        if read is not None:
            assert read == self.chip.adc + FIFO
        if write is not None:
            self.write = write
        if count is not None:
            self.reload = count
        if ctrl is not None:
            self.enabled = ctrl.get("enable", True)
            self.chain = ctrl.get("chain_to", self.channel)
            if self.enabled:
                assert ctrl["size"] == 1
                assert ctrl["inc_read"] is False
                assert ctrl["ring_sel"] is True
                self.treq, self.ring = ctrl["treq_sel"], ctrl["ring_size"]
        if trigger:
            self.start()

    def active(self, value: bool | None = None) -> bool:
        if value:
            self.start()
        elif value is not None:
            assert not self.enabled, "RP2350-E5: disable and unchain before the abort"
            self.busy = False
        return self.busy

    def start(self) -> None:
        assert self.enabled
        self.busy, self.count = True, self.reload

    def transfer(self, value: int) -> None:
        assert any(low <= self.write < high for low, high in self.chip.owned), "DMA wrote outside its buffer"
        ctypes.c_uint16.from_address(self.write).value = value
        size = 1 << self.ring
        self.write = self.write - self.write % size + (self.write + 2) % size
        self.count -= 1
        if self.count == 0:
            self.busy = False
            if self.chain != self.channel:
                self.chip.channels[self.chain].start()


class USBDevice:
    """machine.USBDevice: keeps what it was configured with and lets a test be the host."""

    BUILTIN_NONE: ClassVar[str] = "none"
    builtin_driver = "default"

    def __init__(self) -> None:
        self.is_active = False
        self.submitted: list[tuple[int, bytes]] = []
        self.callbacks: dict[str, Callable[..., Any]] = {}
        self.descriptors: tuple[Any, ...] = ()

    def config(self, device: bytes, configuration: bytes, strings: Any, **callbacks: Callable[..., Any]) -> None:
        self.descriptors, self.callbacks = (device, configuration, strings), callbacks

    def active(self, value: bool) -> None:
        self.is_active = value

    def submit_xfer(self, endpoint: int, buffer: bytearray) -> bool:
        self.submitted.append((endpoint, bytes(buffer)))
        return True

    def control(self, setup: bytes, data: bytes = b"") -> bytes | None:
        """Be the host: one control transfer through its three stages."""
        callback = self.callbacks["control_xfer_cb"]
        answer = callback(1, memoryview(setup))
        if answer is False:
            return None
        if isinstance(answer, bytearray) and data:
            answer[:] = data
        assert callback(2, memoryview(setup)) is True
        assert callback(3, memoryview(setup)) is True
        return b"" if answer is True else bytes(answer)

    def complete(self) -> None:
        """Be the host: take the frame that was submitted last."""
        self.callbacks["xfer_cb"](self.submitted[-1][0], 0, 1024)


class _OnChip:
    """What machine makes: it finds its chip through its class, for the firmware does not name one."""

    chip: ClassVar[Chip]


class Pin(_OnChip):
    """machine.Pin."""

    IN, OUT, PULL_UP = 0, 1, 2

    def __init__(self, number: int, *_mode: int, value: int | None = None) -> None:
        self.number = number
        if value is not None:
            self.chip.pins[number] = value

    def value(self, new: int | None = None) -> int:
        if new is not None:
            self.chip.pins[self.number] = new
        return self.chip.pins.get(self.number, 0)


class ADC(_OnChip):
    """machine.ADC."""

    CORE_TEMP = "die"

    def __init__(self, pin: Any) -> None:
        self.key = pin.number if isinstance(pin, Pin) else pin

    def read_u16(self) -> int:
        assert not self.chip.registers[CS] & START_MANY, "a single reading during free-running conversion"
        return self.chip.analog[self.key]


class PWM(_OnChip):
    """machine.PWM: there is one, on the LED."""

    def __init__(self, _pin: Pin, *, freq: int, duty_u16: int) -> None:
        assert freq > 0
        self.chip.duty = duty_u16

    def duty_u16(self, duty: int) -> None:
        self.chip.duty = duty


class WDT(_OnChip):
    """machine.WDT."""

    def __init__(self, *, timeout: int) -> None:
        assert timeout <= 8388  # RP2040's longest

    def feed(self) -> None:
        self.chip.fed += 1


def install(monkeypatch: pytest.MonkeyPatch, chip: Chip) -> USBDevice:
    """Put fake machine, rp2 and uctypes in place, and MicroPython's additions to time and os."""
    usb = USBDevice()

    def bootloader() -> None:
        raise Reset

    def addressof(buffer: bytearray) -> int:
        address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
        chip.owned.append((address, address + len(buffer)))
        return address

    names: dict[str, dict[str, Any]] = {
        "machine": {
            **{cls.__name__: type(cls.__name__, (cls,), {"chip": chip}) for cls in (Pin, ADC, PWM, WDT)},
            "mem32": Memory(chip),
            "bootloader": bootloader,
            "USBDevice": lambda: usb,
            "unique_id": lambda: chip.unique,
        },
        "rp2": {"DMA": lambda: DMA(chip)},
        "uctypes": {"addressof": addressof},
    }
    for name, contents in names.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(time, "ticks_us", lambda: chip.us % (1 << 30), raising=False)
    monkeypatch.setattr(time, "ticks_diff", _ticks_diff, raising=False)
    monkeypatch.setattr("os.uname", lambda: ("rp2", "rp2", "1.29.0", "v1.29.0", chip.machine))
    for name in ("sampler", "light", "front", "link", "startup"):  # each test imports its own, bound to this chip
        monkeypatch.delitem(sys.modules, f"qrng.{name}", raising=False)
        monkeypatch.delattr(qrng, name, raising=False)
    return usb


def _ticks_diff(a: int, b: int) -> int:
    half = 1 << 29
    return (a - b + half) % (1 << 30) - half

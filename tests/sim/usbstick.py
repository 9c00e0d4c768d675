"""The edgeseal stick as a USB device model: descriptors, class requests and the ESQ1 stream.

`Stick` writes its own frames, so that a test can forge, repeat and damage each; its seeded Gaussian says that it
is hardware unless a test wants otherwise, for nothing else could tell. `FirmwareStick` is the firmware's own core over
the noise model: what a real stick would answer.
"""

from __future__ import annotations

import errno
import struct
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tests.sim.stickmodel import SimulatedStick
from tests.sim.usbmodel import STUCK, Device, usb_error

from edgeseal.stick import frame, mac, messages

if TYPE_CHECKING:
    from collections.abc import Callable

K_STICK = bytes(range(32))
UNIQUE_ID = bytes.fromhex("e6614c311b3a2c21")
RATE = 20_000
MEAN, SIGMA = 2048, 68.7


class Stick(Device):
    """A stick; `simulated=False` makes it claim to be real hardware, as a liar would."""

    ids = (messages.VENDOR_ID, messages.PRODUCT_ID)
    strings = (None, messages.MANUFACTURER, messages.PRODUCT, UNIQUE_ID.hex(), messages.INTERFACE)
    names = (1, 2, 3)
    interface = (0xFF, 0x51, 0x01, 4)
    endpoints = ((messages.ENDPOINT_IN, messages.PACKET_LENGTH),)

    def __init__(self, seed: int = 1, *, k_stick: bytes | None = K_STICK, simulated: bool = False) -> None:
        super().__init__(seed)
        self.k_stick = k_stick
        self.simulated = simulated
        self.boot_id = 0x1234ABCD
        self.seq, self.samples, self.t_us = 0, 0, 1_000_000
        self.key: mac.Hmac | None = None
        self.streaming = False
        self.sweep = False
        self.light = True
        self.flags = frame.LED_ON | frame.STARTUP_OK
        self.source_class = messages.QUANTUM
        self.h_claim = 4 * 256
        self.forge: Callable[[bytes], bytes] = bytes  # what an attacker on the cable does to each frame
        self.buffer = bytearray()
        self.taken: list[array[int]] = []

    def info(self) -> messages.Info:
        features = messages.PAIRED if self.k_stick else 0
        return messages.Info(
            firmware=(1, 2, 3),
            unique_id=UNIQUE_ID,
            bits=12,
            source_class=self.source_class,
            h_claim=self.h_claim,
            rate=RATE,
            levels=(8000, 16000, 32000, 48000),
            nominal=3,
            board=messages.RP2350,
            features=features | (messages.INFO_SIMULATED if self.simulated else 0),
            boot_id=self.boot_id,
            firmware_hash=bytes(16),
        )

    def control(self, kind: int, request: int, value: int, index: int, data: bytes, length: int) -> bytes:
        setup = messages.Setup.accept(struct.pack("<BBHHH", kind, request, value, index, length or len(data)))
        if setup is None:
            raise usb_error(errno.EPIPE)
        if request == messages.GET_INFO:
            return self.info().encode()
        if request == messages.SET_STREAM:
            self.streaming = value != messages.STOP
        elif request == messages.SET_NONCE:
            self.seq = self.samples = 0
            if self.k_stick:
                self.key = mac.Hmac(mac.session_key(self.k_stick, data, self.boot_id, UNIQUE_ID.hex()))
        elif request == messages.RUN_CAL:
            self.sweep = True
        return b""

    def bulk_in(self, _endpoint: int, length: int) -> bytes:
        if not self.streaming and not self.buffer:
            raise usb_error(errno.ETIMEDOUT)
        while len(self.buffer) < length:
            self.buffer += self.forge(self.next_frame())
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        return data

    def next_frame(self) -> bytes:
        """The next frame of the stream: a sweep if one was asked for, else samples."""
        if self.sweep:
            self.sweep = False
            payload = messages.encode_sweep([self._record(led) for led in range(frame.LEVELS)])
            return self._sealed(frame.CAL, payload, 0)
        codes = array("H", self._codes(frame.SAMPLES))
        self.taken.append(codes)
        return self._sealed(frame.RAW, struct.pack(f"<{len(codes)}H", *codes), frame.SAMPLES)

    def _sealed(self, kind: int, payload: bytes, count: int) -> bytes:
        made = frame.encode(
            kind=kind,
            flags=self.flags | (frame.SIMULATED if self.simulated else 0),
            boot_id=self.boot_id,
            seq=self.seq,
            t_us=self.t_us,
            first_sample=self.samples,
            payload=payload,
            led=3,
            key=self.key,
        )
        self.seq, self.samples, self.t_us = self.seq + 1, self.samples + count, self.t_us + 24_000
        return made

    def _codes(self, count: int) -> list[int]:
        if self.fault == STUCK:
            return [MEAN] * count
        return [min(4095, max(0, round(self.random.gauss(MEAN, SIGMA)))) for _ in range(count)]

    def _record(self, led: int) -> messages.Record:
        """Sums of 16,384 samples at one level, after entropy.md 4.2: 16.5 LSB dark, shot noise above."""
        current = led * 400 if self.light else 0
        spread = (16.5**2 + 66.7**2 * led / 3) ** 0.5 if self.light else 16.5
        codes = [round(self.random.gauss(MEAN, spread)) for _ in range(16_384)]
        return messages.Record(
            led=led,
            count=len(codes),
            total=sum(codes),
            squares=sum(c * c for c in codes),
            products=sum(a * b for a, b in pairwise(codes)),
            v_dc=400 + current,
            saturated=0,
            low=min(codes),
            high=max(codes),
        )


class FirmwareStick(Device):
    """The firmware's core behind the descriptors; the arguments are those of stickmodel.SimulatedStick."""

    ids, names, interface, endpoints = Stick.ids, Stick.names, Stick.interface, Stick.endpoints

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.core = SimulatedStick(**{"k_stick": K_STICK, "simulated": False, **more})
        self.strings = (None, messages.MANUFACTURER, messages.PRODUCT, self.core.serial, messages.INTERFACE)

    def control(self, kind: int, request: int, value: int, index: int, data: bytes, length: int) -> bytes:
        setup = struct.pack("<BBHHH", kind, request, value, index, length or len(data))
        answer = self.core.control(setup, data)
        if answer is None:
            raise usb_error(errno.EPIPE)
        return answer

    def bulk_in(self, _endpoint: int, length: int) -> bytes:
        made = self.core.frame()
        if not made:
            raise usb_error(errno.ETIMEDOUT)
        assert length % len(made) == 0
        return made

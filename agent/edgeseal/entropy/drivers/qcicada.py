"""Crypta Labs QCicada / Firefly: LED and photodiode, class quantum on the vendor's word; read as its raw noise.

Protocol (PyPI `qcicada` 0.2.2: protocol.py, types.py, serial.py): FTDI serial port at 1 Mbaud without an id of its own,
so only ports the operator named are asked. Commands 01 status, 04 start, 05 stop, 07/08 get/set configuration, 0B info;
an acknowledgement is 0x11, flags, u32 bytes ready. The device runs SP 800-90B tests itself and reports them in flags.

Every opening switches its tests on and `generate_on_error` off, and reads the configuration back to see that it holds.
Claim: half of each byte of raw noise.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Hung, Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.line import Line, SerialDriver
from edgeseal.stick.frame import APT_ALARM, RCT_ALARM, STARTUP_OK

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Description

PROFILE: Final = Profile("qcicada", "quantum", "vendor")
RAW: Final = Symbols(bits=8, claim=4.0, raw=True)
COOKED: Final = Symbols(bits=8, claim=4.0, raw=False)
BAUD: Final = 1_000_000
FRAME: Final = 512
STATUS, START, STOP, GET_CONFIG, SET_CONFIG, INFO = 0x01, 0x04, 0x05, 0x07, 0x08, 0x0B
ACK, NACK = 0x11, 0x12
ANSWERS: Final = {START: ACK, STOP: ACK, SET_CONFIG: ACK, STATUS: ACK, GET_CONFIG: 0x17, INFO: 0x1B}
LENGTHS: Final = {ACK: 5, 0x17: 12, 0x1B: 56}
HARDWARE: Final = "CICADA"
_ONE_SHOT: Final = 1
_QUIET, _ANSWER_TIMEOUT = 0.05, 0.5

SHA256, RAW_NOISE = 0, 1  # post-processing
_INITIALISED, _TESTING, _VOLTAGE, _BITS, _RCT, _APT = 0x01, 0x02, 0x1C, 0x20, 0x40, 0x80
_CONFIG: Final = "<BfBBBHH"
_TESTS: Final = 0b01_1101  # start-up, repetition, proportion and bit count tests on
_CALIBRATES: Final = 0b00_0010
_GENERATE_ON_ERROR: Final = 0b10_0000


@dataclass(frozen=True, slots=True)
class Config:
    """The 12-byte configuration; what is not named here is written back as it was read."""

    processing: int
    switches: int
    rest: tuple[float, int, int, int, int]  # level, LSBs per sample, hash input, block size, calibration target

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """Return the configuration in exactly 12 bytes. Raises ValueError."""
        if len(data) != struct.calcsize(_CONFIG):
            raise ValueError(f"a configuration has {struct.calcsize(_CONFIG)} bytes, not {len(data)}")
        processing, level, switches, bits, hashed, block, target = struct.unpack(_CONFIG, data)
        return cls(processing, switches, (level, bits, hashed, block, target))

    def encode(self) -> bytes:
        """Return the 12 bytes."""
        level, *others = self.rest
        return struct.pack(_CONFIG, self.processing, level, self.switches, *others)

    def strict(self, processing: int) -> Config:
        """Return it with every test on and nothing generated on error."""
        return replace(self, processing=processing, switches=self.switches & _CALIBRATES | _TESTS)

    def is_strict(self, processing: int) -> bool:
        """Whether the device took `strict`: bits we do not know may differ, these may not."""
        tested = self.switches & (_TESTS | _GENERATE_ON_ERROR) == _TESTS
        return tested and self.processing == processing


@dataclass(frozen=True, slots=True)
class Info:
    """The 56-byte identification."""

    firmware: int
    serial: str
    hardware: str

    @classmethod
    def decode(cls, data: bytes) -> Info:
        """Return the identification in exactly 56 bytes. Raises ValueError."""
        if len(data) != LENGTHS[0x1B]:
            raise ValueError(f"an identification has {LENGTHS[0x1B]} bytes, not {len(data)}")
        _core, firmware, serial, hardware = struct.unpack("<II24s24s", data)
        return cls(firmware, _text(serial), _text(hardware))


class QCicada(SerialDriver):
    """An open QCicada."""

    def __init__(self, description: Description, options: Options) -> None:
        """Stop whatever streamed, identify the device, configure it. Raises DriverError."""
        super().__init__(Line(description.path, BAUD), PROFILE, description)
        self.symbols = COOKED if options.conditioned else RAW
        self._behind = False
        try:
            info = self._identify()
            self._configure(SHA256 if options.conditioned else RAW_NOISE)
            firmware = f"{info.hardware} {info.firmware >> 16}.{info.firmware & 0xFFFF} {info.serial}"
            self._description = replace(description, firmware=firmware)  # the serial stays the cable's: an identity
        except BaseException:
            self.close()
            raise

    def read(self, *, timeout: float) -> Reading:
        """Return 512 bytes with the device's own test results as flags. Raises DriverError."""
        deadline = time.monotonic() + timeout
        if self._behind:  # the rest of an answer that was late would be taken for the next one
            self._line.write(bytes([STOP]))
            self._line.drain(quiet=min(_QUIET, timeout / 4), at_most=timeout / 2)
        self._behind = True
        flags = self._flags(self._ask(START, struct.pack("<BH", _ONE_SHOT, FRAME), timeout=timeout / 2)[0])
        data = self._line.read_exact(FRAME, timeout=deadline - time.monotonic())
        self._behind = False
        return Reading(data, flags=flags)

    def _identify(self) -> Info:
        self._line.write(bytes([STOP]))
        if not self._line.drain(quiet=_QUIET):
            raise self._refused("does not stop sending: no QCicada")
        info = Info.decode(self._ask(INFO))
        if not info.hardware.startswith(HARDWARE):
            raise self._refused(f"calls its hardware {info.hardware!r}: no QCicada")
        return info

    def _configure(self, processing: int) -> None:
        self._ask(SET_CONFIG, Config.decode(self._ask(GET_CONFIG)).strict(processing).encode())
        if not Config.decode(self._ask(GET_CONFIG)).is_strict(processing):
            raise self._refused("keeps generating on errors, or did not switch its tests on")

    def _flags(self, status: int) -> int:
        """Translate the status byte. Raises Refused for what makes every sample worthless."""
        if status & _TESTING or not status & _INITIALISED:
            raise Hung(f"{self._line.path}: still in its start-up test")
        if status & (_VOLTAGE | _BITS):
            raise self._refused(f"reports status {status:#04x}: its own voltage or bit count test failed")
        alarms = (RCT_ALARM if status & _RCT else 0) | (APT_ALARM if status & _APT else 0)
        return STARTUP_OK | alarms

    def _ask(self, command: int, payload: bytes = b"", *, timeout: float = _ANSWER_TIMEOUT) -> bytes:
        """Send one command and return the payload of its answer."""
        self._line.write(bytes([command]) + payload)
        code = self._line.read_exact(1, timeout=timeout)[0]
        if code != ANSWERS[command]:
            what = "refused" if code == NACK else f"answered with {code:#04x}"
            raise self._refused(f"{what} command {command:#04x}")
        return self._line.read_exact(LENGTHS[code], timeout=timeout)

    def _refused(self, what: str) -> Refused:
        return Refused(f"{self._line.path}: {what}")


def _text(raw: bytes) -> str:
    text = raw.split(b"\0")[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)

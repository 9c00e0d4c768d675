"""A simulated stick: the firmware's own core over a noise model, so that a test talks to what the chip would run.

    stick = SimulatedStick(fault="hum", fault_from=20)
    stick.control(setup_packet, data)   -> answer, b"" or None for STALL
    stick.frame()                       -> the next 1024 bytes of the bulk endpoint, b"" if there is nothing to send

Time is virtual: it passes by the samples that are taken, never by a clock. The noise is numpy's and therefore no noise
at all; every frame carries the SIMULATED flag unless a test asks to see what a flagless liar would get.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from edgeseal.stick import frame, mac, messages
from qrng.core import BITS, NOMINAL, RATE, Identity, Stick
from qrng.interface import Front

if TYPE_CHECKING:
    import numpy.typing as npt

# Levels in ADC codes of 3.0 V / 4096 (hw/qrng_stick, compared in test_noise_model.py).
CURRENTS: Final = (0.0, 2.5, 5.0, 10.0, 20.0)  # microampere at LED off, L1 to L4
DARK_SIGMA: Final = 17.38
SHOT_VARIANCE: Final = 450.3  # codes^2 per microampere
DARK_MONITOR: Final = 409.6  # bias of the transimpedance stage at the monitor, codes
MONITOR: Final = 136.53  # codes per microampere
LAG: Final = -0.018  # correlation of neighbours
MIDDLE: Final = 2048
SIGMA: Final = math.sqrt(DARK_SIGMA**2 + SHOT_VARIANCE * CURRENTS[NOMINAL])
SLOPE: Final = SHOT_VARIANCE / (16 * MONITOR)  # codes^2 per 1/16 code of the monitor, as calibration.Fit has it

BLOCK_US: Final = frame.SAMPLES * 1_000_000 // RATE
REPLAYED: Final = 10  # frames in the loop of a replaying front end
_BATCH: Final = 64  # blocks drawn from numpy at once
UNIQUE_ID: Final = bytes.fromhex("e661640843218c2f")

# fault name -> what the front end then does
FAULTS: Final = {
    "led-dead": "dark noise only",
    "dim": "a third of the photocurrent: the LED has aged",
    "drift": "the spread is 25 % too wide",
    "intensity-noise": "LED noise that is quadratic in the photocurrent dominates",
    "constant": "one value for ever",
    "stuck-bit-0": "bit 0 is always 1",
    "stuck-bit-4": "bit 4 is always 1",
    "stuck-bit-7": "bit 7 is always 1",
    "saturated": "the amplifier sits at the upper rail",
    "hum": "150 codes of 50 Hz",
    "offset": "the mean is 120 codes too high",
    "replay": f"the last {REPLAYED} blocks again and again, under fresh sequence numbers",
    "gap": "every tenth block is lost",
    "slow": "the sampling clock is 5 % slow",
}


class SimulatedFront(Front):
    """The noise model behind the interface that the firmware's core wants of its hardware."""

    def __init__(self, *, seed: int = 0, fault: str | None = None, fault_from: int = 0, simulated: bool = True) -> None:
        """`fault` (a key of FAULTS) begins with block number `fault_from`."""
        self.simulated = simulated
        self._drawn: list[bytes] = []
        self.blocks = 0  # taken since power-up
        self.suffer(fault, fault_from)
        self.overruns = 0
        self.strap = False
        self.alarmed = False
        self.in_bootloader = False
        self._level = NOMINAL
        self._random = np.random.default_rng(seed)
        self._recent: list[bytes] = []
        self._sample = 0
        self._us = 0

    def suffer(self, fault: str | None, fault_from: int = 0) -> None:
        """Begin a fault, or end it (None), with the next block or with block number `fault_from`."""
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}: there are {', '.join(FAULTS)}")
        self.fault, self.fault_from = fault, fault_from
        self._drawn = []

    @property
    def faulty(self) -> bool:
        """Whether the fault is there by now."""
        return self.fault is not None and self.blocks >= self.fault_from

    def take(self) -> tuple[bytearray, int, int]:
        """Return the next block, the number of its first sample and its time."""
        if not self._drawn or self.blocks == self.fault_from:
            self._drawn = self._draw()
        block = self._drawn.pop()
        if self.faulty and self.fault == "gap" and self.blocks % 10 == 0:
            self._pass(1)
            self.overruns += 1
        if self.faulty and self.fault == "replay" and self._recent:
            block = self._recent[self.blocks % len(self._recent)]
        else:
            self._recent = [*self._recent[1 - REPLAYED :], block]
        first = self._sample
        self._pass(1)
        self.blocks += 1
        return bytearray(block), first, self._us

    def restart(self) -> None:
        """Begin a new run; the first 16 samples after a start are dropped, as on the chip."""
        self._sample += 16
        self._drawn = []

    def led(self, level: int) -> None:
        """Set the LED level."""
        self._level = level
        self._drawn = []

    def alarm(self, on: bool) -> None:
        """Show the alarm pattern."""
        self.alarmed = on

    def monitor(self) -> int:
        """Return the photocurrent monitor in 1/16 ADC code."""
        return round(16 * (DARK_MONITOR + MONITOR * self._current()))

    def temperature(self) -> int:
        """Return 31.25 degrees C."""
        return 3125

    def now_us(self) -> int:
        """Return the virtual time."""
        return self._us

    def strapped(self) -> bool:
        """Return whether the strap is closed."""
        return self.strap

    def bootloader(self) -> None:
        """Leave for the boot ROM."""
        self.in_bootloader = True

    def _pass(self, blocks: int) -> None:
        self._sample += blocks * frame.SAMPLES
        slower = 1.05 if self.faulty and self.fault == "slow" else 1.0
        self._us += round(blocks * BLOCK_US * slower)

    def _current(self) -> float:
        """Return the photocurrent in microampere."""
        current = CURRENTS[self._level]
        if self.faulty and self.fault == "led-dead":
            return 0.0
        return current / 3 if self.faulty and self.fault == "dim" else current

    def _sigma(self) -> float:
        current = self._current()
        variance = DARK_SIGMA**2 + SHOT_VARIANCE * current
        if self.faulty and self.fault == "intensity-noise":
            variance += SHOT_VARIANCE * current**2 / 4
        return math.sqrt(variance) * (1.25 if self.faulty and self.fault == "drift" else 1.0)

    def _draw(self) -> list[bytes]:
        """Draw a batch of blocks, the last one to be used first."""
        n = _BATCH * frame.SAMPLES
        white = self._random.standard_normal(n + 1)
        noise = (white[1:] + LAG * white[:-1]) / math.sqrt(1 + LAG**2)
        signal = MIDDLE + self._sigma() * noise
        codes = np.clip(np.rint(self._disturbed(signal)), 0, (1 << BITS) - 1).astype("<u2")
        if self.faulty and self.fault is not None and self.fault.startswith("stuck-bit-"):
            codes |= 1 << int(self.fault[-1])
        return [row.tobytes() for row in codes.reshape(_BATCH, frame.SAMPLES)][::-1]

    def _disturbed(self, signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Apply the faults that change the analogue signal."""
        if not self.faulty:
            return signal
        if self.fault == "constant":
            return signal * 0 + MIDDLE
        if self.fault == "saturated":
            return signal + 4096
        if self.fault == "offset":
            return signal + 120
        if self.fault == "hum":
            time = (self._sample + np.arange(len(signal), dtype=np.float64)) / RATE
            hum: npt.NDArray[np.float64] = 150 * np.sin(2 * math.pi * 50 * time)
            return signal + hum
        return signal


class SimulatedStick:
    """The whole stick as the host sees it: control requests, bulk frames, descriptors (edgeseal.stick.messages)."""

    def __init__(
        self,
        *,
        seed: int = 0,
        fault: str | None = None,
        fault_from: int = 0,
        simulated: bool = True,
        k_stick: bytes | None = None,
        unique_id: bytes = UNIQUE_ID,
        boot_id: int = 1,
    ) -> None:
        """`fault_from` counts blocks since power-up, also those of a calibration (see SimulatedFront)."""
        self.front = SimulatedFront(seed=seed, fault=fault, fault_from=fault_from, simulated=simulated)
        identity = Identity(
            unique_id=unique_id,
            board=messages.RP2350,
            boot_id=boot_id,
            levels=(9000, 13000, 21000, 37000),
            firmware_hash=bytes(range(16)),
        )
        self.core = Stick(identity, self.front, k_stick)
        self.serial = unique_id.hex()

    def control(self, setup: bytes, data: bytes = b"") -> bytes | None:
        """Carry out one control transfer; return the data of an IN request, b"" for OUT, None for STALL."""
        answer = self.core.request(setup)
        if answer is None:
            return None
        if isinstance(answer, bytearray):  # OUT data stage
            if len(data) != len(answer):
                return None
            answer[:] = data
            answer = b""
        self.core.commit(setup)
        return bytes(answer)

    def frame(self) -> bytes:
        """Return the next frame of the bulk endpoint, b"" if the stick is idle."""
        for _ in range(4096):  # a sweep takes about 100 blocks
            sent = self.core.step()
            if sent is not None:
                return bytes(sent)
            if not self.core.busy:
                break
        return b""

    def start(self, *, nonce: bytes | None = None, mode: int = messages.STREAM_RAW, seconds: int = 0) -> None:
        """Do what a host does first: a nonce if it has one, then the stream."""
        if nonce is not None:
            self.control(messages.Setup(messages.SET_NONCE, 0, 0, mac.NONCE_LENGTH).encode(), nonce)
        self.control(messages.Setup(messages.SET_STREAM, mode, seconds, 0).encode())

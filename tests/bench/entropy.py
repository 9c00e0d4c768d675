"""What a stick's samples cost the agent: microseconds per frame of 480 samples, and what a draw costs a caller.

The floor is what any reader of authenticated frames must do: CRC-32 and HMAC-SHA-256 over 1024 bytes. `path` is all of
it: decode, CRC, MAC, sequence, RCT, APT, model, repeated frames, conditioning, pool. Best of several rounds.
"""

from __future__ import annotations

import random
import struct
import time
import zlib
from typing import TYPE_CHECKING, Final

from edgeseal.entropy import Mixer, Policy, battery
from edgeseal.entropy.conditioner import Conditioner
from edgeseal.entropy.drivers.base import Calibration, Description, Profile, Reading, Symbols
from edgeseal.entropy.monitor import Monitor
from edgeseal.entropy.pool import Pool
from edgeseal.entropy.session_log import SessionLog
from edgeseal.entropy.snapshot import State
from edgeseal.stick import frame, mac

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

FRAMES: Final = 400
ROUNDS: Final = 5
SYMBOLS: Final = Symbols(12, 4.0, raw=True)
MEAN, SIGMA = 2048.0, 68.7
KEY: Final = mac.Hmac(bytes(range(32)))
RATE: Final = 20_000  # samples per second of the stick
PI_ZERO: Final = 20  # times slower than a workstation's core, a careful guess (shared design: entropy, 2.3)


def measure() -> dict[str, object]:
    """Return microseconds per frame, the parts as shares of the floor, and microseconds per draw."""
    frames = _frames()
    decoded = [frame.decode(f).samples() for f in frames]
    floor = _per_frame(lambda: [_floor(f) for f in frames])
    decode = _per_frame(lambda: [frame.decode(f).authentic(KEY) for f in frames])
    tests = _per_frame(lambda: _tests(decoded))
    conditioning = _per_frame(lambda: _condition(decoded))
    path = _per_frame(lambda: _path(frames))
    return {
        "floor_us_per_frame": round(floor, 1),
        "decode_and_mac_us_per_frame": round(decode, 1),
        "health_tests_us_per_frame": round(tests, 1),
        "conditioning_us_per_frame": round(conditioning, 1),
        "path_us_per_frame": round(path, 1),
        "path_per_floor": round(path / floor, 1),
        "streaming_share_of_a_core": round(path * 1e-6 * RATE / frame.SAMPLES, 4),
        "streaming_share_of_a_pi_zero": round(PI_ZERO * path * 1e-6 * RATE / frame.SAMPLES, 3),
        "draw_us_os_only": round(_draw(blocks=False), 1),
        "draw_us_with_a_block": round(_draw(blocks=True), 1),
    }


def _frames() -> list[bytes]:
    """A stream as a paired stick sends it."""
    noise = random.Random(1)
    made = []
    for n in range(FRAMES):
        codes = [min(4095, max(0, int(noise.gauss(MEAN + 0.5, SIGMA)))) for _ in range(frame.SAMPLES)]
        made.append(
            bytes(
                frame.encode(
                    kind=frame.RAW, flags=frame.LED_ON | frame.STARTUP_OK, boot_id=1, seq=n, t_us=1 + 24_000 * n,
                    first_sample=n * frame.SAMPLES, payload=struct.pack(f"<{len(codes)}H", *codes), led=3, key=KEY,
                )
            )
        )  # fmt: skip
    return made


def _per_frame(work: Callable[[], object]) -> float:
    best = min(_seconds(work) for _ in range(ROUNDS))
    return 1e6 * best / FRAMES


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _floor(data: bytes) -> object:
    return zlib.crc32(data[:-4]), KEY.tag(data[: frame.SIGNED_LENGTH])


def _tests(frames: list[array[int]]) -> None:
    model = battery.gaussian_model(MEAN, SIGMA, 12)
    running = battery.Continuous(SYMBOLS, model)
    for samples in frames:
        if alarms := running.feed(samples):
            raise RuntimeError(f"a false alarm: {alarms}")


def _condition(frames: list[array[int]]) -> None:
    conditioner = Conditioner("stick", SYMBOLS.claim)
    for samples in frames:
        conditioner.feed(samples)


def _path(frames: list[bytes]) -> None:
    """From 1024 bytes of the endpoint to blocks in the pool."""
    monitor, pool = Monitor("stick", log=SessionLog("stick")), Pool()
    description = Description("edgeseal-qrng", "usb:1-1", serial="0")
    profile = Profile("edgeseal-qrng", "quantum", "model+calibration")
    monitor.opened(description, profile, SYMBOLS, calibrates=True)
    for n, data in enumerate(frames):
        got = frame.decode(data)
        if not got.authentic(KEY):
            raise RuntimeError("a frame of ours does not verify")
        if monitor.calibration_due():
            monitor.calibrated(Calibration(MEAN, SIGMA, 272.0, 4.3, 0.0, 0.0, 12.1), 0.024 * n)
        for block in monitor.reading(Reading(got.samples(), got.first_sample, got.t_us, got.flags), 0.024 * n).blocks:
            pool.put(block)
    if monitor.state is not State.HEALTHY:
        raise RuntimeError(f"the source is {monitor.state}: {monitor.snapshot.reason}")


class _Ready:
    """A source that always has a block."""

    profile = Profile("stick", "quantum", "model+calibration")

    def __init__(self) -> None:
        self._random = random.Random(2)

    def block(self, *, timeout: float) -> bytes:  # noqa: ARG002 - never waits
        return self._random.randbytes(64)


def _draw(*, blocks: bool) -> float:
    mixer = Mixer([_Ready()] if blocks else [], policy=Policy.MIX)
    return 1e6 * min(_seconds(lambda: [mixer.draw("bench", 64) for _ in range(FRAMES)]) for _ in range(ROUNDS)) / FRAMES

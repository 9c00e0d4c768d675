"""Feeding the kernel's pool, because HPKE encapsulation takes its coins from there and from nowhere else.

Written without credit, which needs no privilege (Linux drivers/char/random.c). Two things need CAP_SYS_ADMIN and are
tried only when configured: RNDADDENTROPY counts what is written, at most for half of its length, and RNDRESEEDCRNG lets
it reach the output at once instead of within a minute. Nothing here polls /dev/random or reads entropy_avail: since
Linux 5.18 both say nothing, and writers that wait for POLLOUT hang for ever.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.session_log import SessionLog
from edgeseal.errors import EntropyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.entropy.mixer import Mixer

_RNDADDENTROPY: Final = 0x40085203  # include/uapi/linux/random.h
_RNDRESEEDCRNG: Final = 0x5207
RANDOM_DEVICE: Final = Path("/dev/random")
FEED_LENGTH: Final = 64  # bytes: 512 bits are all that the kernel's generator holds
NO_SOURCE: Final = "kernel: not fed, no source gave a block"


def feed(block: bytes, *, device: Path = RANDOM_DEVICE, credit_bits: int = 0, reseed: bool = False) -> str:
    """Mix `block` into the kernel's pool; return a line for the record. Never fails: the pool only gains.

    `credit_bits` is cut to half the block's length; a denied credit is written without.
    """
    credit_bits = min(credit_bits, 4 * len(block))
    done = "kernel: fed"
    try:
        fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        return f"kernel: not fed, {_name(e)}"
    try:
        if credit_bits > 0:
            done = _credited(fd, block, credit_bits)
        else:
            os.write(fd, block)
    except OSError as e:
        os.close(fd)
        return f"kernel: not fed, {_name(e)}"
    try:
        if reseed:
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
            done += " and reseeded"
    except OSError as e:
        done += f", reseed denied ({_name(e)})"
    finally:
        os.close(fd)
    return done


def _credited(fd: int, block: bytes, bits: int) -> str:
    """Write with credit, or without where that is denied. Raises OSError if neither works."""
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", bits, len(block)) + block)
    except OSError as e:
        os.write(fd, block)
        return f"kernel: fed, credit denied ({_name(e)})"
    return f"kernel: fed with a credit of {bits} bits"


def _name(e: OSError) -> str:
    return errno.errorcode.get(e.errno or 0, "error")


class Feeder:
    """Feeds the kernel on a timer. A device without a source feeds nothing: the kernel would get its own bytes back."""

    def __init__(
        self,
        mixer: Mixer,
        *,
        seconds: float,
        credit: bool = False,
        reseed: bool = False,
        device: Path = RANDOM_DEVICE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds` between two feeds; `credit` and `reseed` as configured, neither is needed."""
        self._mixer = mixer
        self._seconds, self._credit, self._reseed = seconds, credit, reseed
        self._device, self._clock = device, clock
        self._log = SessionLog("kernel feed", clock=clock)
        self._next = 0.0
        self.last = NO_SOURCE

    def tick(self) -> None:
        """Feed if it is time to. Waits no longer than one draw under policy `mix`."""
        if self._clock() >= self._next:
            self.feed()

    def feed(self) -> str:
        """Feed now; return the line for the record. What changed is logged once."""
        self._next = self._clock() + self._seconds
        try:
            drawn = self._mixer.draw("kernel feed", FEED_LENGTH, lasting=False)
        except EntropyError as e:  # the kernel's own generator repeats itself: no key will be made, but this goes on
            return self._said(f"kernel: not fed, {e.message}")
        if not drawn.blocks:
            self.last = NO_SOURCE
            return self.last
        bits = 8 * FEED_LENGTH // 2 if self._credit else 0
        return self._said(feed(drawn.data, device=self._device, credit_bits=bits, reseed=self._reseed))

    def _said(self, line: str) -> str:
        failed = "denied" in line or "not fed" in line
        self._log.note("feed", line, logging.WARNING if failed else logging.INFO)
        self.last = line
        return line

"""At most sixteen unused blocks of one source, in memory only: wiped on use, dropped at the first doubt.

Doubt is an alarm, an unplugged device, age, a fork, or another boot than the one the blocks were made in (a restored
image): two processes must never draw the same block. The lock is held for microseconds and never waited for longer than
the caller allows.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.source import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPACITY: Final = 16  # blocks; a key, a nonce and a kernel feed take one each
MAX_AGE: Final = 60.0  # seconds: what "fresh" means for a key
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Forked(SourceError):  # noqa: N818 - what happened is its name
    """The process is a copy of the one that reads the device; the device and its blocks stay the other's."""


def boot_id(path: Path = _BOOT_ID) -> str:
    """Return which boot this is; empty where the kernel does not say."""
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


class Pool:
    """Blocks from the reader thread to whoever draws."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        pid: Callable[[], int] = os.getpid,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        """Take time (seconds), process and boot from the callables; tests bring their own."""
        self._clock, self._pid, self._boot = clock, pid, boot
        self._owner = (pid(), boot())
        self._ready = threading.Condition(threading.Lock())
        self._blocks: deque[tuple[float, bytearray]] = deque()
        self._taken = 0
        self._reason = ""  # why nobody should wait: set while no block can come

    def __len__(self) -> int:
        """How many blocks wait."""
        return len(self._blocks)

    @property
    def taken(self) -> int:
        """How many blocks were ever given out."""
        return self._taken

    @property
    def wanted(self) -> int:
        """How many blocks there is room for, counting the ones that are too old as room."""
        now = self._clock()
        return CAPACITY - sum(now - made <= MAX_AGE for made, _ in tuple(self._blocks))

    def put(self, block: bytes) -> None:
        """Add a block; the oldest one goes when there are too many."""
        with self._ready:
            self._blocks.append((self._clock(), bytearray(block)))
            while len(self._blocks) > CAPACITY:
                _wipe(self._blocks.popleft()[1])
            self._ready.notify()

    def take(self, timeout: float) -> bytes:
        """Return a block that nobody had before, wiping it here; wait up to `timeout` seconds for one to come.

        Raises Forked in another process than the one that made this pool, SourceError if there is no block.
        """
        with self._waited(timeout):
            self._taken += 1
            _, block = self._blocks.popleft()
        data = bytes(block)
        _wipe(block)
        return data

    def await_block(self, timeout: float) -> None:
        """Wait like `take`, and take nothing. Raises as `take` does."""
        with self._waited(timeout):
            pass

    @contextmanager
    def _waited(self, timeout: float) -> Iterator[None]:
        """Hold the lock, with at least one fresh block there."""
        self._same_process()
        timeout = max(timeout, 0.0)
        if not self._ready.acquire(timeout=timeout):
            raise SourceError("no block within the time given")
        try:
            self._same_boot()
            if not self._fresh():
                self._ready.wait_for(lambda: bool(self._blocks) or bool(self._reason), timeout)
            if not self._fresh():
                raise SourceError(self._reason or "no block within the time given")
            yield
        finally:
            self._ready.release()

    def drop(self) -> int:
        """Wipe every block; return how many there were."""
        with self._ready:
            return self._wipe_all()

    def close(self, reason: str) -> None:
        """Let nobody wait: no block can come, for `reason`."""
        with self._ready:
            self._reason = reason
            self._ready.notify_all()

    def open(self) -> None:
        """Let callers wait again: blocks are on their way."""
        self._reason = ""

    def _fresh(self) -> bool:
        """Wipe what is too old; tell whether anything is left."""
        while self._blocks and self._clock() - self._blocks[0][0] > MAX_AGE:
            _wipe(self._blocks.popleft()[1])
        return bool(self._blocks)

    def _same_process(self) -> None:
        """After a fork the lock may be held by a thread that does not exist here: do not touch it, make a new one."""
        if self._pid() == self._owner[0]:
            return
        self._wipe_all()
        self._ready = threading.Condition(threading.Lock())
        raise Forked("this process was forked from the one that reads the device", hint="start it as a command instead")

    def _same_boot(self) -> None:
        now = self._boot()
        if now != self._owner[1]:
            self._owner = (self._owner[0], now)
            self._wipe_all()

    def _wipe_all(self) -> int:
        count = len(self._blocks)
        while self._blocks:
            _wipe(self._blocks.popleft()[1])
        return count


def _wipe(block: bytearray) -> None:
    block[:] = bytes(len(block))

"""One thread per source: finds the device, reads it 250 ms at a time, fills the pool. Callers never meet the device.

`Attached.block` takes from the pool and waits no longer than it is told, whatever the device does: where it is
unplugged, held by another process or failed, there is nothing to wait for and it says so at once. A device that comes
back is found without a restart, by a scan every 2 seconds that slows down to one in 30.

A full pool is no reason to stop looking: every few seconds a short burst is read and judged, so that a lamp that dies
is found before its blocks are used. Reading all the time would cost a Pi Zero a fifth of a core for nothing.

The thread is no daemon and ends with the main thread: libusb crashes when its contexts are taken apart in a transfer,
which pyusb's exit handlers do. Every call of a driver is bounded, so ending is too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.checks import Freshness
from edgeseal.entropy.drivers.base import Calibrated, DriverError, Gone
from edgeseal.entropy.monitor import Monitor, Verdict
from edgeseal.entropy.pool import Pool, boot_id
from edgeseal.entropy.records import Records, identity
from edgeseal.entropy.session_log import SessionLog
from edgeseal.entropy.snapshot import COMING, Snapshot, State
from edgeseal.entropy.source import BLOCK_LENGTH, Profile, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgeseal.entropy.drivers.base import Driver, Found, Options

READ_TIMEOUT: Final = 0.25  # seconds: how long a stop has to wait for a read
CALIBRATION_TIMEOUT: Final = 10.0  # seconds for a sweep of five levels
RECALIBRATE: Final = 3600.0  # seconds between sweeps
SCAN_FIRST: Final = 2.0  # seconds to the next scan
SCAN_LAST: Final = 30.0  # what that grows to
BURST: Final = 4  # frames in a look at a device whose pool is full: one window of the adaptive proportion test
IDLE: Final = 5.0  # seconds between two looks
_JOIN: Final = 1.0  # seconds for the thread to end: one read and the closing


class Attached:
    """A source (edgeseal.entropy.source.Source) behind its own thread. `start` or the first `block` starts it."""

    def __init__(
        self,
        name: str,
        scan: Callable[[], Sequence[Found]],
        *,
        options: Options | None = None,
        records: Records | None = None,
        retry_failed: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`scan` returns the devices that this source may be, best first; it is called by the thread only."""
        self.name = name
        self._scan = scan
        self._options = options
        self._clock = clock
        self.pool = Pool(clock=clock)
        self._log = SessionLog(name, clock=clock)
        self._records = records or Records()
        lab = options is not None and options.lab
        self.monitor = Monitor(name, log=self._log, records=self._records, lab=lab, retry_failed=retry_failed)
        self._stop = threading.Event()
        self._wake = threading.Event()  # a block was taken: read again
        self._thread: threading.Thread | None = None
        self._identity = (os.getpid(), boot_id())
        self._blocks = Freshness()  # over all openings: a device that replays its noise under a new nonce shows here
        self._looked = 0  # frames since the pool was full
        self._damaged = 0  # frames of the open device

    # For the mixer ---------------------------------------------------------------------------------------------------

    @property
    def profile(self) -> Profile:
        """What the device that is attached declares, under this source's name."""
        now = self.monitor.snapshot
        return Profile(self.name, now.source_class, now.evidence)  # type: ignore[arg-type]  # literals, from a Profile

    @property
    def unfit(self) -> str | None:
        """Why policy `require` must not count it."""
        if self._options is not None and self._options.lab:
            return "simulated sticks and recordings are accepted here (entropy.lab): good to look at, not for a key"
        slow = self.monitor.snapshot.slow
        return f"it keeps no time: {slow}" if slow else None

    @property
    def snapshot(self) -> Snapshot:
        """What is known now."""
        self.monitor.account(self.pool.taken)
        return self.monitor.snapshot

    def block(self, *, timeout: float) -> bytes:
        """Return 64 full-entropy bytes that nobody had before, within `timeout` seconds. Raises SourceError."""
        self.start()
        data = self.pool.take(timeout)
        self._wake.set()
        return data

    def start(self) -> None:
        """Start the thread unless it runs, or this process is a fork of the one where it does."""
        if self._thread is None and os.getpid() == self._identity[0] and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name=f"entropy-{self.name}")
            self._thread.start()

    def look(self) -> None:
        """Read and judge a few frames now although the pool is full: for whoever watches the device live."""
        self._wake.set()

    def settle(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for a device that is there to pass its start-up test; return at once if none is.

        For the one command that makes a device's key. A draw under policy `mix` never waits for this.
        """
        self.start()
        with contextlib.suppress(SourceError):
            self.pool.await_block(timeout)

    def close(self) -> None:
        """End the thread and give the device back. Waits for the driver's call that runs: a read, or once a sweep."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CALIBRATION_TIMEOUT + _JOIN)
        self._end()

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = SCAN_FIRST
        while not self._over():
            driver = self._acquire()
            if driver is not None:
                wait = SCAN_FIRST
                try:
                    self._serve(driver)
                except Exception as e:  # noqa: BLE001 - a thread that dies in silence is the worst of all
                    self._unexpected(e)
                finally:
                    _close(driver)
            if self.monitor.state not in COMING:
                self.pool.close(self._why())
            self._pause(self._stop, wait)
            wait = min(2 * wait, SCAN_LAST)
        self._end()

    def _over(self) -> bool:
        """Whether the thread is to end: it was told so, or the main thread has ended without telling."""
        return self._stop.is_set() or not threading.main_thread().is_alive()

    def _pause(self, event: threading.Event, seconds: float) -> None:
        """Wait until `event` is set, the time is over or the thread is to end."""
        ends = time.monotonic() + seconds
        while not self._over() and (left := ends - time.monotonic()) > 0:
            if event.wait(min(left, READ_TIMEOUT)):
                return

    def _end(self) -> None:
        self.pool.close("this source was closed")
        self.pool.drop()

    def _acquire(self) -> Driver | None:
        """Scan and open; None if there is nothing to open, for a reason that the monitor knows."""
        try:
            found = list(self._scan())
            self.monitor.seen({identity(f.description) for f in found})
            chosen = self._choose(found)
            if chosen is None:
                return None
            self.pool.open()
            self.monitor.opening(chosen.description)
            driver = chosen.open(self._options)
            self._identity = (os.getpid(), boot_id())
        except DriverError as e:
            self._follow(self.monitor.failed_read(e, self._clock()))
        except Exception as e:  # noqa: BLE001 - a library's surprise is one more way of not having a device
            self._unexpected(e)
        else:
            return driver
        return None

    def _choose(self, found: Sequence[Found]) -> Found | None:
        """Return the first device that has not failed."""
        reason = None
        for one in found:
            latched = self.monitor.latched(identity(one.description))
            if latched is None:
                return one
            reason = reason or latched
        if reason is not None:
            self.monitor.refuse_latched(reason)
        elif self.monitor.state is not State.ABSENT or not self.monitor.snapshot.reason:
            self.monitor.absent("not attached")
        return None

    def _serve(self, driver: Driver) -> None:
        """Read one open device until it is lost, fails or is no longer wanted."""
        calibrates = isinstance(driver, Calibrated)
        verdict = self.monitor.opened(driver.describe(), driver.profile, driver.symbols, calibrates=calibrates)
        next_sweep = self._clock() + RECALIBRATE
        self._damaged = 0
        while self._follow(verdict) and not self._over():
            if (os.getpid(), boot_id()) != self._identity:
                verdict = self.monitor.copied()
                continue
            if self._clock() >= next_sweep:
                next_sweep = self._clock() + RECALIBRATE
                self.monitor.recalibrate()
            verdict = self._step(driver)

    def _step(self, driver: Driver) -> Verdict:
        """Do the one thing that is due: calibrate, or read a frame, after a pause if nothing is wanted."""
        try:
            if self.monitor.calibration_due() and isinstance(driver, Calibrated):
                return self.monitor.calibrated(driver.calibrate(timeout=CALIBRATION_TIMEOUT), self._clock())
            self._rest()
            verdict = self.monitor.reading(driver.read(timeout=READ_TIMEOUT), self._clock())
        except DriverError as e:
            return self.monitor.failed_read(e, self._clock())
        damaged = getattr(driver, "damaged", 0)  # frames that the driver skipped to find the stream again
        self._damaged, fresh = damaged, damaged - self._damaged
        return self.monitor.damaged(fresh, verdict, self._clock()) if fresh > 0 else verdict

    def _rest(self) -> None:
        """Wait while the pool is full, but never longer than a dead lamp may go unseen."""
        if self.monitor.state is not State.HEALTHY or self.pool.wanted:
            self._looked = 0
            return
        self._looked += 1
        if self._looked > BURST:
            self._looked = 0
            self._pause(self._wake, IDLE)
            self._wake.clear()

    def _follow(self, verdict: Verdict) -> bool:
        """Do what a verdict says; return whether the device stays open."""
        if verdict.drop:
            self.pool.drop()
        for block in verdict.blocks:
            if self._blocks.fault(block, BLOCK_LENGTH):
                return self._follow(self.monitor.repeated())
            self.pool.put(block)
        if verdict.close:
            self.pool.close(self._why())
        return not verdict.close

    def _unexpected(self, e: Exception) -> None:
        """Treat what no driver should raise as a lost device, and say once where it was; its text may hold anything."""
        frames = traceback.extract_tb(e.__traceback__)
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        text = f"unexpected {type(e).__name__}{where}"
        self._log.note("surprise", text, logging.ERROR)
        self._follow(self.monitor.failed_read(Gone(text), self._clock()))

    def _why(self) -> str:
        now = self.monitor.snapshot
        return f"{now.state}: {now.reason}" if now.reason else str(now.state)


def _close(driver: Driver) -> None:
    with contextlib.suppress(Exception):  # the Protocol says that it never raises; a thread does not bet on it
        driver.close()

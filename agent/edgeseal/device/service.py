"""`run`: the service. It sleeps, and starts one `update` process for each pass, so that memory goes back.

Polls are spread by jitter, failures back off, systemd is told how it goes (sd_notify(3): one datagram, no library).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from edgeseal.device.supply import supply
from edgeseal.errors import EdgesealError, TemporaryError

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.device.agent import Agent

POLL_SECONDS: Final = 300  # unless configuration or fleet say otherwise
_REVOKED_SECONDS: Final = 86_400  # docs/spec/session.md §8: a revoked device polls at the slowest rate
_TICK: Final = 1.0  # seconds between two looks: SIGTERM and the watchdog do not wait longer


class Service:
    """The loop. `stop` may be called from a signal handler."""

    def __init__(self, agent: Agent, config_path: Path | None) -> None:
        """`config_path` is passed on to the passes."""
        self._agent = agent
        self._config_path = config_path
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._random = random.SystemRandom()
        self._supply = supply(agent)

    def run(self) -> int:
        """Run passes until SIGTERM or SIGINT; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._supply.start()
        notify("READY=1\nSTATUS=started")
        while not self._stopping:
            code = self._pass()
            if self._stopping:
                break
            self._failures = 0 if code == 0 else self._failures + 1
            wait = self.delay()
            notify(f"STATUS=last pass ended with exit code {code}; next in {wait:.0f} s")
            self._sleep(wait)
        notify("STOPPING=1")
        self._supply.close()
        return 0

    def delay(self) -> float:
        """Return the seconds until the next pass: poll interval or back-off, spread by jitter."""
        service, fleet = self._agent.config.service, self._agent.config.fleet
        try:
            state = self._agent.state()
            base: float = (
                _REVOKED_SECONDS if state.revoked else fleet.poll_seconds or state.poll_seconds or POLL_SECONDS
            )
        except EdgesealError:
            base = service.backoff_max_seconds
        if self._failures:
            backoff = service.backoff_seconds * 2 ** min(self._failures - 1, 16)
            base = max(min(backoff, service.backoff_max_seconds), 1)
        return base * (1 + service.jitter * (2 * self._random.random() - 1))

    def _pass(self) -> int:
        command = [sys.executable, "-m", "edgeseal.device.cli"]
        if self._config_path is not None:
            command += ["--config", str(self._config_path)]
        with self._supply.handed_over() as (words, fds):
            self._child = subprocess.Popen([*command, "update", *words], pass_fds=fds)
        ends = time.monotonic() + self._agent.config.service.pass_seconds
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._child.wait(_TICK)
            notify("WATCHDOG=1")
            self._supply.tick()
            if self._stopping or time.monotonic() > ends:
                return self._end_child()

    def _end_child(self) -> int:
        """End a pass; whatever it was doing, the next one goes on from there."""
        assert self._child is not None  # noqa: S101 - only called while there is one
        self._child.terminate()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        return TemporaryError.exit_code

    def _sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not self._stopping and (left := ends - time.monotonic()) > 0:
            time.sleep(min(_TICK, left))
            notify("WATCHDOG=1")
            self._supply.tick()

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()


def notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); without systemd nobody listens and nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        s.sendto(message.encode(), address)

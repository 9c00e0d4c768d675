"""A device of the manufacturing line as a process, on a pseudo-terminal; and a station's loop on the other end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import serial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgeseal.provisioning import Conversation, Verdict

STARTED = 15.0  # seconds until the process listens


@dataclass
class DeviceProcess:
    """`edgeseal-agent provision`, started and started again."""

    directory: Path
    port: str
    state: Path | None = None
    process: subprocess.Popen[str] | None = None

    def write_config(self) -> Path:
        self.directory.mkdir(exist_ok=True, parents=True)
        path = self.directory / "edgeseal.toml"
        path.write_text(
            f'[device]\nhardware = "test-board"\nserial = "0001"\n'
            f'[paths]\nstate = "{self.state or self.directory / "state"}"\nmodels = "{self.directory}/models"\n'
        )
        return path

    def start(self, *more: str) -> None:
        """Start it, and wait until it listens."""
        assert self.start_unless_locked(*more), "the device is locked"

    def start_unless_locked(self, *more: str) -> bool:
        command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(self.write_config()), "provision"]
        command += ["--port", self.port, "--linger", "0.3", *more]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        ready, _, _ = select.select([self.process.stderr], [], [], STARTED)
        assert ready, "the device does not start"
        first = self.process.stderr.readline()
        if "listening" in first:
            return True
        code, said = self.wait()
        assert code == 4, first + said
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def wait(self, seconds: float = 10.0) -> tuple[int, str]:
        """Wait for its end; returns exit code and output."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out + err

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=5)
            if self.process.poll() is None:
                self.kill()


@contextlib.contextmanager
def device(directory: Path, port: str, *, state: Path | None = None) -> Iterator[DeviceProcess]:
    """A device that is stopped at the end, whatever happens."""
    made = DeviceProcess(directory, port, state)
    try:
        yield made
    finally:
        made.stop()


def converse(
    station: Conversation, port: str, *, seconds: float = 60.0, each: Callable[[], None] = lambda: None
) -> Verdict:
    """Run a station's half over a real port until there is a verdict; `each` is called in every round."""
    ends = time.monotonic() + seconds
    with serial.Serial(port, 115_200, timeout=0, write_timeout=0) as line:
        fd = line.fileno()
        os.set_blocking(fd, False)
        pending = b""
        while station.verdict is None:
            assert time.monotonic() < ends, f"no verdict in {seconds} s: {station.state}"
            each()
            pending += station.outgoing()
            if pending:
                with contextlib.suppress(BlockingIOError):
                    pending = pending[os.write(fd, pending) :]
            wait = 0.01 if pending else min(0.05, station.wait() or 0.05)
            if select.select([fd], [], [], wait)[0]:
                with contextlib.suppress(BlockingIOError):
                    station.feed(os.read(fd, 4096))
    assert station.verdict is not None
    return station.verdict

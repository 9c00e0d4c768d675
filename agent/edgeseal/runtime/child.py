"""Running another program and always coming back: in bounded time, with bounded output, with nothing left running.

`subprocess.run` waits for the end of the output, not of the process: a command that starts a daemon would hold the
agent for ever. Here the process alone decides; whoever still has its pipe gets an error when it writes.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from edgeseal.runtime.background import give_way_for_now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_OUTPUT: Final = 65_536  # kept of each stream, from its end
_READ: Final = 65_536


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. `code` is negative for a signal; `timed_out` says that it was ours."""

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


def run(
    words: Sequence[str],
    *,
    stdin: bytes,
    seconds: float,
    environment: Mapping[str, str],
    kill_group: bool = True,
    background: bool = False,
) -> Ended:
    """Run a program in `/` with nothing but `environment`, and wait for it.

    `kill_group`: what it started ends with it, not only after a timeout. `background`: it gives way (background) until
    it comes back by itself. Raises OSError if it cannot be started.
    """
    with _in_memory(stdin) as question:
        process = subprocess.Popen(
            list(words),
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
    if background:
        give_way_for_now(process.pid)
    timed_out = True
    try:
        stdout, stderr, timed_out = _watch(process, time.monotonic() + seconds)
    finally:
        if timed_out or kill_group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return Ended(code, stdout, stderr, timed_out)


def _watch(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes, bool]:
    """Read both pipes until the process has ended. It is not reaped here, so that its group can still be killed."""
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    pidfd = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pidfd, selectors.EVENT_READ, "end")
            for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, selectors.EVENT_READ, name)
            timed_out = _collect(selector, kept, deadline)
    finally:
        os.close(pidfd)
    return bytes(kept["stdout"]), bytes(kept["stderr"]), timed_out


def _collect(selector: selectors.BaseSelector, kept: dict[str, bytearray], deadline: float) -> bool:
    """Return whether the deadline came first."""
    while (left := deadline - time.monotonic()) > 0:
        ready = selector.select(left)
        ended = any(key.data == "end" for key, _ in ready)
        for key, _ in ready:
            if key.data != "end" and not _read(key.fd, kept[key.data], drain=ended):
                selector.unregister(key.fileobj)
        if ended:
            return False
    return True


def _read(descriptor: int, kept: bytearray, *, drain: bool) -> bool:
    """Keep the end of what is there; False once the pipe is closed. A full pipe at most is drained: 64 KiB."""
    for _ in range(2 if drain else 1):
        try:
            piece = os.read(descriptor, _READ)
        except BlockingIOError:
            return True
        if not piece:
            return False
        kept += piece
        del kept[:-MAX_OUTPUT]
    return True


def _in_memory(data: bytes) -> BinaryIO:
    """Return a file that never touches a disk: what a program is asked may be secret, and a pipe could fill up."""
    f = os.fdopen(os.memfd_create("edgeseal"), "r+b")
    f.write(data)
    f.seek(0)
    return f

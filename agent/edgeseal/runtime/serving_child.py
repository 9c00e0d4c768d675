"""A worker of edgeseal-serve as its supervisor sees it: how it is started, told and asked to leave.

The other end of the control socket is `worker`, which says what the messages are.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from edgeseal.runtime.background import ENVIRONMENT, give_way_for_now

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgeseal.runtime.bounds import Bounds
    from edgeseal.runtime.counters import Tallies
    from edgeseal.runtime.follow import Release

MAX_MESSAGE: Final = 2**18
END_SECONDS: Final = 40.0  # a worker that drains has this long; a little more than it gives itself


@dataclass(eq=False)
class Child:
    """A worker, as the supervisor sees it."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    releases: dict[str, Release]
    started: float = field(default_factory=time.monotonic)
    loaded: bool = False
    accepting: bool = False
    ending: float = 0.0  # when it is killed, once it drains
    counted: Tallies = field(default_factory=dict)
    copied: tuple[str, Any] | None = None  # for a release in the shadow: the order's id, what it has counted

    def say(self, message: Mapping[str, Any]) -> None:
        """Send one message; a worker that is gone is noticed by its end."""
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            return

    def drain(self, *, at_once: bool = False) -> None:
        """Let it answer what it has, and end; `at_once`: silent connections are closed now, nobody follows."""
        self.ending = time.monotonic() + END_SECONDS
        self.say({"end": True} if at_once else {"drain": True})


def start(
    listener: socket.socket,
    root: Path,
    releases: dict[str, Release],
    *,
    failed: Mapping[str, str],
    threads: int,
    bounds: Bounds,
    background: bool,
) -> Child:
    """Start a worker that loads `releases` of the repository at `root`; `failed` says why others are not served.

    `background`: another one serves, so this one gives way until it is told to accept.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = listener.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeseal.runtime.worker"],
        stdin=theirs.fileno(),
        pass_fds=[descriptor],
        start_new_session=True,
        env=os.environ | ENVIRONMENT,
    )
    if background:
        give_way_for_now(process.pid)
    theirs.close()
    child = Child(process, ours, releases)
    child.say(
        {
            "listener": descriptor,
            "root": str(root),
            "releases": [[r.model, r.number, str(r.directory)] for r in releases.values()],
            "failed": dict(failed),
            "threads": threads,
            "bounds": asdict(bounds),
        }
    )
    return child


def how_it_ended(code: int) -> str:
    """Return a signal's name or the exit code of a process."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"

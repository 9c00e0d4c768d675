"""What one command costs: CPU, wall time and peak resident memory, as JSON on the last line of standard output.

    python measured.py COMMAND …

A process of its own, and a small one: Linux counts the memory of the process that starts a command as the command's own
peak until it executes, so a benchmark full of arrays would measure itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, order=True)
class Cost:
    """Seconds of user and system time, seconds on the clock, MB."""

    cpu: float
    wall: float
    rss_mb: float


def cost(words: list[object]) -> Cost:
    """Run a command and return what it and everything it started cost.

    Raises RuntimeError if it fails.
    """
    command = [sys.executable, "-S", "-E", str(Path(__file__)), *(str(w) for w in words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with exit code {done.returncode}: {done.stderr.decode()[-500:]}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def in_turn(*runs: Callable[[], Cost], rounds: int) -> list[Cost]:
    """Return each one's least CPU and wall time and most memory, round by round: all meet the same disturbances."""
    found = [[run() for run in runs] for _ in range(rounds)]
    return [
        Cost(min(c.cpu for c in costs), min(c.wall for c in costs), max(c.rss_mb for c in costs))
        for costs in zip(*found, strict=True)
    ]


def _main(words: list[str]) -> int:
    started = time.monotonic()
    pid = os.posix_spawnp(words[0], words, os.environ)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    sys.stdout.write("\n" + json.dumps([usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024]) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

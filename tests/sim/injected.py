"""Faults at every system call of a step: strace attaches to a process that is ready and injects one fault.

The process was started with everything imported and waits for a line, so that only the step's own calls count. First
one run is counted; then, for each call, the step runs again with that one call killed or failed.

Not here: faults of calls that cannot change what is on disk after a kill (a kill at a read equals a kill at the next
write). Errors are injected into reads and opens too.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CHANGING: Final = (
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "symlink",
    "symlinkat",
    "link",
    "linkat",
    "ftruncate",
    "fallocate",
    "flock",
    "chmod",
    "fchmod",
    "fchmodat",
)
READING: Final = ("openat", "read", "pread64", "copy_file_range", "sendfile", "getdents64")
_CALL: Final = re.compile(r"^(?:\d+\s+)?([a-z0-9_]+)\(")


@dataclass(frozen=True)
class Fault:
    """Call number `nth` (from 1) of `call`: `what` is strace's injection, signal=… or error=…."""

    call: str
    nth: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} at {self.call} number {self.nth}"


def faults(counts: Counter[str]) -> Iterator[Fault]:
    """Yield a kill, EIO and ENOSPC at every changing call, and EIO at every reading one."""
    for call, count in sorted(counts.items()):
        kinds = ("signal=SIGKILL", "error=EIO", "error=ENOSPC") if call in CHANGING else ("error=EIO",)
        for nth in range(1 + (call == "read"), count + 1):  # the first read is that of the harness's own line
            yield from (Fault(call, nth, what) for what in kinds)


def count(words: Sequence[object], log: Path) -> Counter[str]:
    """Run the step once without a fault and return how often it made each call."""
    done = _run(words, ["-o", str(log), "-e", f"trace={','.join(CHANGING + READING)}"])
    if done.returncode:
        raise AssertionError(f"the step fails without a fault: {done.stderr}")
    found = (_CALL.match(line) for line in log.read_text().splitlines())
    return Counter(match[1] for match in found if match)


def inject(words: Sequence[object], fault: Fault) -> subprocess.CompletedProcess[str]:
    """Run the step with one fault; the return code is negative for a signal."""
    injection = f"inject={fault.call}:{fault.what}:when={fault.nth}"
    return _run(words, ["-o", "/dev/null", "-e", f"trace={fault.call}", "-e", injection])


def _run(words: Sequence[object], options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as step:
        assert step.stdin
        assert step.stdout
        if step.stdout.readline() != "ready\n":
            raise AssertionError(f"the step did not get ready: {step.communicate()[1]}")
        tracer = subprocess.Popen(["strace", "-f", *options, "-p", str(step.pid)], stderr=pipe, text=True)
        with tracer:
            assert tracer.stderr
            line = tracer.stderr.readline()
            if "attached" not in line:
                step.kill()
                raise AssertionError(f"strace did not attach: {line}")
            out, err = step.communicate("go\n", timeout=60)
            tracer.wait(30)
    return subprocess.CompletedProcess(command, step.returncode, out, err)

"""Faults at the system calls of a step: strace attaches to a process that is ready and injects one fault.

A process that has imported everything (`zygote`) forks for each fault; the child waits for a word until strace is
attached, so that only the step's own calls count. First one run is counted; then, for each call, the step runs again
with that one call killed or failed.

Every call that changes something is killed and failed. Reading calls are failed: a kill at a read equals a kill at the
next write. Of the reads of one file the first and the last are tried, because a pass looks at its state dozens
of times; EDGESEAL_FAULTS=every tries all (half an hour).
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parents[2]  # of the repository: steps are modules of it
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
_CALL: Final = re.compile(r"^(?:\d+\s+)?([a-z0-9_]+)\((.*)")
_FILE: Final = re.compile(r'"([^"]*)"|\d+<([^>]*)>')
_END: Final = re.compile(r"\)\s+= 0$")
_EDGE: Final = 1  # reads of one file that are tried at either end


@dataclass(frozen=True)
class Call:
    """Call number `nth` (from 1) of `name`, about `file`; `empty` is a read that met the end of its file."""

    name: str
    nth: int
    file: str
    empty: bool


@dataclass(frozen=True)
class Fault:
    """Call number `nth` of `call`: `what` is strace's injection, signal=… or error=…."""

    call: str
    nth: int
    what: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.what} at {self.call} number {self.nth} ({self.file})"


def faults(calls: Sequence[Call]) -> Iterator[Fault]:
    """Yield a kill, EIO and ENOSPC at every changing call, and EIO at the reading ones that are tried."""
    for call in calls:
        if call.name in CHANGING:
            for what in ("signal=SIGKILL", "error=EIO", "error=ENOSPC"):
                yield Fault(call.name, call.nth, what, call.file)
    for call in _tried([c for c in calls if c.name in READING]):
        yield Fault(call.name, call.nth, "error=EIO", call.file)


def _tried(reads: Sequence[Call]) -> Iterator[Call]:
    """Leave out what meets the same handler: the end of a file whose reading was tried, and repetitions."""
    if os.environ.get("EDGESEAL_FAULTS") == "every":
        yield from reads
        return
    same: dict[tuple[str, str], list[Call]] = {}
    for call in reads:
        if not call.empty:
            same.setdefault((call.name, call.file), []).append(call)
    for group in same.values():
        yield from group if len(group) <= 2 * _EDGE else group[:_EDGE] + group[-_EDGE:]


class Zygote:
    """A process that is ready to take the step, as often as it is asked to."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors

    def count(self, log: Path, *, ends_with: int = 0) -> list[Call]:
        """Take the step once without a fault and return its calls; `ends_with` is its exit code."""
        done = self._run(["-y", "-o", str(log), "-e", f"trace={','.join(CHANGING + READING)}"])
        if done.returncode != ends_with:
            raise AssertionError(f"the step fails without a fault: {done.stderr}")
        calls: list[Call] = []
        numbers: dict[str, int] = {}
        for line in log.read_text().splitlines():
            if match := _CALL.match(line):
                name, rest = match.groups()
                numbers[name] = numbers.get(name, 0) + 1
                file = _FILE.search(rest)
                text = (file[1] or file[2] or "") if file else ""
                calls.append(Call(name, numbers[name], text, bool(_END.search(rest))))
        return [c for c in calls if (c.name, c.nth) != ("read", 1)]  # the word that lets the child go

    def inject(self, fault: Fault) -> subprocess.CompletedProcess[str]:
        """Take the step with one fault; the return code is negative for a signal."""
        injection = f"inject={fault.call}:{fault.what}:when={fault.nth}"
        return self._run(["-o", "/dev/null", "-e", f"trace={fault.call}", "-e", injection])

    def _run(self, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
        child = self._ask("fork")
        with subprocess.Popen(["strace", "-f", *options, "-p", child], stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            line = tracer.stderr.readline()
            if "attached" not in line:
                self._process.kill()
                raise AssertionError(f"strace did not attach: {line}")
            code = int(self._ask("go"))
            tracer.wait(30)
        return subprocess.CompletedProcess([], code, "", self._errors.read_text())

    def _ask(self, word: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline().strip()):
            raise AssertionError(f"the step's process ended: {self._errors.read_text()}")
        return answer


@contextmanager
def zygote(words: Sequence[object], errors: Path) -> Iterator[Zygote]:
    """Start `words`, a script that ends in `serve`; what the child prints goes to `errors`."""
    pipe = subprocess.PIPE
    command = [*map(str, words), "--errors", str(errors)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        try:
            yield Zygote(process, errors)
        finally:
            process.kill()

"""Before a model may serve it must load and answer in a process of its own, with limits and without a network.

The worker (edgeseal.runtime.probe_worker) gets the directory and what the release says about itself on standard input
and answers one JSON object. Whatever else it does, hang, crash, eat memory, is a refusal with that reason.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal import cbor
from edgeseal.errors import IncompatibleError, TemporaryError
from edgeseal.runtime.contract import ProbeError

if TYPE_CHECKING:
    from edgeseal.runtime.contract import Candidate

_MAX_ANSWER: Final = 65_536
_NO_ENGINE: Final = 6  # exit code of the worker: no engine for this format is installed
_INTERPRETER_MB: Final = 1536  # address space of interpreter and engine before a model is loaded; not memory


@dataclass(frozen=True, slots=True)
class Limits:
    """What the probe may use: wall time in seconds, memory in MiB for the model."""

    seconds: int
    memory_mb: int


def probe(candidate: Candidate, limits: Limits) -> dict[str, Any]:
    """Return what the worker found (load and run time, outputs).

    Raises ProbeError with the reason, IncompatibleError if no engine for the model is installed.
    """
    question = cbor.encode(
        {
            "directory": str(candidate.directory),
            "requirements": dict(candidate.requirements),
            "tests": candidate.tests,
        }
    )
    command = [sys.executable, "-I", "-m", "edgeseal.runtime.probe_worker"]
    what = f"{candidate.model} release {candidate.release}"
    try:
        done = subprocess.run(
            command,
            input=question,
            capture_output=True,
            timeout=limits.seconds,
            check=False,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            cwd="/",
            preexec_fn=lambda: _confine(limits),
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(
            f"{what} did not load and answer within {limits.seconds} s",
            hint="the release was not activated; runtime.probe_seconds sets the limit",
        ) from None
    except OSError as e:
        raise TemporaryError(f"the probe of {what} could not be started: {e.strerror}") from e
    return _verdict(done, what, limits)


def _verdict(done: subprocess.CompletedProcess[bytes], what: str, limits: Limits) -> dict[str, Any]:
    answer = _answer(done.stdout[-_MAX_ANSWER:])
    if done.returncode == 0 and answer is not None:
        return answer
    if done.returncode == _NO_ENGINE and answer is not None:
        raise IncompatibleError(f"{what}: {answer['reason']}", hint=answer.get("hint"))
    if answer is not None:
        raise ProbeError(f"{what} was refused by the probe: {answer['reason']}", hint="the release was not activated")
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode == -signal.SIGKILL or "MemoryError" in "".join(said) or "bad_alloc" in "".join(said):
        raise ProbeError(
            f"{what} needs more than {limits.memory_mb} MiB to load",
            hint="the release was not activated; runtime.probe_memory_mb sets the limit",
        )
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    raise ProbeError(
        f"{what} made the runtime crash while it was loaded ({how}{': ' + said[-1][:200] if said else ''})",
        hint="the release was not activated",
    )


def _answer(output: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(output)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _confine(limits: Limits) -> None:
    """Run in the child before the worker starts: no core file with the model in it, bounded time and memory."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds * 4, limits.seconds * 4 + 1))
    room = (limits.memory_mb + _INTERPRETER_MB) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

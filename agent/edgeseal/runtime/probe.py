"""Before a model may serve it must load and answer in a process of its own, with limits and without a network.

The worker (edgeseal.runtime.probe_worker) gets the directory and what the release says about itself on standard input
and answers one JSON object. Whatever else it does, hang, crash, eat memory, is a refusal with that reason.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal import cbor
from edgeseal.errors import IncompatibleError, TemporaryError
from edgeseal.runtime import child
from edgeseal.runtime.background import ENVIRONMENT
from edgeseal.runtime.contract import ProbeError
from edgeseal.runtime.engine_settings import most_threads

if TYPE_CHECKING:
    from edgeseal.runtime.contract import Candidate

_NOT_ACTIVATED: Final = "the release was not activated"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the probe may use: wall time in seconds, memory in MiB beyond the size of the release's own files.

    `threads` of one inference, 0 for one for each core.
    """

    seconds: int
    memory_mb: int
    threads: int = 0


def probe(candidate: Candidate, limits: Limits) -> dict[str, Any]:
    """Return what the worker found (load and run time, outputs).

    Raises ProbeError with the reason, IncompatibleError if no engine for the model is installed.
    """
    question = {
        "directory": str(candidate.directory),
        "requirements": dict(candidate.requirements),
        "tests": candidate.tests,
        "threads": most_threads(limits.threads),
    }
    what = f"{candidate.model} release {candidate.release}"
    try:
        ended = child.run(
            [
                *(sys.executable, "-I", "-m", "edgeseal.runtime.probe_worker"),
                *(str(limits.seconds), str(limits.memory_mb), str(os.getpid())),
            ],
            stdin=cbor.encode(question),
            seconds=limits.seconds,
            environment={"PATH": os.defpath, "LANG": "C.UTF-8"} | ENVIRONMENT,
            background=True,
        )
    except OSError as e:
        raise TemporaryError(f"the probe of {what} could not be started: {e.strerror}") from e
    return _verdict(ended, what, limits)


def _verdict(ended: child.Ended, what: str, limits: Limits) -> dict[str, Any]:
    answer = _answer(ended.stdout)
    if ended.timed_out or ended.code == -signal.SIGXCPU:
        raise ProbeError(
            f"{what} did not load and answer within {limits.seconds} s",
            hint=f"{_NOT_ACTIVATED}; runtime.probe_seconds sets the limit",
        )
    if ended.code == 0 and answer is not None:
        return answer
    if ended.code == IncompatibleError.exit_code and answer is not None:
        raise IncompatibleError(f"{what}: {answer['reason']}", hint=answer.get("hint"))
    said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    if _out_of_memory(ended, answer, said):
        raise ProbeError(
            f"{what} needs more than {limits.memory_mb} MiB beside its own files",
            hint=f"{_NOT_ACTIVATED}; runtime.probe_memory_mb sets the limit",
        )
    if answer is not None:
        raise ProbeError(f"{what} was refused by the probe: {answer['reason']}", hint=_NOT_ACTIVATED)
    how = signal.Signals(-ended.code).name if ended.code < 0 else f"exit code {ended.code}"
    raise ProbeError(
        f"{what} made the runtime crash while it was probed ({how}{': ' + said[-1][:200] if said else ''})",
        hint=_NOT_ACTIVATED,
    )


def _out_of_memory(ended: child.Ended, answer: dict[str, Any] | None, said: list[str]) -> bool:
    """Whether memory is what it lacked; SIGKILL that is not ours comes from the kernel's out-of-memory killer."""
    if answer is not None:
        return answer.get("memory") is True
    return ended.code == -signal.SIGKILL or any("MemoryError" in line or "bad_alloc" in line for line in said[-3:])


def _answer(output: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(output)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and (answer.keys() & {"reason", "cases"}) else None

"""Hands a model over by a command of the owner's: one JSON object on standard input for every step.

    {"step", "model", "release", "previous", "directory", "current"}

step is prepare, activate, commit, rollback or health. Exit code 0: done; 75 (EX_TEMPFAIL of sysexits.h): not now, the
release is tried again by the next pass and nothing is held against it; anything else: it failed, and what the command
said last is the reason. At health it may print one JSON object with fields of `Said`; without one nothing is watched.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from edgeseal.errors import TemporaryError, UsageError
from edgeseal.runtime import child
from edgeseal.runtime.adapters import Link, environment, printable, run_quietly
from edgeseal.runtime.contract import ActivationError, Candidate, Health

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal.runtime.probe import Limits
    from edgeseal.runtime.repository import ModelRepository

COMMAND_SECONDS: Final = 120.0
HEALTH_SECONDS: Final = 10.0

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a command says of a release at step health: counts since `instance` (any number) started, median in ms."""

    serving: bool
    instance: _Count = 0
    failed: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    requests: _Count = 0
    errors: _Count = 0
    nan: _Count = 0
    crashes: _Count = 0
    median_ms: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None


class Exec(Link):
    """Runs a command for every step."""

    def __init__(self, repository: ModelRepository, limits: Limits | None, command: Sequence[str]) -> None:
        """Take the command as a list of words.

        Raises UsageError if it is empty.
        """
        super().__init__("exec", repository, limits)
        if not command:
            raise UsageError("runtime.adapter is 'exec', but runtime.command is empty")
        self._command = list(command)

    def prepare(self, candidate: Candidate) -> None:
        """Ask the command whether it could run such a model, and now."""
        self._tell("prepare", candidate)

    def activate(self, candidate: Candidate) -> None:
        """Switch, then tell the command; it must have taken the model over when it returns."""
        super().activate(candidate)
        self._tell("activate", candidate)

    def health(self, model: str, release: int) -> Health | None:
        """Return what the command says of a release, None if it says nothing.

        Raises UsageError if what it prints is no such object: a watch that watches nothing must be noticed.
        """
        question = self._question("health", Candidate(model, release, self._repository.path(model, release), None))
        try:
            ended = child.run(
                self._command, stdin=question, seconds=HEALTH_SECONDS, environment=environment(), kill_group=False
            )
        except OSError:
            return None
        return None if ended.code or ended.timed_out else parse(ended.stdout)

    def commit(self, candidate: Candidate) -> None:
        """Tell the command, then remove other releases."""
        self._tell("commit", candidate)
        super().commit(candidate)

    def rollback(self, candidate: Candidate) -> None:
        """Switch back, then tell the command."""
        super().rollback(candidate)
        self._tell("rollback", candidate)

    def _tell(self, step: str, candidate: Candidate) -> None:
        """Raise TemporaryError for `not now`, ActivationError for anything else but success."""
        code, said = run_quietly(self._command, stdin=self._question(step, candidate), timeout=COMMAND_SECONDS)
        if code == os.EX_TEMPFAIL:
            raise TemporaryError(f"runtime.command says at step {step}: not now: {said or 'no output'}")
        if code:
            raise ActivationError(f"runtime.command ended with exit code {code} at step {step}: {said or 'no output'}")

    def _question(self, step: str, candidate: Candidate) -> bytes:
        about = {
            "step": step,
            "model": candidate.model,
            "release": candidate.release,
            "previous": candidate.previous,
            "directory": str(candidate.directory),
            "current": str(candidate.directory.parent / "current"),
        }
        return json.dumps(about).encode()


def parse(output: bytes) -> Health | None:
    """Return what a command printed at step health; None if it printed nothing. Raises UsageError."""
    if not output.strip():
        return None
    try:
        said = msgspec.json.decode(output, type=Said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(
            f"runtime.command printed at step health what is no health: {e}",
            hint='print nothing, or one object such as {"serving": true, "requests": 10, "errors": 0}',
        ) from None
    return Health(
        instance=said.instance,
        serving=said.serving,
        failed=printable(said.failed.encode()),
        failed_at=int(time.time()),
        requests=said.requests,
        errors=said.errors,
        nan=said.nan,
        crashes=said.crashes,
        median_ms=said.median_ms,
    )

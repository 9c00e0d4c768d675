"""The adapters. All switch the `current` link; they differ in whom they tell.

serve    nobody: edgeseal-serve watches the link
none     nobody: the owner's runtime watches the link, or is restarted by other means
exec     a command of the owner's, with JSON on standard input; its exit code decides
systemd  a unit is reloaded, or restarted if it cannot reload
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from edgeseal.errors import UsageError
from edgeseal.runtime import child
from edgeseal.runtime.contract import ActivationError, Candidate
from edgeseal.runtime.probe import Limits, probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal.runtime.repository import ModelRepository

COMMAND_SECONDS: Final = 120.0


class Link:
    """Switches the link and tells nobody; what the others build on."""

    def __init__(self, name: str, repository: ModelRepository, limits: Limits | None) -> None:
        """`limits` None: the owner has switched the probe off."""
        self.name = name
        self._repository = repository
        self._limits = limits

    def prepare(self, candidate: Candidate) -> None:
        """Nothing to ask: the probe finds out whether the model can run."""

    def probe(self, candidate: Candidate) -> None:
        """Load the model in a separate process."""
        if self._limits is not None:
            probe(candidate, self._limits)

    def activate(self, candidate: Candidate) -> None:
        """Point `current` at the candidate."""
        self._repository.switch(candidate.model, candidate.release)

    def commit(self, candidate: Candidate) -> None:
        """Remove every other release from memory."""
        for release in self._repository.releases(candidate.model):
            if release != candidate.release:
                self._repository.remove(candidate.model, release)

    def rollback(self, candidate: Candidate) -> None:
        """Point `current` back and remove the candidate; without one to go back to, nothing serves."""
        if candidate.previous is not None and candidate.previous in self._repository.releases(candidate.model):
            self._repository.switch(candidate.model, candidate.previous)
        elif self._repository.current(candidate.model) == candidate.release:
            self._repository.withdraw(candidate.model)
        if candidate.previous != candidate.release:
            self._repository.remove(candidate.model, candidate.release)


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
        """Ask the command whether it could run such a model."""
        self._tell("prepare", candidate)

    def activate(self, candidate: Candidate) -> None:
        """Switch, then tell the command; it must have taken the model over when it returns."""
        super().activate(candidate)
        self._tell("activate", candidate)

    def commit(self, candidate: Candidate) -> None:
        """Tell the command, then remove other releases."""
        self._tell("commit", candidate)
        super().commit(candidate)

    def rollback(self, candidate: Candidate) -> None:
        """Switch back, then tell the command."""
        super().rollback(candidate)
        self._tell("rollback", candidate)

    def _tell(self, step: str, candidate: Candidate) -> None:
        about = {
            "step": step,
            "model": candidate.model,
            "release": candidate.release,
            "previous": candidate.previous,
            "directory": str(candidate.directory),
            "current": str(candidate.directory.parent / "current"),
        }
        code, said = run_quietly(self._command, stdin=json.dumps(about).encode(), timeout=COMMAND_SECONDS)
        if code:
            raise ActivationError(f"runtime.command ended with exit code {code} at step {step}: {said or 'no output'}")


class Systemd(Link):
    """Reloads a unit after the switch."""

    def __init__(self, repository: ModelRepository, limits: Limits | None, unit: str) -> None:
        """Take the unit's name.

        Raises UsageError if it is empty.
        """
        super().__init__("systemd", repository, limits)
        if not unit or unit.startswith("-"):
            raise UsageError("runtime.adapter is 'systemd', but runtime.unit does not name a unit")
        self._unit = unit

    def activate(self, candidate: Candidate) -> None:
        """Switch, then reload or restart the unit."""
        super().activate(candidate)
        self._reload()

    def rollback(self, candidate: Candidate) -> None:
        """Switch back, then reload or restart the unit."""
        super().rollback(candidate)
        self._reload()

    def _reload(self) -> None:
        code, said = run_quietly(["systemctl", "reload-or-restart", self._unit], timeout=COMMAND_SECONDS)
        if code:
            raise ActivationError(
                f"systemctl reload-or-restart {self._unit} ended with exit code {code}: {said or 'no output'}",
                hint=f"journalctl -u {self._unit}",
            )


def run_quietly(words: list[str], *, stdin: bytes = b"", timeout: float) -> tuple[int, str]:
    """Run a command of the owner's; return exit code and the end of what it said.

    A command that hangs is killed, with all it started, and counts as failed. A daemon that it starts must have an
    output of its own: ours is closed when the command ends.
    """
    try:
        ended = child.run(words, stdin=stdin, seconds=timeout, environment=_environment(), kill_group=False)
    except OSError as e:
        return 127, f"cannot be started: {e.strerror}"
    if ended.timed_out:
        return 124, f"did not end within {timeout:.0f} s"
    return ended.code, (ended.stderr or ended.stdout).decode("utf-8", "replace").strip()[-300:]


def _environment() -> dict[str, str]:
    """Nothing of the agent's own environment but the path: it may hold credentials' places."""
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8"}

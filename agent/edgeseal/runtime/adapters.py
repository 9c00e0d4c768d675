"""The adapters. All switch the `current` link; they differ in whom they tell.

serve     nobody: edgeseal-serve watches the link, and says in its status file how the release does
none      nobody: the owner's runtime watches the link, or is restarted by other means
exec      a command of the owner's, with JSON on standard input; its exit code decides (adapter_exec)
systemd   a unit is reloaded, or restarted if it cannot reload; it must stay up
oip-http  a server with the Open Inference Protocol's repository extension (adapter_oip)
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from edgeseal.errors import UsageError
from edgeseal.runtime import child, serve_status
from edgeseal.runtime.contract import ActivationError, Candidate, Health
from edgeseal.runtime.counters import BUCKETS
from edgeseal.runtime.probe import Limits, probe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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

    def probe(self, candidate: Candidate) -> Mapping[str, Any] | None:
        """Load the model in a separate process."""
        return None if self._limits is None else probe(candidate, self._limits)

    def activate(self, candidate: Candidate) -> None:
        """Point `current` at the candidate."""
        self._repository.switch(candidate.model, candidate.release)

    def health(self, _model: str, _release: int) -> Health | None:
        """Nobody is known who could say."""
        return None

    def was_here(self) -> bool:
        """Nobody is known who could have been."""
        return False

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


class Serve(Link):
    """Switches the link and reads in edgeseal-serve's status file what came of it."""

    def __init__(self, repository: ModelRepository, limits: Limits | None, status_file: Path | None) -> None:
        """`status_file` None: it is not looked for."""
        super().__init__("serve", repository, limits)
        self._status_file = status_file

    def health(self, model: str, release: int) -> Health | None:
        """Return what edgeseal-serve says; None if none runs, or none that follows this repository's models."""
        status = None if self._status_file is None else serve_status.read(self._status_file)
        if status is None or not _is_alive(status.pid):
            return None
        found = status.models.get(model, serve_status.ModelStatus(mode="load-on-demand"))
        mine = found.releases.get(str(release), serve_status.ReleaseStatus())
        failed = found.failed if found.failed and found.failed.release == release else None
        idle = found.serving is None and found.candidate is None and found.failed is None
        return Health(
            instance=status.pid,
            serving=found.serving == release,
            asleep=idle and found.mode == "load-on-demand",
            failed=failed.reason if failed else "",
            failed_at=failed.at if failed else 0,
            requests=mine.requests,
            errors=mine.errors,
            nan=mine.nan,
            crashes=mine.crashes,
            median_ms=None if mine.p50_ms is None else _at_least(mine.p50_ms),
        )

    def was_here(self) -> bool:
        """Whether edgeseal-serve has written its status in this boot."""
        return self._status_file is not None and serve_status.read(self._status_file) is not None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's, as it should be
    return True


def _at_least(quantile_ms: float) -> float:
    """Return the lower end of the bucket whose upper end a quantile is: nothing is condemned for rounding."""
    below = [end * 1000 for end in BUCKETS if end * 1000 < quantile_ms * (1 - 1e-9)]
    return below[-1] if below else 0.0


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

    def health(self, _model: str, _release: int) -> Health | None:
        """Return whether the unit is up and how often systemd had to start it again."""
        words = ["systemctl", "show", "--property=ActiveState,NRestarts", self._unit]
        code, said = run_quietly(words, timeout=COMMAND_SECONDS)
        shown = dict(line.partition("=")[::2] for line in said.splitlines())
        if code or "ActiveState" not in shown:
            return None
        restarts = shown.get("NRestarts", "")
        return Health(
            instance=0,
            serving=shown["ActiveState"] in {"active", "reloading"},
            failed="the unit has failed" if shown["ActiveState"] == "failed" else "",
            failed_at=int(time.time()),
            crashes=int(restarts) if restarts.isdecimal() else 0,
        )

    def rollback(self, candidate: Candidate) -> None:
        """Switch back, then reload or restart the unit."""
        super().rollback(candidate)
        self._reload()

    def _reload(self) -> None:
        words = ["systemctl", "--no-ask-password", "reload-or-restart", self._unit]
        code, said = run_quietly(words, timeout=COMMAND_SECONDS)
        if code:
            raise ActivationError(
                f"systemctl reload-or-restart {self._unit} ended with exit code {code}: {said or 'no output'}",
                hint=f"journalctl -u {self._unit}; a polkit rule must let the agent's user do it",
            )


def run_quietly(words: list[str], *, stdin: bytes = b"", timeout: float) -> tuple[int, str]:
    """Run a command of the owner's; return exit code and the end of what it said (124: it was too slow, 127: absent).

    A command that hangs is killed, with all it started, and counts as failed. A daemon that it starts must have an
    output of its own: ours is closed when the command ends.
    """
    try:
        ended = child.run(words, stdin=stdin, seconds=timeout, environment=environment(), kill_group=False)
    except OSError as e:
        return 127, f"cannot be started: {e.strerror}"
    if ended.timed_out:
        return 124, f"did not end within {timeout:.0f} s"
    return ended.code, printable(ended.stderr or ended.stdout)


def printable(output: bytes) -> str:
    """Return the end of what a program said, as one can put it into a message: no control characters, no escapes."""
    text = output.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text).strip()[-300:]


def environment() -> dict[str, str]:
    """Nothing of the agent's own environment but the path: it may hold credentials' places."""
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8"}

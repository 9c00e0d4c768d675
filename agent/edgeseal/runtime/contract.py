"""What the agent asks of a runtime: prepare -> probe -> activate -> commit | rollback.

Each step either returns or raises; after `activate` exactly one of `commit` and `rollback` follows. Adapters work out
of process: a user's runtime needs only the path and the symlink.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from edgeseal.errors import RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgeseal.runtime.repository import ModelRepository

Kind: TypeAlias = Literal["serve", "exec", "systemd", "none"]


class ProbeError(RefusedError):
    """The release did not prove itself on this device; it must not serve."""


class ActivationError(TemporaryError):
    """The runtime did not take the release over; the one before goes on."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that is unpacked and wants to serve. `previous` is what serves now, if anything does."""

    model: str
    release: int
    directory: Path
    previous: int | None
    requirements: Mapping[str, object] = field(default_factory=dict)
    tests: object = None


class Adapter(Protocol):
    """One way to hand a model over."""

    name: str

    def prepare(self, candidate: Candidate) -> None:
        """Raise IncompatibleError if this device's runtime cannot run such a model at all."""

    def probe(self, candidate: Candidate) -> None:
        """Raise ProbeError unless the model loads and answers, in a process that serves nobody."""

    def activate(self, candidate: Candidate) -> None:
        """Make the runtime use it. Raises ActivationError."""

    def commit(self, candidate: Candidate) -> None:
        """Let go of what `rollback` would have needed."""

    def rollback(self, candidate: Candidate) -> None:
        """Make the runtime use `candidate.previous` again. Raises ActivationError."""


def make_adapter(
    kind: Kind,
    *,
    repository: ModelRepository,
    command: Sequence[str] = (),
    unit: str = "",
    probe: bool = True,
    probe_seconds: int = 60,
    probe_memory_mb: int = 1024,
) -> Adapter:
    """Return the adapter of that name.

    Raises UsageError for one whose settings are incomplete.
    """
    from edgeseal.runtime import adapters
    from edgeseal.runtime.probe import Limits

    limits = Limits(seconds=probe_seconds, memory_mb=probe_memory_mb) if probe else None
    if kind == "exec":
        return adapters.Exec(repository, limits, command)
    if kind == "systemd":
        return adapters.Systemd(repository, limits, unit)
    return adapters.Link(kind, repository, limits)

"""What the agent asks of a runtime: prepare -> probe -> activate -> commit | rollback.

Each step either returns or raises; after `activate` exactly one of `commit` and `rollback` follows. Adapters work out
of process: a user's runtime needs only the path and the symlink.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from edgeseal.errors import RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgeseal.runtime.repository import ModelRepository

Kind: TypeAlias = Literal["serve", "exec", "systemd", "oip-http", "none"]


class ProbeError(RefusedError):
    """The release did not prove itself on this device; it must not serve."""


class ActivationError(TemporaryError):
    """The runtime did not take the release over; the one before goes on."""


class WatchError(RefusedError):
    """The release took over and turned bad within the watch period; the one before is given back."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a runtime says of one release. Counts are since `instance` started; `median_ms` is a lower bound.

    `failed` is why it does not load, as of `failed_at` (Unix seconds). `asleep`: it will be loaded by a request.
    """

    instance: int
    serving: bool
    asleep: bool = False
    failed: str = ""
    failed_at: int = 0
    requests: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0
    median_ms: float | None = None


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
        """Raise IncompatibleError if this device's runtime cannot run such a model, TemporaryError if it cannot now."""

    def probe(self, candidate: Candidate) -> Mapping[str, Any] | None:
        """Return what the probe measured (probe_worker.examine), None where it is switched off.

        Raises ProbeError unless the model loads and answers, in a process that serves nobody.
        """

    def activate(self, candidate: Candidate) -> None:
        """Make the runtime use it. Raises ActivationError."""

    def health(self, model: str, release: int) -> Health | None:
        """Return how a release does, None if the runtime does not say."""

    def was_here(self) -> bool:
        """Whether the runtime is known to have run since this device started: if it is away, it is starting again."""

    def commit(self, candidate: Candidate) -> None:
        """Let go of what `rollback` would have needed."""

    def rollback(self, candidate: Candidate) -> None:
        """Make the runtime use `candidate.previous` again. Raises ActivationError."""


def make_adapter(  # noqa: PLR0913 - what the configuration's section has
    kind: Kind,
    *,
    repository: ModelRepository,
    command: Sequence[str] = (),
    unit: str = "",
    url: str | None = None,
    status_file: Path | None = None,
    probe: bool = True,
    probe_seconds: int = 60,
    probe_memory_mb: int = 1024,
    threads: int = 0,
) -> Adapter:
    """Return the adapter of that name.

    Raises UsageError for one whose settings are incomplete.
    """
    from edgeseal.runtime import adapters
    from edgeseal.runtime.adapter_exec import Exec
    from edgeseal.runtime.adapter_oip import OipHttp
    from edgeseal.runtime.probe import Limits

    limits = Limits(seconds=probe_seconds, memory_mb=probe_memory_mb, threads=threads) if probe else None
    if kind == "exec":
        return Exec(repository, limits, command)
    if kind == "systemd":
        return adapters.Systemd(repository, limits, unit)
    if kind == "oip-http":
        return OipHttp(repository, limits, url or "")
    if kind == "serve":
        return adapters.Serve(repository, limits, status_file)
    return adapters.Link(kind, repository, limits)

"""What one worker serves: a fixed set of releases, loaded and warmed before the first request.

Which ones is the supervisor's to decide; another set is another process, because runtimes do not give memory back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeseal.runtime import engine
from edgeseal.runtime.warm import warm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Loaded:
    """One release, ready to answer."""

    model: str
    release: int
    engine: engine.Engine
    since: float


@dataclass
class Models:
    """What is served; `failed` says of other models why they are not."""

    loaded: dict[str, Loaded] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, releases: Iterable[tuple[str, int, Path]], *, threads: int, failed: Mapping[str, str]) -> Models:
        """Load every release; one that does not load is in `failed` with the reason."""
        models = cls(failed=dict(failed))
        for model, release, directory in releases:
            try:
                found = engine.load(directory, threads=threads)
                warm(found)
            except Exception as e:  # noqa: BLE001 - an engine may raise anything; the others are served
                models.failed[model] = "not enough memory" if isinstance(e, MemoryError) else str(e)
            else:
                models.loaded[model] = Loaded(model, release, found, time.time())
        return models

    def get(self, model: str, version: str | None = None) -> Loaded:
        """Return a model that is ready.

        Raises LookupError saying why it is not there.
        """
        found = self.loaded.get(model)
        if found is None:
            reason = self.failed.get(model)
            raise LookupError(f"model {model[:80]!r} is not served" + (f": {reason}" if reason else ""))
        if version is not None and version != str(found.release):
            raise LookupError(f"model {model!r} is served as version {found.release}, not {version[:20]!r}")
        return found

    def all(self) -> list[Loaded]:
        """Return everything that is ready."""
        return list(self.loaded.values())

    def ready(self) -> bool:
        """Whether something is served, and nothing that should be is not."""
        return bool(self.loaded) and not set(self.failed) - set(self.loaded)

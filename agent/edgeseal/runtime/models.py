"""What is served: for each model in the repository the release that `current` names, loaded.

On a switch the new release is loaded first, then takes over; the old one goes with the last request that holds it. A
release that does not load leaves the old one serving. A `current` that is gone ends the service of that model: the
agent has taken back a release and has none to go back to.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeseal.runtime import engine
from edgeseal.runtime.repository import CURRENT, ModelRepository

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("edgeseal.serve")

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One release, ready to answer. `stamp` tells it from another directory of the same number."""

    model: str
    release: int
    engine: engine.Engine
    since: float
    stamp: _Stamp


@dataclass(frozen=True, slots=True)
class Failed:
    """A release that is current and does not load."""

    stamp: _Stamp
    release: int
    reason: str


class Models:
    """All models below one root."""

    def __init__(self, root: Path, *, threads: int) -> None:
        """Nothing is loaded before `refresh`."""
        self._repository = ModelRepository(root, allow_disk=True)
        self._threads = threads
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, Failed] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Load what has become current, then forget what it replaced. Never raises because of one model."""
        with self._lock:
            names = self._repository.models()
            for model in names:
                try:
                    self._follow(model)
                except Exception:
                    logger.exception("%s cannot be followed; it is tried again", model)
            for gone in (set(self._loaded) | set(self._failed)) - set(names):
                self._forget(gone)

    def _follow(self, model: str) -> None:
        release = self._repository.current(model)
        if release is None:
            if not (self._repository.root / model / CURRENT).is_symlink():
                self._forget(model)
            return  # a link to what is not there yet: the agent is between two steps
        directory = self._repository.path(model, release)
        stamp = _stamp(directory)
        serving, failed = self._loaded.get(model), self._failed.get(model)
        if serving and serving.stamp == stamp:
            self._failed.pop(model, None)
        elif not failed or failed.stamp != stamp:
            self._load(model, release, directory, stamp)

    def _load(self, model: str, release: int, directory: Path, stamp: _Stamp) -> None:
        try:
            loaded = engine.load(directory, threads=self._threads)
        except Exception as e:  # noqa: BLE001 - an engine may raise anything; what serves goes on
            if self._repository.current(model) != release:
                return  # taken back while it was being read: no fault of the release
            reason = "not enough memory" if isinstance(e, MemoryError) else str(e)
            self._failed[model] = Failed(stamp, release, reason)
            goes_on = self._loaded.get(model)
            after = f"release {goes_on.release} goes on" if goes_on else "nothing serves this model"
            logger.error("%s release %d does not load, %s: %s", model, release, after, reason)  # noqa: TRY400 - no bug of ours
            return
        self._failed.pop(model, None)
        self._loaded[model] = Loaded(model, release, loaded, time.time(), stamp)
        logger.info("%s release %d serves", model, release)

    def _forget(self, model: str) -> None:
        self._failed.pop(model, None)
        if self._loaded.pop(model, None) is not None:
            logger.info("%s is no longer in the repository", model)

    def get(self, model: str, version: str | None = None) -> Loaded:
        """Return a model that is ready.

        Raises LookupError saying why it is not there.
        """
        found = self._loaded.get(model)
        if found is None:
            failed = self._failed.get(model)
            raise LookupError(f"model {model[:80]!r} is not served" + (f": {failed.reason}" if failed else ""))
        if version is not None and version != str(found.release):
            raise LookupError(f"model {model!r} is served as version {found.release}, not {version[:20]!r}")
        return found

    def all(self) -> list[Loaded]:
        """Return everything that is ready."""
        return list(self._loaded.values())

    def ready(self) -> bool:
        """Whether something is served, and nothing that should be is not; an older release that goes on counts."""
        return bool(self._loaded) and not set(self._failed) - set(self._loaded)


def _stamp(directory: Path) -> _Stamp:
    found = directory.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns

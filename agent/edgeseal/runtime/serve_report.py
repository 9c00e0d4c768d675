"""Whom edgeseal-serve tells how it is: the status file, and the worker that shows it to people."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeseal.runtime import serve_status

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.runtime.counters import Tally
    from edgeseal.runtime.serving_child import Child

EVERY_SECONDS: Final = 1.0  # counts change with every request

logger = logging.getLogger("edgeseal.serve")


class Reporter:
    """Says what is new: changes of state at once, counts once a second."""

    def __init__(self, file: Path | None) -> None:
        """`file` is the status file, if there is to be one."""
        self._file = file
        self._said: serve_status.ServeStatus | None = None
        self._said_at = 0.0

    def tell(self, status: serve_status.ServeStatus, serving: Child | None) -> None:
        """Tell file and worker if there is something else to say; a file that cannot be written is logged."""
        if status == self._said:
            return
        changed = self._said is None or _without_releases(self._said) != _without_releases(status)
        if not changed and time.monotonic() - self._said_at < EVERY_SECONDS:
            return
        self._said, self._said_at = status, time.monotonic()
        if serving is not None and (changed or any(m.shadow for m in status.models.values())):
            serving.say({"status": plain(_without_releases(status, figures=True))})
        if self._file is None:
            return
        try:
            serve_status.write(self._file, status)
        except OSError as e:
            logger.warning("the status file cannot be written: %s", e)


def _without_releases(
    status: serve_status.ServeStatus, *, figures: bool = False
) -> dict[str, serve_status.ModelStatus]:
    """Return the models without what changes with every request, but with the `figures` of a release in the shadow."""
    return {
        m: msgspec.structs.replace(s, releases={}, shadow=s.shadow if figures else serve_status.outline(s.shadow))
        for m, s in status.models.items()
    }


def release_status(tally: Tally) -> serve_status.ReleaseStatus:
    """Return what the status file says of one release's counts."""

    def ms(q: float) -> float | None:
        seconds = tally.quantile(q)
        return None if seconds is None else seconds * 1000

    return serve_status.ReleaseStatus(tally.requests, tally.errors, tally.nan, tally.crashes, ms(0.5), ms(0.99))


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a message's value as JSON can carry it."""
    return msgspec.to_builtins(value, str_keys=True)

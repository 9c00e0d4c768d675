"""What every test may rely on."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure() -> None:
    """Let Ctrl-C be Ctrl-C: a shell's background job ignores SIGINT, and so would every process that a test starts."""
    ignored = signal.getsignal(signal.SIGINT) in {signal.SIG_IGN, None}
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each worker begin with its share of the slow tests: at the end they would keep one busy alone."""
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    rest = [item for item in items if not item.get_closest_marker("slow")]
    total, items[:] = len(items), []
    for worker in range(workers):  # xdist's worksteal gives each an equal part of the list, one after the other
        share = slow[worker::workers]
        more = (total - len(items)) // (workers - worker) - len(share)
        items += share + rest[: max(0, more)]
        del rest[: max(0, more)]
    items += rest

"""What the service tells other processes about its sources: one small JSON file in memory (tmpfs), replaced as a whole.

Health, numbers and names, for `rng status`, `status` and monitoring; the service owns the devices, so nobody else can
ask them. No sample, block or key is in it, and nobody decides about keys by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from edgeseal.durable import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgeseal.entropy.snapshot import Snapshot

NAME: Final = "entropy.json"
STALE: Final = 60  # seconds after which the file says nothing about now
_MAX_FILE: Final = 65_536


def publish(path: Path, *, policy: str, sources: Sequence[Snapshot], kernel_feed: str) -> None:
    """Replace the file. Never fails: a service that cannot tell goes on working."""
    about = {
        "at": int(time.time()),
        "pid": os.getpid(),
        "policy": policy,
        "sources": [s.as_dict() for s in sources],
        "kernel_feed": kernel_feed,
    }
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(json.dumps(about).encode())
        temporary.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Return what the service said within the last minute; None if it did not, or does not run any more."""
    try:
        about = json.loads(path.read_bytes()[:_MAX_FILE])
        if abs(time.time() - about["at"]) > STALE or not _runs(int(about["pid"])):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if isinstance(about.get("sources"), list) else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return pid > 0

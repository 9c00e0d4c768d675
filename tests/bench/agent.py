"""What the agent costs a small board: CPU and memory of `status`, of an update pass, and of the idle service."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.bench.measured import cost
from tests.unit.agent_world import Device, world

ROUNDS: Final = 5
IDLE_SECONDS: Final = 4.0


def measure() -> dict[str, object]:
    """Return CPU in milliseconds and peak resident memory in MB, best of five; the floor is an empty interpreter."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-bench-") as place, world(Path(place)) as (fleet, device):
        floor = min(_cost([sys.executable, "-c", "pass"]) for _ in range(ROUNDS))
        update_cpu, update_rss = _cost(_words(device, "update"))
        fleet.publish(2, size=64 * 2**20)
        fleet.assigned = 2
        large_cpu, large_rss = _cost(_words(device, "update"))
        poll_cpu, poll_rss = min(_cost(_words(device, "update")) for _ in range(ROUNDS))
        status_cpu, status_rss = min(_cost(_words(device, "status")) for _ in range(ROUNDS))
        return {
            "python_cpu_ms": floor[0],
            "python_rss_mb": floor[1],
            "status_cpu_ms": status_cpu,
            "status_rss_mb": status_rss,
            "poll_cpu_ms": poll_cpu,
            "poll_rss_mb": poll_rss,
            "update_2_mb_cpu_ms": update_cpu,
            "update_2_mb_rss_mb": update_rss,
            "update_64_mb_cpu_ms": large_cpu,
            "update_64_mb_rss_mb": large_rss,
            "idle_rss_mb": _idle(device),
        }


def _words(device: Device, *words: str) -> list[str]:
    return [sys.executable, "-m", "edgeseal.device.cli", "--config", str(device.config_file), *words]


def _cost(words: list[str]) -> tuple[float, float]:
    """CPU milliseconds and peak MB of one command."""
    found = cost(list(words))
    return round(1000 * found.cpu, 1), round(found.rss_mb, 1)


def _idle(device: Device) -> float:
    """Resident MB of the service between two passes."""
    process = subprocess.Popen(_words(device, "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(IDLE_SECONDS)
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    finally:
        process.terminate()
        process.wait(30)
    return round(pages * resource.getpagesize() / 2**20, 1)

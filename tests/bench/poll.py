"""What a poll costs the network: requests and bytes of bodies, when nothing changed and when a release is new."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.unit.agent_world import Device, Fleet, world


def measure() -> dict[str, object]:
    """Return requests and bytes received by the device."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-bench-") as place, world(Path(place)) as (fleet, device):
        _pass(device)
        requests, size = _counted(fleet, device)
        fleet.publish(2)
        fleet.assigned = 2
        changed_requests, changed_size = _counted(fleet, device)
        chunks = sum(n for path, _, n in fleet.server.log if path.startswith(("/chunks/", "/tables/")))
        return {
            "unchanged_requests": requests,
            "unchanged_bytes": size,
            "changed_requests": changed_requests,
            "changed_bytes": changed_size,
            "changed_bytes_without_chunks": changed_size - chunks,
        }


def _counted(fleet: Fleet, device: Device) -> tuple[int, int]:
    fleet.server.log.clear()
    _pass(device)
    return len(fleet.server.log), sum(size for _, _, size in fleet.server.log)


def _pass(device: Device) -> None:
    done = device.run("update")
    if done.returncode:
        raise RuntimeError(done.stderr)

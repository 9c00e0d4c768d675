"""The power is cut before every durable operation of a metadata refresh; every state that can be left recovers."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.sim.injected import ROOT
from tests.sim.refresh_world import NOW, BrickedError, RefreshWorld
from tests.sim.volatile import Crash, mounted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRIPT = "tests.sim.refresh_once"
pytestmark = pytest.mark.usefixtures("fuse")


def crashes(world: RefreshWorld, tmp_path: Path, *, ignore: Callable[[str], bool] = lambda _: False) -> list[Crash]:
    """Refresh on a disk that records; return every state that a power cut could have left."""
    with mounted(tmp_path / "disk", ignore=ignore) as disk, world.repository.serve() as server:
        disk.load(world.before.parent)
        disk.record()
        directory = disk.mountpoint / world.before.name
        words = [sys.executable, "-m", SCRIPT, directory, world.root, server.base, NOW + 1]
        subprocess.run([str(w) for w in words], check=True, timeout=60, cwd=ROOT)
        disk.finish()
    return disk.crashes


def check(world: RefreshWorld, crash: Crash, tmp_path: Path) -> str:
    directory = tmp_path / f"{crash.point}-{crash.variant}"
    crash.write(directory)
    return world.check(directory / world.before.name, str(crash))


@pytest.mark.parametrize("rotated", [False, True], ids=["release", "release-and-new-key"])
def test_power_cut_at_every_durable_operation_of_a_refresh(tmp_path: Path, rotated: bool) -> None:
    world = RefreshWorld.make(tmp_path, rotated=rotated)
    states = [check(world, crash, tmp_path) for crash in crashes(world, tmp_path)]
    assert len(states) > 20, "the recording saw hardly any durable operation"
    assert {"one", "two"} <= set(states)
    assert states[-1] == "two"


def test_a_disk_that_does_not_flush_staged_files_is_caught(tmp_path: Path) -> None:
    """Negative control: without the flush of the staged metadata some power cut leaves a device that is stuck."""
    world = RefreshWorld.make(tmp_path, rotated=False)
    recorded = crashes(world, tmp_path, ignore=lambda path: "/staging/" in path)
    with pytest.raises(BrickedError):
        [check(world, crash, tmp_path) for crash in recorded]


def test_a_disk_leaves_a_peer_that_hangs_up_an_error(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk"):
        pass
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")
    os.close(writing)

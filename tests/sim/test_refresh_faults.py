"""SIGKILL, EIO and ENOSPC at every system call of a metadata refresh: the device keeps the old or has the new state."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from tests.sim import injected
from tests.sim.refresh_world import NOW, BrickedError, RefreshWorld

from edgeseal.errors import EdgesealError

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SCRIPT = "tests.sim.refresh_once"
DOCUMENTED = {EdgesealError.exit_code, *(cls.exit_code for cls in EdgesealError.__subclasses__())}
pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.slow, pytest.mark.timeout(900)]


def test_kill_and_errors_at_every_call_of_a_refresh(memory_path: Path) -> None:
    world = RefreshWorld.make(memory_path, rotated=False)
    target = memory_path / "run" / "trust"
    seen: set[int] = set()
    wrong: list[str] = []
    with world.repository.serve() as server:
        words = [sys.executable, "-m", SCRIPT, target, world.root, server.base, NOW + 1]
        with injected.zygote(words, memory_path / "errors") as zygote:
            world.copy(target)
            calls = zygote.count(memory_path / "calls")
            assert sum(c.name == "fsync" for c in calls) > 5
            for fault in injected.faults(calls):
                shutil.rmtree(target.parent)
                world.copy(target)
                done = zygote.inject(fault)
                seen.add(done.returncode)
                wrong += problems(world, target, fault, done)
    assert not wrong, "\n".join(wrong)
    assert -9 in seen
    assert seen - {-9, 0}


def problems(
    world: RefreshWorld, target: Path, fault: injected.Fault, done: subprocess.CompletedProcess[str]
) -> list[str]:
    """Everything that one fault did wrong, so that one run names all of them."""
    out = []
    if "Traceback" in done.stderr:
        out.append(f"{fault}: {done.stderr}")
    elif done.returncode not in {-9, 0, *DOCUMENTED}:
        out.append(f"{fault}: exit code {done.returncode}: {done.stderr}")
    try:
        world.check(target, str(fault))
    except BrickedError as e:
        out.append(str(e))
    return out

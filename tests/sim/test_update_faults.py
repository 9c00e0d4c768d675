"""SIGKILL, EIO and ENOSPC at every system call of an update pass: the old or the new release serves, never neither."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from tests.sim import injected
from tests.unit.agent_world import Device, Fleet, make_writable, world

from edgeseal.device import releases, update
from edgeseal.errors import EdgesealError

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SCRIPT = "tests.sim.update_once"
DOCUMENTED = {EdgesealError.exit_code, *(cls.exit_code for cls in EdgesealError.__subclasses__())}
SMALL = 200_000
pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.mark.parametrize(
    ("kind", "part", "of"),
    [
        ("signal=SIGKILL", 0, 1),
        *(("error=EIO", part, 3) for part in range(3)),  # most calls can fail so: in parts, for several workers
        ("error=ENOSPC", 0, 1),
    ],
)
def test_fault_at_every_call_of_an_update_pass(memory_path: Path, kind: str, part: int, of: int) -> None:
    with world(memory_path) as (fleet, device):
        assert device.run("update").returncode == 0
        fleet.publish(2, size=SMALL)
        fleet.assigned = 2
        before = Snapshot(fleet, device, memory_path / "before")
        words = [sys.executable, "-m", SCRIPT, "--config", device.config_file, "update"]
        wrong: list[str] = []
        codes: set[int] = set()
        with injected.zygote(words, memory_path / "errors") as zygote:
            calls = zygote.count(memory_path / "calls")
            assert sum(c.name == "fsync" for c in calls) > 20
            for fault in [f for f in injected.faults(calls) if f.what == kind][part::of]:
                before.restore()
                done = zygote.inject(fault)
                codes.add(done.returncode)
                wrong += problems(fleet, device, fault, done)
    assert not wrong, "\n".join(wrong)
    assert codes - {0}, "no fault was felt"


class Snapshot:
    """The device and what the fleet knows of it, to try the next fault from the same start."""

    def __init__(self, fleet: Fleet, device: Device, copy: Path) -> None:
        self.fleet, self.device, self.copy = fleet, device, copy
        self.registry = fleet.registry.snapshot()
        shutil.copytree(device.state, copy / "state", symlinks=True)
        shutil.copytree(device.models, copy / "models", symlinks=True)

    def restore(self) -> None:
        for place, name in ((self.device.state, "state"), (self.device.models, "models")):
            make_writable(place)
            shutil.rmtree(place)
            shutil.copytree(self.copy / name, place, symlinks=True)
        self.fleet.registry.restore(self.registry)


def problems(fleet: Fleet, device: Device, fault: injected.Fault, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Everything that one fault did wrong, so that one run names all of them."""
    out = []
    if "Traceback" in done.stderr:
        out.append(f"{fault}: {done.stderr}")
    elif done.returncode not in {-9, 0, *DOCUMENTED}:
        out.append(f"{fault}: exit code {done.returncode}: {done.stderr}")
    if device.serving() not in {1, 2}:
        out.append(f"{fault}: release {device.serving()} serves")
    try:
        out += [f"{fault}: {p}" for p in releases.restore(device.agent())]
        after = update.run(device.agent())
        out += [f"{fault}: the next pass: {e}" for e in after.errors]
    except EdgesealError as e:
        out.append(f"{fault}: the next pass: {e}")
    if device.serving() != fleet.assigned:
        out.append(f"{fault}: the next pass does not lead to the new release: {done.stderr}")
    return out + [f"{fault}: {left}" for left in device.plaintext_outside()]

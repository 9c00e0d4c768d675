"""The pass that builds a lost state anew is cut off or fails at every call on that state: the next one does it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests.sim import injected
from tests.sim.test_update_faults import DOCUMENTED, SCRIPT, Snapshot
from tests.unit.agent_world import MODEL, world

from edgeseal.device import update

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.agent_world import Device

pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(600)]


def after(device: Device, fault: injected.Fault, stderr: str) -> list[str]:
    """Everything that is wrong after one fault and one pass without any."""
    wrong = [] if "Traceback" not in stderr else [f"{fault}: {stderr}"]
    if device.serving() != 1:
        wrong.append(f"{fault}: release {device.serving()} serves")
    wrong += [f"{fault}: the next pass: {e}" for e in update.run(device.agent()).errors]
    model = device.agent().state().model(MODEL)
    if (model.current and model.current.release, model.floor, device.serving()) != (1, 1, 1):
        wrong.append(f"{fault}: {model}")
    return wrong + [f"{fault}: {left}" for left in device.plaintext_outside()]


def test_fault_at_every_call_on_a_state_that_is_built_anew(memory_path: Path) -> None:
    with world(memory_path) as (fleet, device):
        assert device.run("update").returncode == 0
        for number in (0, 1):
            (device.state / f"state.{number}").write_bytes(b"\0" * 64)
        before = Snapshot(fleet, device, memory_path / "before")
        words = [sys.executable, "-m", SCRIPT, "--config", device.config_file, "update"]
        wrong: list[str] = []
        codes: set[int] = set()
        with injected.zygote(words, memory_path / "errors") as zygote:
            before.restore()
            calls = zygote.count(memory_path / "calls", ends_with=5)  # there is a problem to tell
            faults = list(injected.faults(_until_it_is_written(calls)))
            assert {f.call for f in faults} >= {"write", "fsync", "rename", "openat", "read"}
            for fault in faults:
                before.restore()
                done = zygote.inject(fault)
                codes.add(done.returncode)
                assert done.returncode in {-9, *DOCUMENTED}, f"{fault}: {done.stderr}"
                wrong += after(device, fault, done.stderr)
        assert not wrong, "\n".join(wrong)
        assert codes - {0}, "no fault was felt"


def _until_it_is_written(calls: list[injected.Call]) -> list[injected.Call]:
    """Return the calls on the state up to the one after both copies; later ones are like those of any pass."""
    found = [c for c in calls if "state." in c.file]
    renames = [i for i, c in enumerate(found) if c.name == "rename"]
    return found[: renames[2] + 1]

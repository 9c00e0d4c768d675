"""The power is cut before every durable operation of an update pass: the device comes up with the old or new release.

Memory is lost with the power; the fleet server remembers what it had answered by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.sim.volatile import Crash, mounted
from tests.unit.agent_world import Device, Fleet, world

from edgeseal.device import releases, update
from edgeseal.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("fuse"), pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = 1_200_000


class BrickedError(AssertionError):
    """The device came up with neither release, or did not reach the new one."""


def record(
    fleet: Fleet, device: Device, tmp_path: Path, *, ignore: Callable[[str], bool] = lambda _: False
) -> list[Crash]:
    """Run one update pass on a disk that records."""
    with mounted(tmp_path / "disk", ignore=ignore, elsewhere=fleet.registry.snapshot) as disk:
        disk.load(device.directory)
        disk.record()
        device.write_config(paths={"state": str(disk.mountpoint / "state")})
        done = device.run("update")
        assert done.returncode == 0, done.stderr
        disk.finish()
    return disk.crashes


def check(fleet: Fleet, device: Device, crash: Crash, tmp_path: Path, *, before: int | None) -> int | None:
    """Boot on the crash state; return the release that serves before the network is there."""
    directory = tmp_path / f"{crash.point}-{crash.variant}"
    crash.write(directory)
    fleet.registry.restore(crash.elsewhere)  # type: ignore[arg-type]
    if device.models.exists():
        device.reboot()
    device.write_config(paths={"state": str(directory / "state")})
    agent = device.agent()
    problems = releases.restore(agent)
    serving = device.serving()
    if problems or serving not in {before, fleet.assigned}:
        raise BrickedError(f"{crash}: release {serving} serves; {problems}")
    done = update.run(device.agent())
    if done.errors or device.serving() != fleet.assigned:
        raise BrickedError(f"{crash}: the next pass ends with {done.errors}, release {device.serving()} serves")
    return serving


def test_power_cut_at_every_durable_operation_of_the_first_pass(tmp_path: Path) -> None:
    """Includes the re-key at first contact: lost at every point, the device is never shut out."""
    with world(tmp_path) as (fleet, device):
        crashes = record(fleet, device, tmp_path)
        states = {check(fleet, device, crash, tmp_path, before=None) for crash in crashes}
    assert len(crashes) > 80
    assert states == {None, 1}


def test_power_cut_at_every_durable_operation_of_a_second_release(tmp_path: Path) -> None:
    with world(tmp_path) as (fleet, device):
        assert device.run("update").returncode == 0
        fleet.publish(2, size=SMALL)
        fleet.assigned = 2
        crashes = record(fleet, device, tmp_path)
        states = {check(fleet, device, crash, tmp_path, before=1) for crash in crashes}
    assert len(crashes) > 60
    assert states == {1, 2}


def test_a_disk_that_does_not_flush_the_state_is_caught(tmp_path: Path) -> None:
    """Negative control: without the flush of keys and state some power cut leaves a device that cannot go on."""
    with world(tmp_path) as (fleet, device):
        assert device.run("update").returncode == 0
        fleet.publish(2, size=SMALL)
        fleet.assigned = 2
        crashes = record(fleet, device, tmp_path, ignore=lambda path: path.startswith(("/state/keys/", "/state/.tmp-")))
        with pytest.raises((BrickedError, IntegrityError)):
            [check(fleet, device, crash, tmp_path, before=1) for crash in crashes]

"""A card that lost or damaged chunks of the installed release while the device was off: it serves again by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.agent_world import Device, Fleet
from tests.unit.test_agent_update import installed, ok

if TYPE_CHECKING:
    from pathlib import Path

World = tuple[Fleet, Device]


def chunks(device: Device) -> list[Path]:
    return sorted((device.state / "objects" / "chunks").glob("*/*"))


def spoil(path: Path, fault: str) -> None:
    if fault == "lost":
        path.unlink()
    elif fault == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("fault", ["lost", "cut short", "zeros"])
def test_chunk_of_the_running_release_is_damaged_before_a_reboot(world: World, fault: str) -> None:
    fleet, device = world
    ok(device, "update")
    spoil(chunks(device)[0], fault)
    device.reboot()
    fleet.server.log.clear()
    device.run("update")  # may end with the error that restoring met
    ok(device, "update")
    assert device.serving() == 1
    asked = [path for path, _, _ in fleet.server.log if "/chunks/" in path]
    assert len(asked) == 1, "only what was damaged is fetched"
    assert not device.plaintext_outside()


def test_damage_without_a_network_is_mended_when_it_is_back(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    spoil(chunks(device)[0], "zeros")
    device.reboot()
    device.write_config(fleet={"url": "http://127.0.0.1:9"})
    device.run("update")
    assert device.serving() is None
    device.write_config(fleet={"url": fleet.base})
    device.run("update")
    ok(device, "update")
    assert device.serving() == 1


def test_release_before_serves_until_the_damaged_one_is_mended(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    first = set(chunks(device))
    fleet.publish(2)
    fleet.assigned = 2
    assert installed(ok(device, "update")) == [2]
    spoil(next(path for path in chunks(device) if path not in first), "zeros")
    device.reboot()
    device.write_config(fleet={"url": "http://127.0.0.1:9"})
    device.run("update")
    assert device.serving() == 1
    device.write_config(fleet={"url": fleet.base})
    device.run("update")
    ok(device, "update")
    assert device.serving() == 2

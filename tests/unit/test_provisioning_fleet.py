"""What comes off the line is all a fleet needs: X1, a release, the re-key at first contact; nothing added by hand."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit import agent_world
from tests.unit.line_world import ENROL, SIGNER, order, public

from edgeseal.device import update
from edgeseal.device.line_home import DeviceHome
from edgeseal.enrolment import Record
from edgeseal.provisioning import Device, Dialogue, Stage, Station, pin
from edgeseal.session.server import ring
from edgeseal.suite import PublicKey
from edgeseal_host.testing.provisioning import OS_GROUP, Link, MemoryBook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[agent_world.Fleet]:
    made = agent_world.Fleet.make(tmp_path)
    made.publish(1, size=200_000)
    made.assigned = 1
    with made.serving():
        yield made


@pytest.mark.parametrize("agent_runs_before_the_lock", [False, True])
def test_provisioned_device_installs_its_first_release(
    fleet: agent_world.Fleet, tmp_path: Path, agent_runs_before_the_lock: bool
) -> None:
    device = agent_world.Device(fleet, tmp_path / "device", tmp_path / "device" / "models")
    device.directory.mkdir()
    device.write_config(paths={"state": str(device.state), "models": str(device.models)}, runtime={"allow_disk": True})
    book, link = MemoryBook(), Link()
    root = fleet.repository.root_bytes(1)
    wanted = order(
        root=root,
        fleet_url=fleet.base,
        pin=pin(public(SIGNER)),
        time_floor=int(time.time()) - 60,
        floors={"root": 1, "timestamp": 1},
    )
    station = Station(wanted, book, random=os.urandom, clock=link.clock)
    home = DeviceHome(device.agent())
    line = Device(Dialogue(home, random=os.urandom, clock=link.clock), OS_GROUP)
    if agent_runs_before_the_lock:
        link.run(station, line, until=lambda: station.result is not None)
    else:
        link.run(station, line, until=lambda: station.verdict is not None)
    (offer,) = book.offers.values()
    record = Record.from_bytes(offer.record)
    fleet.registry.enrol(record.device, PublicKey(record.suite, record.public), record.psk(ring([ENROL])))
    done = update.run(device.agent())
    assert not done.errors
    assert device.serving() == 1
    assert DeviceHome(device.agent()).stage() is Stage.LOCKED, "it has replaced the keys the station knew"
    agent_world.make_writable(device.models)

"""`station rework --port`: the identity of one serial number is destroyed, on its own port, and of no other."""

from __future__ import annotations

import os
import pty
import threading
import tty
from typing import TYPE_CHECKING

import pytest
from tests.unit.enrol_world import Records
from tests.unit.publisher_world import ok, refused

from edgeseal.errors import RefusedError, TemporaryError
from edgeseal.provisioning import CONTEXT, Stage
from edgeseal_host.station import chain, rework
from edgeseal_host.station.simulation import simulated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal.provisioning import FactoryReset
    from edgeseal_host.station.journal import Journal
    from edgeseal_host.station.simulation import Simulated

pytestmark = pytest.mark.unit
FAST = 2_000_000  # baud


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records.make(tmp_path_factory.mktemp("records") / "world", 0)


@pytest.fixture
def records(made: Records, tmp_path: Path) -> Records:
    return made.copied(tmp_path / "world")


@pytest.fixture
def devices(records: Records) -> Iterator[list[Simulated]]:
    """Two devices that this station has provisioned and locked, each on its port."""
    with simulated(2, baud=FAST, suite=1) as found:
        with records.world.journal() as journal:
            for device in found:
                assert records.world.provision(records.world.book(journal), device.home).passed
        yield found


def command(records: Records, serial: str, port: str) -> tuple[str, ...]:
    return ("station", "rework", serial, "--reason", "repaired", "--port", port, *records.keys)


def dialogue(records: Records, journal: Journal, serial: str, *, patience: float = 30.0) -> FactoryReset:
    def sign(message: bytes) -> bytes:
        return records.world.key.sign(message, CONTEXT)

    return rework.factory_reset(journal, records.station, sign, serial, patience=patience)


def test_identity_is_destroyed_and_the_device_gets_another(records: Records, devices: list[Simulated]) -> None:
    device = devices[0]
    former = device.home.identity
    result = ok(*command(records, device.home.serial, device.path))
    assert (result["former"], result["reset"], result["new"]) == ("press-0001", True, True)
    assert device.home.stage() is Stage.FRESH
    assert devices[1].home.stage() is Stage.LOCKED
    with records.world.journal() as journal:
        assert records.world.provision(records.world.book(journal), device.home).passed
        assert [e.device for e in journal.of_kind(chain.LOCKED)] == ["press-0001", "press-0002", "press-0003"]
    assert former is not None
    assert device.home.identity is not None
    assert device.home.identity[0].public.raw != former[0].public.raw


def test_another_board_on_the_port_keeps_its_identity(records: Records, devices: list[Simulated]) -> None:
    asked, there = devices[0].home.serial, devices[1]
    said = refused(3, *command(records, asked, there.path))
    assert f"{there.home.serial} is on this port, not {asked}" in said
    assert [d.home.stage() for d in devices] == [Stage.LOCKED, Stage.LOCKED]


def test_cut_short_it_is_done_by_the_next(records: Records, devices: list[Simulated]) -> None:
    """The device destroyed its identity, and nobody heard of it: it says so again, with the same receipt."""
    device = devices[0]
    with records.world.journal() as journal:
        first = dialogue(records, journal, device.home.serial)
        assert rework.converse(first, device.path, FAST).passed
        again = dialogue(records, journal, device.home.serial)
        assert rework.converse(again, device.path, FAST).passed
    assert first.result is not None
    assert first.result == again.result
    result = ok(*command(records, device.home.serial, device.path))
    assert result["reset"] is True


def test_receipt_of_another_board_is_none(records: Records, devices: list[Simulated]) -> None:
    """A fresh device tells no serial number: what it shows must be an identity of the one that is asked for."""
    one, other = devices
    ok(*command(records, other.home.serial, other.path))
    said = refused(3, *command(records, one.home.serial, other.path))
    assert f"gave {one.home.serial} no such identity" in said
    assert one.home.stage() is Stage.LOCKED


def test_another_stations_device_is_not_reset(devices: list[Simulated], tmp_path: Path) -> None:
    stranger = Records.make(tmp_path / "stranger", 0)
    with stranger.world.journal() as journal, pytest.raises(RefusedError, match="gave simulated-0001 no such identity"):
        rework.converse(dialogue(stranger, journal, "simulated-0001"), devices[0].path, FAST)
    assert devices[0].home.stage() is Stage.LOCKED


@pytest.mark.parametrize("pulled", [False, True])
def test_nobody_answers_or_the_cable_is_pulled(records: Records, pulled: bool) -> None:
    master, keeper = pty.openpty()
    tty.setraw(keeper)
    path = os.ttyname(keeper)

    def pull() -> None:
        os.read(master, 1)  # something was asked
        os.close(keeper)
        os.close(master)

    puller = threading.Thread(target=pull)
    with records.world.journal() as journal:
        reset = dialogue(records, journal, "10000001", patience=30.0 if pulled else 0.3)
        if pulled:
            puller.start()
        with pytest.raises(TemporaryError, match="the device was not reset") as caught:
            rework.converse(reset, path, FAST)
    assert "edgeseal-agent provision --reset" in (caught.value.hint or "")
    if pulled:
        puller.join()
    else:
        os.close(keeper)
        os.close(master)

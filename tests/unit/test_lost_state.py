"""Both copies of the state are damaged: the next pass builds it anew, and nothing that must not goes back with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.attacks.test_agent_update import medium
from tests.unit.agent_world import MODEL, Device, Fleet

from edgeseal import cbor, durable, slots
from edgeseal.device import recover, trial, update
from edgeseal.device.state import Model, State, StateFile
from edgeseal.errors import IncompatibleError, NotAuthorisedError, RollbackError

if TYPE_CHECKING:
    from pathlib import Path

World = tuple[Fleet, Device]
NOWHERE = {"url": "http://127.0.0.1:9"}


@pytest.fixture
def installed(world: World) -> World:
    """Release 1 is installed and reported."""
    _, device = world
    for _ in range(2):
        assert not update.run(device.agent()).errors
    return world


def lose(device: Device) -> None:
    """Damage both copies, each in its way."""
    for number, data in enumerate((b"", b"edgeseal" * 40)):
        (device.state / f"state.{number}").write_bytes(data)


def offline(device: Device) -> None:
    device.write_config(fleet=NOWHERE)


def model(device: Device) -> Model:
    return device.agent().state().model(MODEL)


def release(device: Device) -> int | None:
    current = model(device).current
    return current.release if current else None


def update_to_two(fleet: Fleet, device: Device) -> None:
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    assert not update.run(device.agent()).errors
    assert device.serving() == 2


def cut_off(fleet: Fleet, device: Device, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the power go at a step of the switch to release 2."""
    fleet.publish(2, size=200_000)
    fleet.assigned = 2

    def gone(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(trial, step, gone)
        with pytest.raises(KeyboardInterrupt):
            update.run(device.agent())
    assert device.agent().models.releases(MODEL) == [1, 2]


# It goes on -----------------------------------------------------------------------------------------------------------


def test_what_serves_stays_the_installed_release_and_the_fleet_is_told_once(installed: World) -> None:
    fleet, device = installed
    before = model(device)
    lose(device)
    done = update.run(device.agent())
    assert not done.errors, done.errors
    assert "no copy of it is sound" in done.problems[0]
    assert not done.installed
    found = model(device)
    assert (found.current and found.current.manifest) == (before.current and before.current.manifest)
    assert (release(device), found.floor, device.serving()) == (1, 1, 1)
    assert f"built anew, with {MODEL} release 1" in fleet.reports[-1].problem
    after = update.run(device.agent())
    assert not after.errors
    assert not after.problems
    assert fleet.reports[-1].problem == ""
    reports = len(fleet.reports)
    update.run(device.agent())
    assert len(fleet.reports) == reports, "and then it is quiet"


def test_command_says_what_happened_and_the_next_is_clean(installed: World) -> None:
    _, device = installed
    lose(device)
    assert "edgeseal-agent update" in device.run("status").stdout
    done = device.run("update")
    assert "built anew" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 5
    assert device.run("update").returncode == 0
    assert not device.plaintext_outside()


def test_release_in_memory_serves_on_without_a_network(installed: World) -> None:
    _, device = installed
    lose(device)
    offline(device)
    assert update.run(device.agent()).errors
    assert (device.serving(), release(device)) == (1, 1)
    device.reboot()
    update.run(device.agent())
    assert device.serving() == 1, "a state built anew restores as the former did"


def test_after_a_reboot_the_assigned_release_comes_back_from_this_disk(installed: World) -> None:
    fleet, device = installed
    lose(device)
    device.reboot()
    fleet.server.log.clear()
    done = update.run(device.agent())
    assert not done.errors, done.errors
    assert [(o.release, o.bytes_fetched) for o in done.installed] == [(1, 0)]
    assert (device.serving(), release(device)) == (1, 1)
    assert not [path for path, _, _ in fleet.server.log if "/chunks/" in path]


def test_after_a_reboot_without_a_network_the_newest_release_that_is_whole_serves(installed: World) -> None:
    fleet, device = installed
    update_to_two(fleet, device)
    lose(device)
    device.reboot()
    offline(device)
    done = update.run(device.agent())
    assert [o.release for o in done.installed] == [2]
    assert done.errors, "the network is missing all the same"
    assert (device.serving(), release(device), model(device).floor) == (2, 2, 2)


def test_release_that_is_not_whole_is_not_served(installed: World) -> None:
    _, device = installed
    lose(device)
    device.reboot()
    offline(device)
    next((device.state / "objects/chunks").glob("*/*")).unlink()
    done = update.run(device.agent())
    assert not done.installed
    assert "is not on this device" in done.errors[-1].message
    assert device.serving() is None
    assert not device.plaintext_outside()


def test_medium_installs_on_a_device_that_lost_its_state(installed: World, tmp_path: Path) -> None:
    fleet, device = installed
    fleet.publish(2, size=200_000)
    usb = medium(fleet, tmp_path / "usb", to=device)
    lose(device)
    offline(device)
    done = device.run("install", usb)
    assert done.returncode == 0, done.stderr
    assert "built anew" in done.stderr
    found = model(device)
    assert (device.serving(), found.previous and found.previous.release) == (2, 1)


def test_manifest_that_is_lost_too_comes_with_the_next_pass(installed: World) -> None:
    fleet, device = installed
    lose(device)
    for kept in (device.state / "targets").iterdir():
        kept.unlink()
    assert not recover_only(device).models[MODEL].current
    done = update.run(device.agent())
    assert not done.errors, done.errors
    assert (device.serving(), release(device)) == (1, 1)
    assert fleet.reports[-1].models[MODEL].release == 1


def recover_only(device: Device) -> State:
    agent = device.agent()
    with agent.locked():
        recover.rebuild(agent)
    return agent.state()


# A switch that was open ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [True, False])
def test_release_on_trial_is_not_taken_for_a_proven_one(
    installed: World, network: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, device = installed
    cut_off(fleet, device, "_keep", monkeypatch)
    assert device.serving() == 2
    lose(device)
    if not network:
        offline(device)
    done = update.run(device.agent())
    assert bool(done.errors) is not network
    assert device.serving() == (2 if network else 1), "again through the gate, or the one before"
    assert [o.release for o in done.installed] == ([2] if network else [])
    assert model(device).floor == device.serving()


def test_release_in_its_probe_is_forgotten(installed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, device = installed
    cut_off(fleet, device, "_switch", monkeypatch)
    assert device.serving() == 1
    lose(device)
    offline(device)
    update.run(device.agent())
    assert (device.serving(), release(device), model(device).floor) == (1, 1, 1)
    assert device.agent().models.releases(MODEL) == [1]


# Nothing goes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rebooted", [False, True])
def test_fleet_cannot_use_the_loss_to_go_back(installed: World, rebooted: bool) -> None:
    fleet, device = installed
    fleet.publish(2, size=200_000, min_rel=2)
    fleet.assigned = 2
    assert not update.run(device.agent()).errors
    lose(device)
    if rebooted:
        device.reboot()
    fleet.assigned = 1  # still listed, but below the floor
    done = update.run(device.agent())
    assert [type(e) for e in done.errors] == [RollbackError]
    assert device.serving() != 1


def test_without_the_floor_the_fleet_could_go_back(installed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    fleet, device = installed
    update_to_two(fleet, device)
    lose(device)
    monkeypatch.setattr(recover, "_model", lambda *_: Model())
    fleet.assigned = 1
    update.run(device.agent())
    assert device.serving() == 1


def test_revoked_device_learns_it_again_and_keeps_nothing(installed: World) -> None:
    fleet, device = installed
    fleet.registry.devices["press-7"].revoked = True
    assert isinstance(update.run(device.agent(), report=True).errors[0], NotAuthorisedError)
    lose(device)
    device.reboot()
    done = update.run(device.agent())
    assert isinstance(done.errors[0], NotAuthorisedError)
    assert device.agent().state().revoked
    assert device.serving() is None, "its content keys were deleted, and no state brings them back"


def test_counter_of_the_session_does_not_go_back(installed: World) -> None:
    """It is the identity's. A device that used a number again would be told STALE and counted as a clone."""
    fleet, device = installed
    before = fleet.registry.devices["press-7"].ctr
    lose(device)
    assert not update.run(device.agent(), report=True).errors
    row = fleet.registry.devices["press-7"]
    assert (row.ctr > before, row.alarms) == (True, 0)


# What is not a loss --------------------------------------------------------------------------------------------------


def test_state_that_can_be_read_the_second_time_is_kept(installed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device = installed
    before, real, failures = model(device), slots._bounded, [5, 5]

    def bounded(path: Path) -> bytes:
        if path.name.startswith("state.") and failures:
            raise OSError(failures.pop(), "Input/output error")
        return real(path)

    monkeypatch.setattr(slots, "_bounded", bounded)
    agent = device.agent()
    assert recover.rebuild(agent) == []
    assert agent.state().model(MODEL) == before


def test_state_of_a_newer_agent_is_not_overwritten(installed: World) -> None:
    _, device = installed
    StateFile(device.state)._slots.write(cbor.encode(cbor.to_map(State(format=2))), everywhere=True)
    kept = [(device.state / f"state.{n}").read_bytes() for n in (0, 1)]
    with pytest.raises(IncompatibleError):
        update.run(device.agent())
    assert [(device.state / f"state.{n}").read_bytes() for n in (0, 1)] == kept


def test_service_that_knows_the_former_state_takes_the_new_one(installed: World) -> None:
    """A slot with a lower number than one this process has seen is held to be an older copy."""
    _, device = installed
    service = device.agent()
    assert service.state().models
    lose(device)
    update.run(device.agent())
    assert service.state().model(MODEL).current


def test_memory_that_is_somebody_elses_is_not_believed(installed: World) -> None:
    """Below /dev/shm anybody can make the directory after a reboot, with a `current` of any number in it."""
    _, device = installed
    lose(device)
    device.reboot()
    elsewhere = device.directory / "planted"
    (elsewhere / MODEL / "9").mkdir(parents=True)
    (elsewhere / MODEL / "current").symlink_to("9")
    device.models.symlink_to(elsewhere)
    with pytest.raises(IncompatibleError, match="link is not followed"):
        update.run(device.agent())
    device.models.unlink()
    assert not update.run(device.agent()).errors
    assert (device.serving(), model(device).floor) == (1, 1)


@pytest.mark.parametrize("writes", [0, 1])
def test_power_cut_while_it_is_written(installed: World, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device = installed
    lose(device)
    real = durable.write_atomic
    left = [None] * writes

    def write(path: Path, data: bytes) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        real(path, data)

    with monkeypatch.context() as m:
        m.setattr(slots, "write_atomic", write)
        with pytest.raises(KeyboardInterrupt):
            recover.rebuild(device.agent())
    assert not update.run(device.agent()).errors
    assert (device.serving(), release(device)) == (1, 1)


def test_unwritable_state_directory_is_said(installed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device = installed
    lose(device)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(slots, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        update.run(device.agent())
    assert device.serving() == 1

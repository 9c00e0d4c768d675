"""A device that refuses its metadata, or whose card fails, tells its fleet why, and goes on with what it has."""

from __future__ import annotations

import errno
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import fleet_world
from tests.unit.agent_world import MODEL, Device, Fleet

from edgeseal import cbor
from edgeseal.checkin import Assignment, Orders, Report
from edgeseal.device import config, exchange, update
from edgeseal.device.agent import Agent
from edgeseal.errors import FormatError, IntegrityError, RefusedError, TemporaryError
from edgeseal.keystore import ContentKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

World = tuple[Fleet, Device]
DAY = 86_400


def one_pass(device: Device, **options: bool) -> update.Pass:
    return update.run(device.agent(), **options)


def settled(world: World) -> World:
    """Release 1 is installed and the fleet knows it; release 2 waits to be installed."""
    fleet, device = world
    assert not one_pass(device).errors
    assert not one_pass(device).errors
    fleet.publish(2, size=300_000)
    fleet.assigned = 2
    fleet.reports.clear()
    return world


def expire(fleet: Fleet) -> None:
    fleet.repository.publish("timestamp", expires=time.time() - 60)


def nothing_was_accepted(fleet: Fleet, device: Device) -> None:
    """Release 2 was assigned and its key granted in the answer; the device has taken neither."""
    assert device.serving() == 1
    assert {release for _, release in device.agent().keys.content_keys()} == {1}
    assert not [path for path, *_ in fleet.server.log if "/chunks/" in path or "/tables/" in path]


# Refused metadata ----------------------------------------------------------------------------------------------------


def test_expired_timestamp_is_told_and_nothing_is_accepted(world: World) -> None:
    fleet, device = settled(world)
    expire(fleet)
    fleet.server.log.clear()
    done = one_pass(device)
    assert isinstance(done.errors[0], RefusedError)
    assert [r.problem for r in fleet.reports] == [done.errors[0].message[:256]]
    assert "timestamp version" in fleet.reports[0].problem
    assert "expired on" in fleet.reports[0].problem
    assert fleet.reports[0].models[MODEL].release == 1
    nothing_was_accepted(fleet, device)


def tamper(fleet: Fleet, change: Callable[[dict[str, Any]], None]) -> None:
    """What a mirror can do to the timestamp."""
    data = json.loads(fleet.repository.files["metadata/timestamp.json"])
    change(data)
    fleet.repository.files["metadata/timestamp.json"] = json.dumps(data).encode()


def test_tampering_mirror_is_told_and_nothing_is_accepted(world: World) -> None:
    fleet, device = settled(world)
    tamper(fleet, lambda data: data["signed"].update(version=99))
    fleet.server.log.clear()
    done = one_pass(device)
    assert isinstance(done.errors[0], IntegrityError)
    assert "timestamp.json lacks valid signatures" in fleet.reports[0].problem
    nothing_was_accepted(fleet, device)


def test_rolled_back_mirror_is_told(world: World) -> None:
    fleet, device = world
    one_pass(device)
    old = fleet.repository.freeze()
    fleet.repository.publish()
    one_pass(device)
    fleet.reports.clear()
    fleet.repository.files.clear()
    fleet.repository.files.update(old)
    one_pass(device)
    assert "goes back or does not follow" in fleet.reports[0].problem


def test_rubbish_from_the_mirror_is_told(world: World) -> None:
    fleet, device = settled(world)
    fleet.repository.files["metadata/timestamp.json"] = b"\xff{"
    assert isinstance(one_pass(device).errors[0], FormatError)
    assert "timestamp.json" in fleet.reports[0].problem


def test_reason_is_told_once_and_then_with_every_report(world: World) -> None:
    fleet, device = settled(world)
    expire(fleet)
    for _ in range(3):
        assert one_pass(device).errors
    assert len(fleet.reports) == 1
    one_pass(device, report=True)
    later = Agent(config.load(device.config_file), clock=lambda: time.time() + 3700)
    update.run(later)
    assert len(fleet.reports) == 3
    assert len({r.problem.partition(";")[0] for r in fleet.reports}) == 1


def test_another_reason_is_told_again(world: World) -> None:
    fleet, device = settled(world)
    expire(fleet)
    one_pass(device)
    tamper(fleet, lambda data: data.update(signatures=[]))
    one_pass(device)
    assert [r.problem[:14] for r in fleet.reports] == ["timestamp vers", "timestamp.json"]


def test_fleet_hears_when_it_is_over(world: World) -> None:
    """Even if the same version comes back, so that nothing is new."""
    fleet, device = world
    one_pass(device)
    one_pass(device)
    good = fleet.repository.files["metadata/timestamp.json"]
    tamper(fleet, lambda data: data.update(signatures=[]))
    one_pass(device)
    fleet.repository.files["metadata/timestamp.json"] = good
    fleet.reports.clear()
    assert not one_pass(device).errors
    assert not one_pass(device).errors
    assert [r.problem for r in fleet.reports] == [""]


def test_installed_at_last_when_metadata_are_good_again(world: World) -> None:
    """Negative control of `nothing_was_accepted`."""
    fleet, device = settled(world)
    expire(fleet)
    one_pass(device)
    fleet.repository.publish("timestamp")
    assert [o.release for o in one_pass(device).installed] == [2]
    assert device.serving() == 2


def test_revoked_while_metadata_are_refused(world: World) -> None:
    """Revocation is the fleet's word under the PSK; it needs no metadata."""
    fleet, device = settled(world)
    expire(fleet)
    fleet.registry.devices["press-7"].revoked = True
    done = one_pass(device)
    assert "revoked this device" in str(done.errors[1])
    assert device.agent().keys.content_keys() == {}
    assert device.serving() == 1


def test_server_that_is_silent_too_costs_nothing_but_an_error(world: World) -> None:
    fleet, device = settled(world)
    expire(fleet)
    fleet.x1 = lambda m1: m1[:0] + b"\0\0"  # type: ignore[method-assign]
    done = one_pass(device)
    assert done.errors[0].exit_code == 3
    assert isinstance(done.errors[1], TemporaryError)
    del fleet.x1
    assert one_pass(device).errors
    assert len(fleet.reports) == 1  # not told before, so told now


def test_device_that_never_had_metadata_knows_no_server(world: World) -> None:
    fleet, device = world
    expire(fleet)
    done = one_pass(device)
    assert "expired" in str(done.errors[0])
    assert len(done.errors) == 2
    assert fleet.reports == []


def test_session_key_past_its_end_is_not_used(world: World) -> None:
    fleet, device = settled(world)
    expire(fleet)
    agent = Agent(config.load(device.config_file), clock=lambda: time.time() + 400 * DAY)
    done = update.run(agent)
    assert "every session key of the fleet server has ended" in str(done.errors[1])
    assert fleet.reports == []


def test_mirror_that_is_down_is_told_when_a_report_is_due(world: World) -> None:
    fleet, device = settled(world)
    device.write_config(fleet={"url": fleet.base, "metadata_url": "http://127.0.0.1:9/"})
    assert one_pass(device).errors
    assert fleet.reports == []
    later = Agent(config.load(device.config_file), clock=lambda: time.time() + 3700)
    update.run(later)
    assert "could not be fetched" in fleet.reports[0].problem


def test_refused_role_of_a_model_is_told_with_the_ordinary_report(world: World) -> None:
    fleet, device = settled(world)
    role = f"model-{MODEL}"
    fleet.repository.publish(role, expires=time.time() - 60)
    fleet.repository.publish("snapshot", "timestamp")
    done = one_pass(device)
    assert isinstance(done.errors[0], RefusedError)
    assert f"{role} version" in fleet.reports[0].problem


def test_old_report_without_a_problem_is_read(world: World) -> None:
    fleet, device = world
    one_pass(device)
    whole = fleet.reports[0].to_bytes()
    fields = enumerate(cbor.decode(whole, max_length=20_000).values())  # type: ignore[union-attr]
    former = Report.from_bytes(cbor.encode({key: value for key, value in fields if key < 10}))
    assert former.problem == ""
    assert former.metadata == fleet.reports[0].metadata


def test_operator_sees_the_reason(tmp_path: Path) -> None:
    world = fleet_world.World.make(tmp_path)
    with fleet_world.serving(world.data.path) as server:
        client = world.client(server)
        card = fleet_world.enrol(client, client.public(), "press-7")
        fleet_world.check_in(card, server, client.public(), problem="timestamp version 3 expired on 2027-01-16")
        to = ("--to", server.base, "--token", str(world.data.admin_token))
        shown = json.loads(fleet_world.run("device", "show", "press-7", *to, "--json").stdout)
        assert shown["report"]["problem"] == "timestamp version 3 expired on 2027-01-16"
        assert "expired on 2027-01-16" in fleet_world.run("device", "show", "press-7", *to).stdout


# A failing card ------------------------------------------------------------------------------------------------------


def broken(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error", "/card")


@pytest.mark.parametrize("part", ["store.sweep", "models.prepare", "models.sweep"])
def test_failing_block_before_anything_is_restored(world: World, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The pass goes on: metadata, report and even the next release do not hang on it."""
    fleet, device = settled(world)
    agent = device.agent()
    owner, name = part.split(".")
    monkeypatch.setattr(getattr(agent, owner), name, broken)
    done = update.run(agent)
    assert "Input/output error" in done.problems[0]
    assert "Input/output error" in fleet.reports[0].problem
    assert [o.release for o in done.installed] == [2]


def test_release_that_cannot_be_read_takes_no_other_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot the current release meets EIO where nobody expected it: the one before serves, the fleet knows."""
    fleet, device = settled(world)
    assert [o.release for o in one_pass(device).installed] == [2]
    device.reboot()
    fleet.reports.clear()
    fleet.assigned = 0
    agent = device.agent()
    stage = agent.models.stage

    def failing(model: str, release: int) -> Path:
        return broken() if release == 2 else stage(model, release)  # type: ignore[func-returns-value, return-value]

    monkeypatch.setattr(agent.models, "stage", failing)
    assert not update.run(agent).errors
    assert device.serving() == 1
    assert "release 2 cannot be restored" in fleet.reports[0].problem


def test_card_that_gives_nothing_back_is_still_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, device = world
    one_pass(device)
    one_pass(device)
    device.reboot()
    fleet.reports.clear()
    fleet.assigned = 0
    agent = device.agent()
    monkeypatch.setattr(agent.models, "stage", broken)
    done = update.run(agent)
    assert not done.errors
    assert "release 1 cannot be restored" in done.problems[0]
    assert "release 1 cannot be restored" in fleet.reports[0].problem
    assert device.run("update").returncode == 0  # the next pass reads it again, and can


# Keys past their end -------------------------------------------------------------------------------------------------


def end_of(device: Device, *releases: int) -> None:
    """Let the keys of releases end in 1970."""
    keys = device.agent().keys
    held = [
        ContentKey(c.model, c.release, c.ck, 1) if c.release in releases else c for c in keys.content_keys().values()
    ]
    keys.keep_content_keys(held)


def held(device: Device) -> set[int]:
    return {release for _, release in device.agent().keys.content_keys()}


def test_silent_fleet_ends_no_key(world: World) -> None:
    _fleet, device = settled(world)
    end_of(device, 1)
    device.write_config(fleet={"url": "http://127.0.0.1:9"})
    device.reboot()
    assert one_pass(device).errors
    assert device.serving() == 1
    assert held(device) == {1}


def test_key_of_what_serves_outlives_its_end_during_an_update(world: World) -> None:
    """Release 2 is assigned but does not come; after a reboot release 1 must still be there."""
    fleet, device = settled(world)
    end_of(device, 1)
    for name in fleet.releases[2].files:
        fleet.repository.files.pop(name, None)
    assert one_pass(device).errors
    assert held(device) == {1, 2}
    device.reboot()
    one_pass(device)
    assert device.serving() == 1


def test_key_past_its_end_goes_once_the_next_release_serves(world: World) -> None:
    _, device = settled(world)
    end_of(device, 1)
    assert [o.release for o in one_pass(device).installed] == [2]
    one_pass(device, report=True)
    assert held(device) == {2}


def test_key_past_its_end_goes_when_nothing_is_assigned(world: World) -> None:
    """The operator ended it: what is decrypted goes on, and does not come back."""
    fleet, device = settled(world)
    fleet.assigned = 0
    end_of(device, 1)
    one_pass(device, report=True)
    assert held(device) == set()
    assert device.serving() == 1
    device.reboot()
    assert "holds no key" in one_pass(device).problems[0]


def test_grant_renews_an_ended_key(world: World) -> None:
    fleet, device = settled(world)
    fleet.assigned = 1
    end_of(device, 1)
    one_pass(device, report=True)
    (key,) = device.agent().keys.content_keys().values()
    assert key.not_after > time.time()


def test_assignment_of_another_model_keeps_no_key(world: World) -> None:
    _, device = settled(world)
    end_of(device, 1)
    agent = device.agent()
    orders = Orders(1, [Assignment("other", "models/other/1.cbor", bytes(32), 1, 1, 2**40)], [], 60, 60)
    trust = agent.trust(agent.metadata_source())
    exchange._keep_keys(agent, trust, orders, int(time.time()))
    assert held(device) == set()

"""The agent's main job and its everyday troubles, as commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.unit.agent_world import MODEL, Device, Fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

World = tuple[Fleet, Device]


def ok(device: Device, *words: object) -> dict[str, object]:
    done = device.run(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def failed(device: Device, code: int, message: str, *words: object) -> None:
    done = device.run(*words)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def installed(found: dict[str, object]) -> Sequence[int]:
    return [o["release"] for o in found["installed"]]  # type: ignore[attr-defined]


def test_first_update_installs_what_is_assigned(world: World) -> None:
    fleet, device = world
    assert installed(ok(device, "update")) == [1]
    assert device.serving() == 1
    assert fleet.reports[0].models == {}
    assert fleet.reports[-1].models[MODEL].release == 1
    assert not device.plaintext_outside()


def test_first_contact_re_keys(world: World) -> None:
    """What the factory knows is worth nothing after it."""
    fleet, device = world
    before = set(fleet.registry.devices["press-7"].generations)
    ok(device, "update")
    ok(device, "update", "--report")
    assert set(fleet.registry.devices["press-7"].generations).isdisjoint(before)
    assert not device.agent().keys.identity().current.provisioned


def test_unchanged_poll_is_two_requests_and_less_than_a_kilobyte(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    fleet.server.log.clear()
    assert installed(ok(device, "update")) == []
    assert len(fleet.server.log) <= 2, fleet.server.log
    assert sum(size for _, _, size in fleet.server.log) <= 1000


def test_second_release_fetches_only_what_changed(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    second = fleet.publish(2)
    fleet.assigned = 2
    found = ok(device, "update")
    outcome: dict[str, int] = found["installed"][0]  # type: ignore[index]
    assert outcome["bytes_fetched"] < second.manifest.stored_size / 2
    assert device.serving() == 2


def test_rollback_goes_back_and_the_release_left_is_not_tried_again(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    fleet.publish(2)
    fleet.assigned = 2
    ok(device, "update")
    assert ok(device, "rollback")["release"] == 1
    assert device.serving() == 1
    assert installed(ok(device, "update", "--report")) == []
    assert device.serving() == 1
    assert fleet.reports[-1].failed[0].reason == "rolled back on the device"
    failed(device, 2, "no release to go back to", "rollback")


def test_what_the_page_shows_is_noted_and_outlives_a_reboot(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    fleet.publish(2)
    fleet.assigned = 2
    ok(device, "update")
    ok(device, "rollback")
    device.write_config(runtime={"probe": True})
    fleet.publish(3)  # no model at all
    fleet.assigned = 3
    failed(device, 6, "no model file in the release", "update")
    assert device.serving() == 1
    notes = device.agent().models.notes(MODEL)
    assert {how: notes[how]["release"] for how in ("rollback", "refused")} == {"rollback": 2, "refused": 3}
    assert notes["rollback"]["reason"] == "rolled back on the device"
    assert "no model file" in notes["refused"]["reason"]
    assert min(notes[how]["at"] for how in ("rollback", "refused")) > 1_700_000_000
    device.reboot()
    device.run("update")
    assert device.agent().models.notes(MODEL) == notes


def test_reboot_without_network_restores_the_release(world: World) -> None:
    _fleet, device = world
    ok(device, "update")
    device.reboot()
    device.write_config(fleet={"url": "http://127.0.0.1:9"})
    done = device.run("update")
    assert done.returncode == 5, done.stderr
    assert device.serving() == 1
    assert not device.plaintext_outside()


def test_installed_model_stays_when_metadata_expire_and_the_server_is_gone(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    fleet.repository.publish("timestamp", expires=1)
    failed(device, 3, "expired", "update")
    assert device.serving() == 1


def test_revoked_device_gets_nothing_and_drops_its_keys(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    fleet.registry.devices["press-7"].revoked = True
    fleet.publish(2)
    fleet.assigned = 2
    failed(device, 4, "revoked this device", "update")
    assert device.agent().keys.content_keys() == {}
    assert device.serving() == 1
    assert "revoked" in device.run("status").stdout


def test_withdrawn_release_takes_its_key_with_it(world: World) -> None:
    fleet, device = world
    ok(device, "update")
    fleet.publish(2)
    fleet.assigned = 2
    ok(device, "update")
    assert {r for _, r in device.agent().keys.content_keys()} == {1, 2}
    del fleet.repository.model(MODEL).targets[f"models/{MODEL}/1.cbor"]
    fleet.repository.publish()
    ok(device, "update", "--report")
    assert {r for _, r in device.agent().keys.content_keys()} == {2}


def test_status_before_and_after(world: World) -> None:
    _, device = world
    before = ok(device, "status")
    assert before["device"] == "press-7"
    ok(device, "update")
    after = ok(device, "status")
    assert after["models"][MODEL]["serving"] == 1  # type: ignore[index]
    assert after["problems"] == []
    assert "release 1" in device.run("status").stdout


def test_doctor_on_a_healthy_device(world: World) -> None:
    _, device = world
    ok(device, "update")
    done = device.run("doctor", "--json")
    verdicts = {f["check"]: f["verdict"] for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, done.stdout
    assert verdicts["fleet server"] == "ok"
    assert verdicts["secrets"] == "ok"


def test_not_enrolled(world: World) -> None:
    fleet, device = world
    other = Device(fleet, device.directory.parent / "other", device.models.parent / "other")
    other.directory.mkdir()
    other.write_config()
    failed(other, 4, "not enrolled", "update")
    assert other.run("status").returncode == 0


def test_two_passes_at_once(world: World) -> None:
    _, device = world
    with device.agent().locked():
        failed(device, 5, "held by another edgeseal process", "update")

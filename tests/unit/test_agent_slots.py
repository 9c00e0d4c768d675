"""A device whose small files are damaged, and one whose fleet has changed its key between two questions."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.unit.agent_world import MODEL, Device, Fleet

from edgeseal.device import update
from edgeseal.errors import IntegrityError, RefusedError
from edgeseal.session.device import ServerKeyUnknownError
from edgeseal.suite import PrivateKey
from edgeseal.trust.floors import Slots

if TYPE_CHECKING:
    from collections.abc import Callable

World = tuple[Fleet, Device]


@pytest.fixture
def installed(world: World) -> World:
    """Release 1 is installed and reported."""
    _, device = world
    for _ in range(2):
        assert not update.run(device.agent()).errors
    return world


# Damaged slots -------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "torn": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "another file": lambda _: b"edgeseal" * 40,
}


def damage(device: Device, name: str, *which: int, how: str = "empty") -> None:
    """Damage copies of a small file; one that was not written yet is made."""
    (place, *_) = {p.parent for p in device.state.rglob(f"{name}.[01]")}
    for number in which:
        path = place / f"{name}.{number}"
        path.write_bytes(DAMAGE[how](path.read_bytes() if path.exists() else b"\0" * 64))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("name", "how"), [("state", "torn"), ("floors", "one bit"), ("identity", "empty"), ("keys", "another file")]
)
def test_one_damaged_slot_costs_nothing_that_counts(installed: World, name: str, which: int, how: str) -> None:
    """Whichever copy it is: the device goes on, its counter with it, and the next release is installed."""
    fleet, device = installed
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    damage(device, name, which, how=how)
    done = update.run(device.agent())
    assert not done.errors, done.errors
    assert [o.release for o in done.installed] == [2]
    assert device.serving() == 2


@pytest.mark.parametrize("how", ["empty", "one bit"])
def test_a_lost_identity_stops_the_pass_and_not_the_model(installed: World, how: str) -> None:
    """Nobody can make up a private key; what becomes of a lost state is in test_lost_state."""
    _, device = installed
    damage(device, "identity", 0, 1, how=how)
    done = device.run("update", "--report")
    assert done.returncode == IntegrityError.exit_code, done.stdout + done.stderr
    assert "identity: no copy of it is sound" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert device.serving() == 1


@pytest.mark.parametrize("how", DAMAGE)
def test_lost_content_keys_are_granted_again(installed: World, how: str) -> None:
    """The model in memory goes on; after a reboot the key comes with the next answer, and with it the model."""
    _, device = installed
    damage(device, "keys", 0, 1, how=how)
    device.reboot()
    done = update.run(device.agent())
    assert "cannot be restored" in done.problems[0]
    assert not done.errors, done.errors
    assert device.serving() == 1
    assert set(device.agent().keys.content_keys()) == {(MODEL, 1)}


def test_two_damaged_floors_do_not_open_the_door_to_the_past(installed: World) -> None:
    """Without floors the committed metadata still are there, and tuf does not go back behind them."""
    fleet, device = installed
    old = fleet.repository.freeze()
    fleet.repository.publish()
    assert not update.run(device.agent()).errors
    damage(device, "floors", 0, 1)
    fleet.repository.files.clear()
    fleet.repository.files.update(old)
    done = update.run(device.agent())
    assert isinstance(done.errors[0], RefusedError)
    assert device.serving() == 1


def test_two_damaged_floors_are_raised_anew_by_the_next_poll(installed: World) -> None:
    """Though nothing has changed: the committed metadata say how high they were. Then those may be lost too.

    The time goes back to the timestamp's, or until the next exchange.
    """
    fleet, device = installed
    before = Slots(device.state / "trust").read()
    assert before.versions
    damage(device, "floors", 0, 1)
    assert not update.run(device.agent()).errors
    found = Slots(device.state / "trust").read()
    assert (found.versions, found.time.keys) == (before.versions, before.time.keys)
    assert 0 < found.time.value <= before.time.value
    for generation in (device.state / "trust").glob("generation*"):
        shutil.rmtree(generation)
    old = fleet.repository.freeze()
    fleet.repository.publish()
    assert not update.run(device.agent()).errors
    for generation in (device.state / "trust").glob("generation*"):
        shutil.rmtree(generation)
    fleet.repository.files.clear()
    fleet.repository.files.update(old)
    assert isinstance(update.run(device.agent()).errors[0], RefusedError)


def test_status_of_a_device_without_a_readable_state(installed: World) -> None:
    _, device = installed
    damage(device, "state", 0, 1)
    done = device.run("status")
    assert "Traceback" not in done.stderr
    assert "state" in done.stdout + done.stderr


# The fleet's key changes between refresh and check-in ----------------------------------------------------------------


def switch_at_the_first_question(fleet: Fleet, *, listed: bool) -> list[bytes]:
    """Let the server know a new key only, from the first message on; return the messages as they come."""
    new, asked, honest = PrivateKey(1, secrets.token_bytes(32)), list[bytes](), fleet.x1

    def x1(m1: bytes) -> bytes:
        if not asked:
            fleet.session = new
            if listed:
                fleet.list_server_keys(new)
        asked.append(m1)
        return honest(m1)

    fleet.x1 = x1  # type: ignore[method-assign]
    return asked


def test_new_session_key_is_found_in_signed_metadata(installed: World) -> None:
    fleet, device = installed
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    asked = switch_at_the_first_question(fleet, listed=True)
    done = update.run(device.agent())
    assert not done.errors, done.errors
    assert [o.release for o in done.installed] == [2]
    assert asked[0][2:18] != asked[1][2:18]  # kid_S
    assert asked[1][2:18] == fleet.session.public.kid


def test_session_key_that_nobody_signed_is_not_guessed(installed: World) -> None:
    fleet, device = installed
    asked = switch_at_the_first_question(fleet, listed=False)
    done = update.run(device.agent(), report=True)
    assert [type(e) for e in done.errors] == [ServerKeyUnknownError]
    assert len(asked) == 2
    assert device.serving() == 1
    assert device.run("update", "--report").returncode == 5


def test_metadata_refused_while_looking_for_the_new_key(installed: World) -> None:
    fleet, device = installed
    asked = switch_at_the_first_question(fleet, listed=False)
    honest = fleet.x1

    def x1(m1: bytes) -> bytes:
        fleet.repository.files["metadata/timestamp.json"] = b"{}"
        return honest(m1)

    fleet.x1 = x1  # type: ignore[method-assign]
    done = update.run(device.agent(), report=True)
    assert isinstance(done.errors[0], RefusedError)
    assert len(asked) == 1
    assert device.serving() == 1


def test_refused_metadata_and_a_new_session_key_at_once(installed: World) -> None:
    """Nobody can be told then; both reasons are said on the device."""
    fleet, device = installed
    asked = switch_at_the_first_question(fleet, listed=False)
    fleet.repository.publish("timestamp", expires=1)
    done = update.run(device.agent())
    assert [type(e) for e in done.errors] == [RefusedError, ServerKeyUnknownError]
    assert len(asked) == 1
    assert device.serving() == 1

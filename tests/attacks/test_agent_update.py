"""Attacks on a running agent: each ends with a named refusal, the old release serving, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import agent_world
from tests.unit.agent_world import CANARY, MODEL, Device, Fleet

from edgeseal.contentkey import seal_ticket
from edgeseal.device import config, update
from edgeseal.device.agent import Agent
from edgeseal.errors import EdgesealError, NoSpaceError
from edgeseal.suite import PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterator

World = tuple[Fleet, Device]
SYSTEM = Path(__file__).parents[2] / "agent" / "system"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fleet whose release 1 is installed."""
    with agent_world.world(tmp_path) as (fleet, device):
        assert not update.run(device.agent()).errors
        yield fleet, device


def refused(device: Device, code: int, message: str) -> None:
    """One pass is refused with `message`; release 1 goes on and no plaintext or temporary file is left."""
    done = update.run(device.agent(), report=True)
    assert done.errors, "nothing was refused"
    assert done.errors[0].exit_code == code, done.errors
    assert message in str(done.errors[0])
    assert device.serving() == 1
    assert not device.plaintext_outside()


def offer(fleet: Fleet, **custom: Any) -> None:
    fleet.publish(2, size=300_000, **custom)
    fleet.assigned = 2


def test_assigned_release_is_for_other_hardware(world: World) -> None:
    fleet, device = world
    offer(fleet, hw=["other-board"])
    refused(device, 6, "is for other-board; this device is test-board")


def test_assigned_release_needs_a_newer_agent(world: World) -> None:
    fleet, device = world
    offer(fleet, min_agent="99.0")
    refused(device, 6, "needs edgeseal 99.0")


def test_server_swaps_the_content_key(world: World) -> None:
    fleet, device = world
    offer(fleet)
    fleet.swapped_key = bytes(32)
    refused(device, 3, "commit")


def test_server_assigns_another_manifest_than_the_signed_one(world: World) -> None:
    fleet, device = world
    offer(fleet)
    fleet.assignment_sha256 = bytes(32)
    refused(device, 3, "another hash than the signed one")


def test_server_assigns_a_release_that_nobody_signed(world: World) -> None:
    fleet, device = world
    fleet.publish(2, size=300_000, listed=False)
    fleet.assigned = 2
    refused(device, 4, "does not list")


def test_server_assigns_an_older_release(world: World) -> None:
    fleet, device = world
    offer(fleet)
    assert not update.run(device.agent()).errors
    fleet.assigned = 1
    done = update.run(device.agent(), report=True)
    assert "older than release 2" in str(done.errors[0])
    assert done.errors[0].exit_code == 3
    assert device.serving() == 2


def test_server_withholds_the_key(world: World) -> None:
    fleet, device = world
    offer(fleet)
    fleet.granted = False
    refused(device, 4, "holds no key for bearing release 2")


def test_tampered_chunk(world: World) -> None:
    fleet, device = world
    offer(fleet)
    new = set(fleet.releases[2].files) - set(fleet.releases[1].files)
    for name in (n for n in new if n.startswith("chunks/")):
        data = fleet.repository.files[name]
        fleet.repository.files[name] = data[:-1] + bytes([data[-1] ^ 1])
    refused(device, 3, "")


def test_unreachable_objects_are_tried_again_and_then_installed(world: World) -> None:
    """The negative control of this file: the same release is installed once nothing is wrong with it."""
    fleet, device = world
    offer(fleet)
    lost = {n: fleet.repository.files.pop(n) for n in fleet.releases[2].files if n not in fleet.releases[1].files}
    done = update.run(device.agent())
    assert done.errors
    assert device.serving() == 1
    fleet.repository.files.update(lost)
    assert [o.release for o in update.run(device.agent()).installed] == [2]
    assert device.serving() == 2
    assert not device.plaintext_outside()


def test_full_disk_is_named_before_the_first_byte(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, device = world
    offer(fleet)
    agent = device.agent()
    monkeypatch.setattr(agent.store, "free", lambda: 1000)
    fleet.server.log.clear()
    done = update.run(agent)
    assert isinstance(done.errors[0], NoSpaceError)
    assert not [path for path, *_ in fleet.server.log if "/chunks/" in str(path)]
    assert device.serving() == 1


def test_full_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, device = world
    offer(fleet)
    agent = device.agent()
    monkeypatch.setattr(agent.models, "free", lambda: 1000)
    assert isinstance(update.run(agent).errors[0], NoSpaceError)
    assert device.serving() == 1


@pytest.mark.parametrize("year", [0, 4_291_747_200], ids=["1970", "2106"])
def test_wrong_clock_leaves_the_installed_model(world: World, year: int) -> None:
    """1970 is held up by the time floor; in 2106 everything has expired, which stops installs only."""
    _, device = world
    device.reboot()
    agent = Agent(config.load(device.config_file), clock=lambda: year)
    done = update.run(agent)
    assert device.serving() == 1
    assert bool(done.errors) == (year > 0), done.errors


def test_card_is_remounted_read_only(world: World) -> None:
    """What a kernel does with a failing card: the pass says so, and what is in memory is served."""
    fleet, device = world
    offer(fleet)
    mounted = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", str(device.state)]
    agent = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(device.config_file), "update"]
    done = subprocess.run([*command, *agent], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 5, done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert device.serving() == 1


def medium(fleet: Fleet, directory: Path, *, to: Device) -> Path:
    """Write what `bundle export` writes for release 2, with a ticket for `to`'s current key."""
    published = fleet.releases[2]
    for name, data in fleet.repository.files.items():
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    current = to.agent().keys.identity().current
    key = PrivateKey(current.suite, current.seed).public
    end = 4_000_000_000
    data = seal_ticket(key, current.psk, model=MODEL, release=2, ck=published.ck, not_after=end)
    place = directory / "tickets" / key.kid.hex() / MODEL / "2"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    return directory


def test_medium_with_a_ticket_of_another_device(world: World, tmp_path: Path) -> None:
    fleet, device = world
    offer(fleet)
    other = Device(fleet, tmp_path / "other", device.models.parent / "other")
    other.directory.mkdir()
    other.write_config()
    other.enrol("press-8")
    usb = medium(fleet, tmp_path / "usb", to=other)
    done = device.run("install", usb)
    assert done.returncode == 4, done.stderr
    assert "no ticket for this device" in done.stderr
    assert device.serving() == 1


@pytest.mark.parametrize("tar", [False, True], ids=["directory", "tar"])
def test_medium_for_this_device_installs(world: World, tmp_path: Path, *, tar: bool) -> None:
    fleet, device = world
    offer(fleet)
    usb = medium(fleet, tmp_path / "usb", to=device)
    if tar:
        with tarfile.open(tmp_path / "usb.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for path in sorted(usb.iterdir()):
                archive.add(path, path.name)
        usb = tmp_path / "usb.tar"
    done = device.run("install", usb)
    assert done.returncode == 0, done.stderr
    assert device.serving() == 2
    assert not device.plaintext_outside()


def test_canary_scan_sees_a_leak(world: World) -> None:
    """Negative control of `plaintext_outside`."""
    _, device = world
    (device.state / "objects" / "leak").write_bytes(b"x" + CANARY)
    assert any("leak" in found for found in device.plaintext_outside())


def test_example_configuration_is_valid() -> None:
    text = (SYSTEM / "edgeseal.toml").read_bytes()
    parsed = config.parse(text, name="edgeseal.toml")
    assert parsed.runtime.group == tomllib.loads(text.decode())["runtime"]["group"]


def test_agent_says_errors_of_its_own_kind() -> None:
    with pytest.raises(EdgesealError, match="no configuration file"):
        config.load(Path("/nonexistent/edgeseal.toml"))

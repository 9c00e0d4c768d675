"""The agent's own commands with a stick on an emulated bus: what keys are made of, and what the service does."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.needed import missing
from tests.sim.umockdev_world import World, what_is_absent
from tests.sim.usbmodel import STUCK
from tests.sim.usbstick import K_STICK, UNIQUE_ID, Stick
from tests.unit import agent_world

from edgeseal.entropy import published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON = 60.0
STICK_LINE = "edgeseal-qrng: quantum, evidence model+calibration"


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    if reason := what_is_absent():
        missing(reason)


@pytest.fixture
def fleet_world(tmp_path: Path) -> Iterator[tuple[agent_world.Fleet, agent_world.Device]]:
    with agent_world.world(tmp_path) as made:
        yield made


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A bus that every command of the test sees."""
    with World() as world:
        for name, value in world.variables().items():
            monkeypatch.setenv(name, value)
        yield world


def configure(device: agent_world.Device, **entropy: Any) -> None:
    keys = device.directory / "sticks.toml"
    keys.write_text(f'"{UNIQUE_ID.hex()}" = "{K_STICK.hex()}"\n')
    keys.chmod(0o600)
    device.write_config(entropy={"sources": ["edgeseal-qrng"], "stick_keys": str(keys), **entropy})


def until(condition: Callable[[], object], what: str) -> None:
    ends = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < ends, f"not within {SOON} s: {what}"
        time.sleep(0.05)


def request(device: agent_world.Device) -> subprocess.CompletedProcess[str]:
    """A second identity: the state directory of the first one is not touched."""
    device.directory.joinpath("state").rename(device.directory / f"state-{time.monotonic_ns()}")
    return device.run("enrol", "request", "--out", device.directory / "request.cbor", "--json")


Both = tuple[agent_world.Fleet, agent_world.Device]


def test_key_of_a_device_is_made_with_the_stick_and_says_so(fleet_world: Both, bus: World) -> None:
    _, device = fleet_world
    bus.plug("a", Stick())
    configure(device, policy="require")
    done = request(device)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entropy"] == ["os: getrandom", STICK_LINE]


@pytest.mark.parametrize("trouble", ["absent", "stuck", "simulated"])
def test_require_makes_no_key_and_says_why_with_a_code_of_its_own(trouble: str, fleet_world: Both, bus: World) -> None:
    _, device = fleet_world
    if trouble != "absent":
        stick = Stick(simulated=trouble == "simulated")
        stick.fault = STUCK if trouble == "stuck" else None
        bus.plug("a", stick)
    configure(device, policy="require")
    done = request(device)
    assert done.returncode == 7, done.stdout + done.stderr
    about = json.loads(done.stdout)
    assert about["error"] == "EntropyError"
    assert {"absent": "not attached", "stuck": "failed", "simulated": "simulated"}[trouble] in about["message"]
    assert not list(device.state.rglob("pending*"))


@pytest.mark.usefixtures("bus")
def test_mix_makes_the_key_without_the_stick_and_says_that(fleet_world: Both) -> None:
    _, device = fleet_world
    configure(device)
    done = request(device)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entropy"] == ["os: getrandom", "edgeseal-qrng: not used, absent: not attached"]


def test_service_owns_the_stick_and_gives_each_pass_its_blocks(fleet_world: Both, bus: World) -> None:
    """The re-key of the first pass is made with the stick's blocks under `require`, though the pass never opens it."""
    fleet, device = fleet_world
    stick = Stick()
    bus.plug("a", stick)
    configure(device, policy="require")
    path = device.models.parent / published.NAME
    command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(device.config_file), "run"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as service:
        try:
            until(
                lambda: (published.read(path) or {}).get("sources", [{}])[0].get("state") == "healthy",
                "a healthy stick",
            )
            assert bus.state("a")["claims"] == [0]
            until(lambda: device.serving() == 1, "the release was installed")
            rss = int(Path(f"/proc/{service.pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
            about = published.read(path)
            assert about is not None
            assert about["kernel_feed"].startswith("kernel: fed")
            assert about["sources"][0]["bytes_mixed"] > 0
            until(lambda: any(STICK_LINE in line for r in fleet.reports for line in r.entropy.values()), "the new key")
            bus.unplug("a")
            until(lambda: (published.read(path) or about)["sources"][0]["state"] != "healthy", "the loss was noticed")
        finally:
            service.send_signal(signal.SIGTERM)
            _, said = service.communicate(timeout=SOON)
    assert service.returncode == 0
    assert [said.count(f"edgeseal-qrng: {word}") for word in ("healthy", "lost: ")] == [1, 1], said
    assert said.count("kernel feed: ") == 1, said
    assert "Traceback" not in said
    assert rss < 40, "on a board of 512 MB every service counts: 30 MB is the aim, measured by ./dev bench"
    assert fleet.reports
    assert not path.exists()

"""`edgeseal-agent rng` with sticks on an emulated bus: real libusb, unmodified pyusb, each command its own process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.needed import missing
from tests.sim.test_usb_agent import until
from tests.sim.umockdev_world import World, what_is_absent
from tests.sim.usbmodel import STUCK
from tests.sim.usbstick import K_STICK, UNIQUE_ID, Stick

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    if reason := what_is_absent():
        missing(reason)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World() as world:
        for name, value in world.variables().items():
            monkeypatch.setenv(name, value)
        yield world


class Commands:
    """`rng` of one device that is not enrolled."""

    def __init__(self, place: Path) -> None:
        keys = place / "sticks.toml"
        keys.write_text(f'"{UNIQUE_ID.hex()}" = "{K_STICK.hex()}"\n')
        keys.chmod(0o600)
        (place / "c.toml").write_text(
            f'[paths]\nstate = "{place}/state"\nmodels = "{place}/run/models"\n'
            f'[entropy]\nsources = ["edgeseal-qrng"]\nstick_keys = "{keys}"\n'
        )
        self.place = place
        self._words = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(place / "c.toml"), "rng"]

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._words, *map(str, words)], capture_output=True, text=True, check=False, timeout=90)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._words, *words], stdout=subprocess.PIPE, text=True)

    def json(self, *words: object) -> tuple[int, dict[str, Any]]:
        done = self(*words, "--json")
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def rng(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_list_status_capture_and_assess_of_one_stick(bus: World, rng: Commands) -> None:
    bus.plug("a", Stick())
    code, listed = rng.json("list")
    assert (code, [d["serial"] for d in listed["devices"] if d["kind"] == "edgeseal-qrng"]) == (0, [UNIQUE_ID.hex()])
    code, seen = rng.json("status", "--wait", "30")
    assert (code, seen["sources"][0]["state"], seen["sources"][0]["evidence"]) == (0, "healthy", "model+calibration")
    assert seen["sources"][0]["qcnr_db"] > 10
    bus.until_free("a")
    code, about = rng.json("capture", rng.place / "x", "--samples", "9600")
    assert (code, about["device"]["serial"], about["begun_again"]) == (0, UNIQUE_ID.hex(), 0)
    bus.until_free("a")
    code, found = rng.json("assess", rng.place / "x.bin", "--quick")
    assert (code, found["claim_borne_out"]) == (0, True)


def test_restarts_open_the_stick_anew_each_time(bus: World, rng: Commands) -> None:
    bus.plug("a", Stick())
    code, about = rng.json("capture", rng.place / "r", "--restarts", "3", "--samples", "100")
    assert (code, about["complete"]) == (0, True)
    data = (rng.place / "r.bin").read_bytes()
    assert len({data[i : i + 100] for i in range(0, 300, 100)}) == 3
    bus.until_free("a")


def test_a_stick_that_another_process_holds_is_not_taken_from_it(bus: World, rng: Commands) -> None:
    bus.plug("a", Stick())
    with rng.start("watch", "--interval", "0.2") as holder:
        out = holder.stdout
        assert out is not None
        until(lambda: bus.state("a")["claims"] == [0], "it was claimed")
        done = rng("capture", rng.place / "x", "--samples", "500")
        assert done.returncode == 5, done.stderr
        assert "EBUSY" in done.stderr
        until(lambda: "healthy" in out.readline(), "a healthy look")
        holder.send_signal(signal.SIGINT)  # Ctrl-C
        holder.communicate(timeout=30)
        assert holder.returncode == 0
    bus.until_free("a")


def test_watch_sees_a_stick_come_and_go(bus: World, rng: Commands) -> None:
    with rng.start("watch", "--interval", "0.2") as watch:
        out = watch.stdout
        assert out is not None
        until(lambda: "absent" in out.readline(), "absent")
        bus.plug("a", Stick())
        until(lambda: "healthy" in out.readline(), "healthy")
        bus.unplug("a")
        until(lambda: "healthy" not in out.readline(), "gone")
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=30)
        assert watch.returncode == 0


def test_a_stuck_stick_fails_and_is_acknowledged(bus: World, rng: Commands) -> None:
    stick = Stick()
    stick.fault = STUCK
    bus.plug("a", stick)
    code, seen = rng.json("status", "--wait", "30")
    assert (code, seen["sources"][0]["state"]) == (1, "failed")
    (name,) = seen["latched"]
    bus.unplug("a")
    bus.plug("b", Stick())
    assert rng.json("status")[0] == 1  # re-plugged, but nobody has looked at it
    assert rng("acknowledge").returncode == 0
    code, seen = rng.json("status", "--wait", "30")
    assert (code, seen["latched"]) == (0, {}), name

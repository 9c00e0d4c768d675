"""`doctor` on randomness: each thing that goes wrong with a noise source has its own finding and a way out."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.unit.noise_driver import NoiseDriver

from edgeseal.device import config, doctor, doctor_entropy
from edgeseal.device.agent import Agent
from edgeseal.entropy import published
from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import Busy, Description, Found, Profile
from edgeseal.entropy.records import Failure, Records, identity
from edgeseal.entropy.snapshot import Snapshot, State

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.device.doctor import Finding
    from edgeseal.entropy.drivers.base import Options

pytestmark = pytest.mark.unit


class World:
    """A device, what is plugged in, and the parts of /proc, /run and /sys that doctor looks at."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.attached: list[Found] = []
        for name in ("proc", "run", "sys", "models"):
            (place / name).mkdir()

    def agent(self, entropy: str) -> Agent:
        paths = f'[paths]\nstate = "{self.place}/state"\nmodels = "{self.place}/models/m"\n'
        return Agent(config.parse(f"{paths}[entropy]\n{entropy}\n".encode(), name="c"))

    def findings(self, entropy: str) -> dict[str, Finding]:
        found = doctor_entropy.examine(
            self.agent(entropy), proc=self.place / "proc", run=self.place / "run", sys=self.place / "sys"
        )
        return {f.check: f for f in found}

    def publish(self, *sources: Snapshot) -> None:
        published.publish(self.place / "models" / published.NAME, policy="mix", sources=sources, kernel_feed="")

    def program(self, name: str) -> None:
        (self.place / "proc" / "77").mkdir()
        (self.place / "proc" / "77" / "comm").write_text(f"{name}\n")

    def generator(self, name: str) -> None:
        place = self.place / "sys" / "class" / "misc" / "hw_random"
        place.mkdir(parents=True)
        (place / "rng_current").write_text(f"{name}\n")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(detect, "scan", lambda **_: list(made.attached))
    return made


STICK = 'sources = ["edgeseal-qrng"]'


def test_a_healthy_stick(world: World) -> None:
    world.attached = [NoiseDriver().found()]
    found = world.findings(STICK)
    assert {f.verdict for f in found.values()} == {"ok"}
    assert "quantum, evidence model+calibration, QCNR 12.1 dB" in found["noise source edgeseal-qrng"].detail
    assert "edgeseal-qrng: quantum" in found["entropy"].detail


def test_no_source_configured(world: World) -> None:
    assert world.findings("")["noise source"].verdict == "ok"
    assert world.findings('policy = "off"')["noise source"].verdict == "ok"
    world.attached = [NoiseDriver().found()]
    found = world.findings("")["noise source"]
    assert found.verdict == "warning"
    assert 'sources = ["edgeseal-qrng"]' in found.hint
    assert world.findings('policy = "off"')["noise source"].verdict == "ok"


def test_the_kernels_own_generator_needs_no_configuration(world: World) -> None:
    described, profile = Description("hwrng", "/dev/hwrng"), Profile("hwrng", "unknown", "none")
    world.attached = [Found(described, profile, NoiseDriver().opened)]
    assert world.findings("")["noise source"].verdict == "ok"


def test_policy_require_without_a_source(world: World) -> None:
    found = world.findings('policy = "require"')
    assert found["entropy"].verdict == found["noise source"].verdict == "failed"


@pytest.mark.parametrize(("policy", "verdict"), [("mix", "warning"), ("require", "failed")])
def test_a_stick_that_is_not_there(world: World, policy: str, verdict: str) -> None:
    found = world.findings(f'policy = "{policy}"\n{STICK}')["noise source edgeseal-qrng"]
    assert (found.verdict, found.detail) == (verdict, "absent: not attached")
    assert "rng list" in found.hint


def test_a_stick_that_failed(world: World) -> None:
    name = identity(NoiseDriver().describe())
    world.attached = [NoiseDriver().found()]
    Records(world.place / "state" / "entropy").fail(name, Failure(name, "a frame came twice", int(time.time())))
    found = world.findings(STICK)["noise source edgeseal-qrng"]
    assert found.verdict == "failed"
    assert f"rng acknowledge {name}" in found.hint


@pytest.mark.parametrize(
    ("said", "verdict", "hint"),
    [("usb:1-1: EACCES Access denied", "failed", "70-edgeseal-qrng.rules"), ("EBUSY Resource busy", "warning", "stop")],
)
def test_a_stick_that_may_not_be_opened(world: World, said: str, verdict: str, hint: str) -> None:
    def refuse(_options: Options) -> NoiseDriver:
        raise Busy(said)

    stick = NoiseDriver()
    world.attached = [Found(stick.describe(), stick.profile, refuse)]
    found = world.findings(STICK)["noise source edgeseal-qrng"]
    assert found.verdict == verdict
    assert hint in found.hint


def test_a_simulated_stick_is_no_source(world: World) -> None:
    world.publish(Snapshot("edgeseal-qrng", State.HEALTHY, simulated=True))
    assert world.findings(STICK)["noise source edgeseal-qrng"].verdict == "failed"


def test_the_service_is_asked_instead_of_the_device(world: World) -> None:
    stick = NoiseDriver()
    world.attached = [stick.found()]
    world.publish(Snapshot("edgeseal-qrng", State.SUSPECT, reason="the mean has moved (mean)"))
    found = world.findings(STICK)["noise source edgeseal-qrng"]
    assert (found.verdict, found.detail) == ("warning", "suspect: the mean has moved (mean)")


LINE = Snapshot("truerng", State.HEALTHY, path="/dev/null", kind="truerng")


@pytest.mark.parametrize(
    ("runs", "marked", "verdict"), [(True, False, "warning"), (True, True, "ok"), (False, False, None)]
)
def test_modem_manager(world: World, runs: bool, marked: bool, verdict: str | None) -> None:
    world.publish(LINE)
    if runs:
        world.program("ModemManager")
    if marked:
        number = os.stat("/dev/null").st_rdev
        data = world.place / "run" / "udev" / "data"
        data.mkdir(parents=True)
        (data / f"c{os.major(number)}:{os.minor(number)}").write_text("E:ID_BUS=usb\nE:ID_MM_DEVICE_IGNORE=1\n")
    found = world.findings('sources = ["truerng"]').get("ModemManager")
    assert (found.verdict if found else None) == verdict
    if verdict == "warning":
        assert found is not None
        assert "70-edgeseal-qrng.rules" in found.hint


def test_modem_manager_does_not_matter_to_a_stick_that_is_no_line(world: World) -> None:
    world.publish(replace(LINE, name="edgeseal-qrng"))
    world.program("ModemManager")
    assert "ModemManager" not in world.findings(STICK)


def test_two_readers_of_the_kernels_generator(world: World) -> None:
    world.publish(Snapshot("hwrng", State.HEALTHY))
    world.generator("bcm2835-rng")
    assert "kernel generator" not in world.findings('sources = ["hwrng"]')
    world.program("rngd")
    found = world.findings('sources = ["hwrng"]')["kernel generator"]
    assert (found.verdict, found.detail) == ("warning", "rngd reads bcm2835-rng too")


def test_a_chaoskey_that_the_kernels_driver_holds(world: World) -> None:
    world.publish(Snapshot("chaoskey", State.ABSENT, reason="EBUSY"))
    world.generator("Chaoskey ABC")
    found = world.findings('sources = ["chaoskey"]')["kernel generator"]
    assert "hwrng" in found.hint


def test_doctor_has_the_findings_before_the_fleet(world: World) -> None:
    found = [f.check for f in doctor.examine(world.agent(""))]
    assert found[-3:] == ["entropy", "noise source", "fleet server"]
    json.dumps(doctor.as_dicts(doctor.examine(world.agent(""))))


def test_a_failure_does_not_open_the_state_directory_to_others(world: World) -> None:
    Records(world.place / "state" / "entropy").fail("x", Failure("x", "y", 1))
    assert (world.place / "state").stat().st_mode & 0o077 == 0

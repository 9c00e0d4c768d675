"""`edgeseal-agent rng` as a person types it: a stick in memory, a recording, a running service, and nothing at all."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.noise_driver import NoiseDriver

from edgeseal.device import config, rng_watch
from edgeseal.device.agent import Agent
from edgeseal.device.cli import main
from edgeseal.entropy import published
from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import Busy, Found
from edgeseal.entropy.records import Failure, Records, identity
from edgeseal.entropy.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.entropy.drivers.base import Options

pytestmark = pytest.mark.unit


class World:
    """One device's configuration and what is plugged in."""

    def __init__(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self.capsys = place, capsys
        self.attached: list[Found] = []
        self.run = place / "run"
        self.run.mkdir()
        self.configure('sources = ["edgeseal-qrng"]')

    def configure(self, entropy: str) -> None:
        paths = f'[paths]\nstate = "{self.place}/state"\nmodels = "{self.run}/models"\n'
        (self.place / "c.toml").write_text(f"{paths}[entropy]\n{entropy}\n")

    def agent(self) -> Agent:
        return Agent(config.load(self.place / "c.toml"))

    def __call__(self, *words: str | Path) -> tuple[int, str]:
        code = main(["--config", str(self.place / "c.toml"), "rng", *map(str, words)])
        return code, self.capsys.readouterr().out

    def json(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        code, out = self(*words, "--json")
        assert out.count("\n") == 1
        return code, json.loads(out)

    def fail(self, reason: str) -> str:
        name = identity(NoiseDriver().describe())
        Records(self.place / "state" / "entropy").fail(name, Failure(name, reason, int(time.time())))
        return name


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, capsys)
    monkeypatch.setattr(detect, "scan", lambda **_: list(made.attached))
    return made


def recording(place: Path, frames: int = 60) -> Path:
    r = random.Random(9)
    samples = array("H", [int(r.gauss(2048.5, 68)) for _ in range(480 * frames)])
    if sys.byteorder == "big":
        samples.byteswap()
    place.write_bytes(samples.tobytes())
    return place


# Status --------------------------------------------------------------------------------------------------------------


def test_status_of_a_healthy_stick_gives_it_back(world: World) -> None:
    stick = NoiseDriver()
    world.attached = [stick.found()]
    code, about = world.json("status")
    assert code == 0
    assert about["from"] == "here"
    assert about["sources"][0]["state"] == "healthy"
    assert about["sources"][0]["evidence"] == "model+calibration"
    assert stick.closed
    code, text = world("status")
    assert "edgeseal-qrng: healthy since" in text
    assert "QCNR 12.1 dB" in text
    assert "quantum, evidence model+calibration" in text


def test_status_without_a_stick_is_worth_trying_again(world: World) -> None:
    started = time.monotonic()
    code, about = world.json("status", "--wait", "30")
    assert (code, about["sources"][0]["state"]) == (5, "absent")
    assert time.monotonic() - started < 10  # nothing to wait for


def test_status_without_a_configured_source_says_what_keys_are_made_of(world: World) -> None:
    world.configure("")
    assert world("status") == (
        0,
        "no source is configured: keys come from the operating system's generator alone\n",
    )
    world.configure('policy = "require"')
    assert world("status")[0] == 5
    world.configure('policy = "off"\nsources = ["edgeseal-qrng"]')
    code, text = world("status")
    assert code == 0
    assert text.startswith("policy off")


def test_status_takes_the_word_of_a_running_service_and_does_not_open_the_device(world: World) -> None:
    stick = NoiseDriver()
    world.attached = [stick.found()]
    seen = Snapshot("edgeseal-qrng", State.SUSPECT, reason="the mean has moved (mean)", alarm_count=1)
    published.publish(world.run / published.NAME, policy="mix", sources=[seen], kernel_feed="kernel: fed")
    code, about = world.json("status")
    assert (code, about["from"], about["age_seconds"]) == (5, "service", 0)
    assert about["sources"][0]["reason"] == "the mean has moved (mean)"
    assert stick.reads == 0
    code, text = world("status")
    assert "as the service saw it 0 s ago" in text
    assert "kernel: fed" in text


@pytest.mark.parametrize("damage", ["age", "pid", "text", "list"])
def test_the_word_of_a_dead_or_silent_service_is_not_taken(world: World, damage: str) -> None:
    """The control of the test before: the device is opened instead."""
    file = world.run / published.NAME
    world.attached = [NoiseDriver().found()]
    published.publish(file, policy="mix", sources=[Snapshot("x")], kernel_feed="")
    about = json.loads(file.read_text())
    if damage == "age":
        about["at"] -= 3600
    elif damage == "pid":
        child = subprocess.Popen(["true"])
        child.wait()
        about["pid"] = child.pid
    elif damage == "list":
        about["sources"] = 7
    file.write_text("{" if damage == "text" else json.dumps(about))
    code, found = world.json("status")
    assert (code, found["from"]) == (0, "here")


def test_a_failed_stick_stays_failed_until_somebody_has_looked_at_it(world: World) -> None:
    stick = NoiseDriver()
    world.attached = [stick.found()]
    name = world.fail("a bit is stuck or biased (bits)")
    code, text = world("status")
    assert code == 1
    assert f"rng acknowledge {name}" in text
    assert stick.reads == 0
    code, about = world.json("acknowledge", name[:14])
    assert (code, about["acknowledged"]) == (0, [name])
    assert world("status")[0] == 0


def test_acknowledge_needs_to_know_which(world: World) -> None:
    assert world("acknowledge") == (0, "no device has failed\n")
    world.fail("x")
    Records(world.place / "state" / "entropy").fail("hwrng-0", Failure("hwrng-0", "y", 1))
    assert world("acknowledge")[0] == 2
    assert world("acknowledge", "zzz")[0] == 2
    assert world("acknowledge", "hwrng")[0] == 0
    assert list(Records(world.place / "state" / "entropy").failures()) == [identity(NoiseDriver().describe())]


# List ----------------------------------------------------------------------------------------------------------------


def test_list_says_what_to_write_into_the_configuration(world: World) -> None:
    world.attached = [NoiseDriver().found()]
    code, about = world.json("list")
    assert code == 0
    assert about["devices"][0]["configured"]
    world.configure("")
    code, text = world("list")
    assert '[entropy] sources = ["edgeseal-qrng"]' in text
    assert "1209:0001" in text
    world.attached = []
    assert "no noise source" in world("list")[1]


def test_what_a_device_calls_itself_does_not_command_the_terminal(world: World) -> None:
    stick = NoiseDriver(serial="\x1b[2J\x07")
    world.attached = [stick.found()]
    assert "\x1b" not in world("status")[1]


# Watch ---------------------------------------------------------------------------------------------------------------


def until(out: io.StringIO, text: str) -> Callable[[float], None]:
    """A sleep that ends as Ctrl-C does as soon as `text` was shown; a busy machine takes longer."""
    ends = time.monotonic() + 30

    def sleep(_seconds: float) -> None:
        if text in out.getvalue() or time.monotonic() > ends:
            raise KeyboardInterrupt
        time.sleep(0.05)

    return sleep


def watched(world: World, text: str, out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    agent = world.agent()
    assert rng_watch.watch(agent, interval=9, count=None, as_json=False, out=out, sleep=until(out, text)) == 0
    assert not [s for s in agent.sources if s._thread and s._thread.is_alive()]
    return out.getvalue()


def test_watch_writes_a_line_a_look_where_there_is_no_terminal(world: World) -> None:
    world.attached = [NoiseDriver().found()]
    text = watched(world, "QCNR 12.1 dB")
    assert "edgeseal-qrng: healthy" in text.splitlines()[-1]
    assert "\x1b" not in text


def test_watch_json_is_one_object_a_line(world: World) -> None:
    code, text = world("watch", "--count", "2", "--interval", "0", "--json")
    assert code == 0
    assert [json.loads(line)["policy"] for line in text.splitlines()] == ["mix", "mix"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_watch_redraws_a_terminal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stick = NoiseDriver()
    world.attached = [stick.found()]
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = watched(world, "healthy", Terminal())
    screens = shown.removesuffix("\n").split("\x1b[H")[1:]
    assert all(s.endswith("\x1b[J") for s in screens)
    assert "\x1b[32mhealthy\x1b[0m" in screens[-1]
    assert shown.endswith("\n")  # the shell's prompt begins a line
    assert stick.closed
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in watched(world, "healthy", Terminal())


def test_watch_shows_an_alarm_when_the_lamp_dies(world: World) -> None:
    def dark(samples: array[int], _number: int) -> array[int]:
        return array("H", [2048 + (x - 2048) // 8 for x in samples])

    world.attached = [NoiseDriver(faults=[(40, dark)]).found()]
    assert "the spread has changed (sigma)" in watched(world, "(sigma)")


def broken(out: io.StringIO) -> Callable[[str], int]:
    def write(_text: str) -> int:
        raise BrokenPipeError

    out.fileno = lambda: os.open(os.devnull, os.O_WRONLY)  # type: ignore[method-assign]
    return write


def test_how_fast_a_source_is_read_comes_from_two_looks() -> None:
    reading, source = rng_watch._Reading(), {"name": "x", "samples": 1000}

    def seen(at: int, samples: int) -> object:
        about = {"at": at, "sources": [source | {"samples": samples}]}
        reading.note(about)
        return about["sources"][0]["reading"]  # type: ignore[index]

    assert [seen(100, 1000), seen(100, 1000), seen(105, 3400), seen(105, 3400)] == [None, None, 480, 480]
    assert seen(110, 7) == 0  # opened anew: its numbers begin again


def test_a_reader_that_goes_away_ends_watch(world: World) -> None:
    out = io.StringIO()
    out.write = broken(out)  # type: ignore[method-assign]
    assert rng_watch.watch(world.agent(), interval=0, count=None, as_json=False, out=out) == 0


def test_ctrl_c_ends_the_command_without_a_traceback(world: World) -> None:
    world.configure("")
    command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(world.place / "c.toml"), "rng", "watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert "no source is configured" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=20)
        assert (child.returncode, error) == (0, "")


# Capture and assess --------------------------------------------------------------------------------------------------


def test_capture_then_assess(world: World) -> None:
    world.attached = [NoiseDriver().found()]
    code, about = world.json("capture", world.place / "x", "--samples", "12000")
    assert (code, about["sample_bits"], about["width"]) == (0, 12, 8)
    code, found = world.json("assess", world.place / "x.bin")
    assert (code, found["claim"], found["claim_borne_out"]) == (0, 4.0, True)
    assert found["width"] == 8
    assert 4 < found["assessed"] < 7
    code, text = world("assess", world.place / "x.bin")
    assert "claimed by the driver: 4 bits a sample: borne out" in text
    assert "its figure may be lower" in text
    assert [e["name"] for e in found["literal"]][3:] == ["multi-mcw", "lag", "multi-mmc", "lz78y"]
    code, found = world.json("assess", world.place / "x.bin", "--quick")
    assert len(found["literal"]) == 3


def test_a_source_worse_than_its_claim_ends_assess_with_one(world: World) -> None:
    def coarse(samples: array[int], _number: int) -> array[int]:
        return array("H", [x & ~63 for x in samples])

    world.attached = [NoiseDriver(faults=[(0, coarse)]).found()]
    world("capture", world.place / "x", "--samples", "9600")
    code, text = world("assess", world.place / "x.bin")
    assert code == 1
    assert "NOT borne out" in text


def test_capture_of_restarts(world: World) -> None:
    stick = NoiseDriver()
    world.attached = [stick.found()]
    code, _ = world("capture", world.place / "r", "--restarts", "3", "--samples", "100")
    assert code == 0
    assert (world.place / "r.bin").stat().st_size == (world.place / "r.columns.bin").stat().st_size == 300
    assert stick.closed == 3
    assert world("capture", world.place / "r", "--restarts", "3")[0] == 2  # never overwritten


def test_capture_from_a_recording_in_the_lab(world: World) -> None:
    file = recording(world.place / "lab.u16")
    assert world("capture", world.place / "x", "--source", f"file:{file}", "--samples", "5000")[0] == 5  # not the lab
    assert not (world.place / "x.bin").exists()
    world.configure("lab = true")
    assert world("capture", world.place / "x", "--source", f"file:{file}", "--samples", "5000")[0] == 0


def test_capture_chooses_no_device_for_you(world: World) -> None:
    assert world("capture", world.place / "x")[0] == 5
    world.attached = [NoiseDriver(serial="A").found(), NoiseDriver(serial="B").found()]
    assert world("capture", world.place / "x", "--samples", "500")[0] == 2
    assert world("capture", world.place / "x", "--samples", "500", "--source", "edgeseal-qrng:B")[0] == 0
    assert json.loads((world.place / "x.json").read_text())["device"]["serial"] == "B"


def test_a_device_that_the_service_holds_is_not_fought_for(world: World) -> None:
    def busy(_options: Options) -> NoiseDriver:
        raise Busy("usb:1-1: another process has it")

    described = NoiseDriver()
    world.attached = [Found(described.describe(), described.profile, busy)]
    assert world("capture", world.place / "x")[0] == 5
    code, about = world.json("status", "--wait", "1")
    assert code == 5
    assert "another process" in about["sources"][0]["reason"]


def test_assess_refuses_what_is_no_capture(world: World) -> None:
    file = world.place / "x.bin"
    assert world("assess", file)[0] == 2
    file.write_bytes(bytes(range(256)) * 4)
    assert world("assess", file, "--bits", "4")[0] == 2
    (world.place / "x.json").write_text('{"width": 8, "claim": 4, "files": {"x.bin": "00"}}')
    assert world("assess", file)[0] == 3  # the record is of other bytes
    for text in ("[1]", "{", "[" * 60_000, '{"width": 8, "claim": 4, "files": []}', " " * 100_000 + "{}"):
        (world.place / "x.json").write_text(text)
        assert world("assess", file)[0] == 3
    (world.place / "x.json").write_text('{"width": 8, "claim": 4, "files": {}}')  # of something else
    assert world("assess", file, "--quick")[0] == 0


def test_the_bits_of_a_sample_come_from_the_record(world: World) -> None:
    world.attached = [NoiseDriver().found()]
    world("capture", world.place / "x", "--samples", "2000")
    about = json.loads((world.place / "x.json").read_text())
    (world.place / "x.json").write_text(json.dumps(about | {"width": 7}))
    assert world("assess", world.place / "x.bin")[0] == 2  # a sample has more than 7 bits


@pytest.mark.parametrize("words", [["status", "--wait", "nan"], ["watch", "--count", "0"], ["capture"], ["upgrade"]])
def test_wrong_words_are_usage_errors(world: World, words: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        world(*words)
    assert e.value.code == 2

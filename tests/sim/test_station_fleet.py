"""From the line to the first release: a device on a pty, the station's command, a real fleet server, the agent.

Nothing is added by hand: what the station's run leaves is all that fleet and device have.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.sim.line_process import DeviceProcess
from tests.sim.serial_line import bench
from tests.unit import publisher_world
from tests.unit.agent_world import make_writable
from tests.unit.fleet_world import run
from tests.unit.publisher_world import MODEL, Publisher, ok, refused

from edgeseal_host.fleet.public import FleetPublic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAST = 2_000_000  # baud: this is not about time
GROUP = "presses"
BATCH = f"""
[batch]
name = "2026-11-a"
entropy = "mix"
group = "{GROUP}"
[fleet]
public = "public.json"
root = "root.json"
[names]
pattern = "press-{{number:04}}"
"""


@dataclass
class Line:
    """A publisher with a release, a fleet server, and a station that it trusts."""

    publisher: Publisher
    place: Path
    enrol: Path

    @property
    def station(self) -> tuple[str, ...]:
        return "--station", str(self.place / "station"), "--keys", str(self.place / "keys")

    @property
    def to(self) -> tuple[str, ...]:
        return "--to", self.publisher.base, "--token", str(self.enrol)

    @property
    def data(self) -> tuple[str, ...]:
        return "--data", str(self.publisher.place / "fleet")

    def run(self, port: str, *more: str) -> dict[str, Any]:
        """`edgeseal station run`, once, on one port; returns how it ended."""
        batch = str(self.place / "batch.toml")
        done = run("station", "run", "--batch", batch, "--port", port, "--once", *self.station, *more, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        end: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return end


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with publisher_world.publisher(tmp_path_factory.mktemp("fleet")) as publisher:
        place = tmp_path_factory.mktemp("line")
        enrol = place / "enrol.token"
        made = Line(publisher, place, enrol)
        ok("fleet", "token", "new", "--scope", "enrol", "--out", enrol, *made.data)
        ok("station", "init", "--name", "line 1", "--no-passphrase", *made.station)
        ok("fleet", "trust-station", place / "keys" / "station.pub.json", *made.data)
        # The server's port is known only now; a real fleet's address is in its public.json from the beginning.
        replace(FleetPublic.load(publisher.public), url=publisher.base).save(place / "public.json")
        (place / "root.json").write_bytes(publisher.root.read_bytes())
        (place / "batch.toml").write_text(BATCH)
        publisher.publish(publisher.build(1))
        ok("fleet", "assign", MODEL, 1, "--group", GROUP, *publisher.to)
        yield made


@dataclass
class Board(DeviceProcess):
    """A device whose image says everything but who it is: `edgeseal-agent` as a command."""

    serial: str = "0001"

    def write_config(self) -> Path:
        self.directory.mkdir(exist_ok=True, parents=True)
        path = self.directory / "edgeseal.toml"
        path.write_text(
            f'[device]\nhardware = "test-board"\nserial = "{self.serial}"\n'
            f'[paths]\nstate = "{self.directory / "state"}"\nmodels = "{self.directory}/models"\n'
            '[runtime]\nadapter = "none"\nprobe = false\nallow_disk = true\n'
        )
        return path

    def update(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(self.write_config()), "update"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    @property
    def installed(self) -> bytes | None:
        file = self.directory / "models" / MODEL / "current" / "model.bin"
        return file.read_bytes() if file.exists() else None


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "device", "", serial=secrets.token_hex(8))
    yield made
    made.stop()
    make_writable(tmp_path)


def provisioned(line: Line, board: Board, *more: str) -> dict[str, Any]:
    with bench(baud=FAST) as (cable,):
        board.port = cable.device
        board.start()
        end = line.run(cable.station, *more)
        board.wait()
    assert end["passed"] == 1, end
    return end


def names(line: Line, serial: str) -> list[str]:
    return [d["name"] for d in ok("device", "list", *line.publisher.to)["devices"] if d["serial"] == serial]


def installs(line: Line, board: Board) -> None:
    done = board.update()
    assert done.returncode == 0, done.stdout + done.stderr
    assert board.installed == (line.publisher.place / "model-1.bin").read_bytes()


def test_record_goes_up_during_the_run_and_the_device_installs_its_first_release(line: Line, board: Board) -> None:
    end = provisioned(line, board, *line.to)
    assert (end["records_waiting"], end["records_refused"]) == (0, 0)
    (name,) = names(line, board.serial)
    installs(line, board)
    shown = ok("device", "show", name, *line.publisher.to)
    assert shown["station"] is not None
    assert shown["report"]["models"][MODEL]["release"] == 1
    assert ok("station", "upload", *line.to, *line.station)["sent"] == 0, "the journal knows that it is there"


def test_record_is_carried_on_a_stick_and_the_device_installs_its_first_release(
    line: Line, board: Board, tmp_path: Path
) -> None:
    provisioned(line, board)
    before = board.update()
    assert before.returncode != 0, "negative control: the fleet does not know it yet"
    assert board.installed is None
    stick = tmp_path / "stick.jsonl"
    ok("station", "carry", stick, *line.station)
    found = ok("fleet", "import-enrolments", stick, *line.data)
    assert (found["registered"], found["refused"]) == (1, 0)
    installs(line, board)
    again = ok("fleet", "import-enrolments", stick, *line.data)
    assert (again["registered"], again["known"], again["refused"]) == (0, 1, 0), "although it has new keys by now"
    assert ok("station", "upload", *line.to, *line.station)["sent"] == 1, "now the journal knows it too"


def test_rework_ends_the_former_identity_everywhere_and_the_device_is_a_new_one(line: Line, board: Board) -> None:
    provisioned(line, board, *line.to)
    (former,) = names(line, board.serial)
    installs(line, board)
    with bench(baud=FAST) as (cable,):
        board.port = cable.device
        board.start("--reset")
        arguments = ("station", "rework", board.serial, "--reason", "repaired", "--port", cable.station, *line.station)
        result = ok(*arguments, *line.publisher.to)
        assert (result["former"], result["revoked"], result["reset"]) == (former, [former], True)
        end = line.run(cable.station, *line.to)
        board.wait()
    assert (end["passed"], end["records_refused"]) == (1, 0), end
    found = {d["name"]: d["revoked"] for d in ok("device", "list", *line.publisher.to)["devices"]}
    _, new = names(line, board.serial)
    assert (found[former], found[new]) == (True, False)
    make_writable(board.directory)
    installs(line, board)


def test_rework_of_a_device_nobody_revoked_is_refused_by_the_fleet(line: Line, board: Board, tmp_path: Path) -> None:
    provisioned(line, board, *line.to)
    (former,) = names(line, board.serial)
    said = ok("station", "rework", board.serial, "--reason", "new card", *line.station)
    assert (said["new"], said["revoked"]) == (True, [])
    card = Board(tmp_path / "new-card", "", serial=board.serial)
    with bench(baud=FAST) as (cable,):
        card.port = cable.device
        card.start()
        batch = str(line.place / "batch.toml")
        done = run("station", "run", "--batch", batch, "--port", cable.station, "--once", *line.station, *line.to)
        card.wait()
        card.stop()
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"is device {former}" in done.stdout + done.stderr
    assert names(line, board.serial) == [former]
    assert f"is device {former}" in refused(3, "station", "upload", *line.to, *line.station)
    ok("device", "revoke", former, "--reason", "new card", *line.publisher.to)
    assert ok("station", "upload", *line.to, *line.station)["sent"] == 1
    installs(line, card)


def count(database: Path, query: str, *values: object) -> int:
    """Read beside whoever writes."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute(query, values).fetchone()[0])


@pytest.mark.parametrize("moment", ["granted", "provisioned", "registered"])
def test_station_killed_on_the_way_and_the_next_run_brings_the_device_in(line: Line, board: Board, moment: str) -> None:
    """Killed when the grant is in the journal, when the device has confirmed, when the fleet server has its row."""
    journal, registry = line.place / "station" / "journal.db", line.publisher.place / "fleet" / "fleet.db"
    batch = str(line.place / "batch.toml")
    arguments = ("station", "run", "--batch", batch, "--once", *line.station, *line.to)

    def reached() -> bool:
        if moment == "registered":
            return count(registry, "SELECT COUNT(*) FROM device WHERE serial = ?", board.serial) > 0
        return count(journal, "SELECT COUNT(*) FROM entry WHERE serial = ? AND kind = ?", board.serial, moment) > 0

    with bench(baud=FAST) as (cable,):
        board.port = cable.device
        board.start()
        command = [sys.executable, "-c", "from edgeseal_host.cli import main; main()", *arguments]
        with subprocess.Popen([*command, "--port", cable.station], stdout=subprocess.DEVNULL) as process:
            ends = time.monotonic() + 60
            while not reached() and process.poll() is None:
                assert time.monotonic() < ends
                time.sleep(0.001)
            process.kill()
        assert board.process is not None
        with suppress(subprocess.TimeoutExpired):
            board.process.wait(2)  # it ends by itself once it is locked
        if board.process.poll() is None:  # it waits for a station
            run(*arguments, "--port", cable.station)
        board.wait()
    ok("station", "upload", *line.to, *line.station)
    (name,) = names(line, board.serial)
    assert count(journal, "SELECT COUNT(*) FROM entry WHERE device = ? AND kind = 'uploaded'", name) == 1
    assert (
        count(journal, "SELECT COUNT(DISTINCT kid) FROM entry WHERE serial = ? AND kind = 'granted'", board.serial) == 1
    )
    installs(line, board)

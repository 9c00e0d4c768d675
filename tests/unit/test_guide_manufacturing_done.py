"""The manufacturing guide, done: every command in it, as it stands there, on simulated boards and a real fleet server.

Only names of this place are put in: ports, addresses, a serial number, the head of the journal.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.fleet_world import Publisher, serving
from tests.unit.publisher_world import edgeseal, ok

from edgeseal.provisioning import Stage
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.station.simulation import HARDWARE, Simulated, simulated

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "manufacturing.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("edgeseal ")
]
NOT_HERE = "--port auto"  # would take whatever is plugged into the machine that runs this
FAST = ["--once", "--baud", "2000000"]


@dataclass
class Line:
    """The desk of a line: a directory, boards, a fleet server."""

    place: Path
    boards: list[Simulated]
    url: str = ""
    head: str = ""
    done: list[str] = field(default_factory=list)

    def here(self, word: str) -> str:
        """Put in the names of this place."""
        names = {
            "/dev/lane1": self.boards[0].path,
            "/dev/lane2": self.boards[1].path,
            "https://fleet.example": self.url,
            "/srv/edgeseal": str(self.place / "fleet"),
            "10000000abcdef01": self.boards[0].home.serial,
            "press-0007": "press-0001",
            "15:HASH": self.head,
        }
        return names.get(word, word)

    def do(self, beginning: str, *more: str, code: int = 0) -> str:
        """Do the guide's next command that begins so; return what it prints."""
        line = next(c for c in COMMANDS if c.startswith(f"edgeseal {beginning}") and c not in self.done)
        self.done.append(line)
        words = [self.here(word) for word in shlex.split(line, comments=True)[1:]]
        if words[:2] == ["station", "run"]:
            words += FAST
        result = edgeseal(*words, *more)
        assert result.exit_code == code, (line, result.output, result.exception)
        return result.output


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.chdir(tmp_path)
    for name in ("station", "keys"):
        monkeypatch.setenv(f"EDGESEAL_{name.upper()}", str(tmp_path / name))
    (tmp_path / "passphrase").write_text("correct horse\n")
    monkeypatch.setenv("EDGESEAL_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    data = DataDirectory(tmp_path / "fleet")
    public = data.create("http://127.0.0.1:8443", now=int(time.time()))
    public.save(tmp_path / "public.json")
    (tmp_path / "1.root.json").write_bytes(Publisher(public).root_bytes())
    for scope in ("enrol", "operate"):
        ok("fleet", "token", "new", "--scope", scope, "--out", tmp_path / f"{scope}.token", "--data", data.path)
    with simulated(3, baud=2_000_000, suite=1) as boards, contextlib.ExitStack() as stack:
        made = Line(tmp_path, boards)
        made.url = stack.enter_context(serving(data.path)).base
        yield made


def batch() -> str:
    """The guide's batch file, for the boards that are here."""
    (found,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(found).replace("raspberrypi,4-model-b", HARDWARE)


def devices(line: Line) -> dict[str, bool]:
    """Name of each device at the fleet server, and whether it is revoked."""
    found = ok("device", "list", "--to", line.url, "--token", line.place / "operate.token")["devices"]
    return {device["name"]: device["revoked"] for device in found}


def test_every_command_of_the_guide(line: Line) -> None:
    assert "3 PASS, 1 FAIL" in line.do("station run --simulate", code=1)
    line.do("station init")
    status = line.do("station status")
    ok("fleet", "trust-station", line.place / "keys" / "station.pub.json", "--data", line.place / "fleet")
    assert re.search(r"[0-9a-f]{32}", status)
    (line.place / "batch.toml").write_text(batch())

    assert "PASS" in line.do("station run --batch batch.toml --operator anna", "--port", line.boards[2].path)
    assert "2 PASS, 0 FAIL" in line.do("station run --batch batch.toml --port /dev/lane1")
    assert all(board.home.stage() is Stage.LOCKED for board in line.boards)

    assert "3 records sent" in line.do("station upload")
    assert devices(line) == {"press-0001": False, "press-0002": False, "press-0003": False}
    line.do("station rework")
    assert list(devices(line).values()).count(True) == 1, "the former identity is revoked"
    line.do("station rework")
    assert line.boards[0].home.stage() is Stage.FRESH, "the former identity is destroyed"
    again = edgeseal("station", "run", "--batch", "batch.toml", "--port", line.boards[0].path, *FAST)
    assert "press-0004: PASS" in again.output

    line.do("station carry")
    line.do("fleet import-enrolments")
    line.do("station acknowledge")
    assert devices(line)["press-0004"] is False
    assert (
        "the fleet server has every record already"
        in edgeseal(*("station", "upload", "--to", line.url, "--token", line.place / "enrol.token")).output
    )

    line.do("station labels")
    line.do("station labels")
    assert len(list((line.place / "labels").glob("press-*.svg"))) == 4
    line.do("station export --csv")
    assert [row["device"] for row in csv.DictReader((line.place / "devices.csv").read_text().splitlines())][
        -1
    ] == "press-0004"
    assert len(json.loads(line.do("station export --json"))["devices"]) == 4
    line.do("station export --failures")

    found = line.do("station verify-journal")
    (line.head,) = re.findall(r"\d+:[0-9a-f]{96}", found)
    line.do("station verify-journal --known")
    assert [c for c in COMMANDS if c not in line.done and NOT_HERE not in c] == []

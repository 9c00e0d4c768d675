"""kill -9 of the fleet server, of `station upload` and of an import in between: journal and registry agree after it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.unit.enrol_world import Records
from tests.unit.fleet_world import serving
from tests.unit.publisher_world import edgeseal, ok

from edgeseal_host.station import chain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEVICES = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records.make(tmp_path_factory.mktemp("records") / "world", DEVICES)


@pytest.fixture
def records(made: Records, tmp_path: Path) -> Records:
    found = made.copied(tmp_path / "world")
    found.trust()
    return found


def token(records: Records) -> Path:
    file = records.world.place / "enrol.token"
    if not file.exists():
        ok("fleet", "token", "new", "--scope", "enrol", "--out", file, *records.data)
    return file


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", "from edgeseal_host.cli import main; main()", *map(str, words)]


def rows(records: Records) -> int:
    """Devices in the registry, read beside whoever writes it."""
    with closing(sqlite3.connect(f"file:{records.world.data.database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM device").fetchone()[0])


def when(records: Records, count: int, then: Callable[[], None], process: subprocess.Popen[bytes]) -> None:
    """Act as soon as the registry has so many devices."""
    ends = time.monotonic() + 30
    while rows(records) < count and process.poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.002)
    then()


def agree(records: Records) -> None:
    """Every device of the journal is in the registry, and nothing else; and the journal knows it."""
    with records.world.journal() as journal:  # checks the chain
        provisioned = [e.device for e in journal.of_kind(chain.PROVISIONED)]
        assert sorted(e.device for e in journal.of_kind(chain.UPLOADED)) == provisioned
    assert list(records.devices()) == provisioned
    assert len(provisioned) == DEVICES


@pytest.mark.parametrize("count", [1, 5])
def test_upload_killed_in_the_middle_is_finished_by_the_next(records: Records, count: int) -> None:
    with serving(records.world.data.path) as server:
        words = ("station", "upload", "--to", server.base, "--token", token(records), *records.keys)
        process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        when(records, count, lambda: process.send_signal(signal.SIGKILL), process)
        assert process.wait() in {-signal.SIGKILL, 0}
        assert rows(records) >= count
        assert edgeseal(*words).exit_code == 0
    agree(records)


@pytest.mark.parametrize("count", [3])
def test_fleet_server_killed_in_the_middle_and_another_goes_on(records: Records, count: int) -> None:
    with serving(records.world.data.path) as server:
        words = ("station", "upload", "--token", token(records), *records.keys)
        process = subprocess.Popen(
            command(*words, "--to", server.base), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        when(records, count, server.kill, process)
        assert process.wait(30) in {0, 5}, "try again later"
    with serving(records.world.data.path) as server:
        assert edgeseal(*words, "--to", server.base).exit_code == 0
    agree(records)


def test_import_killed_in_the_middle_is_finished_by_the_next(records: Records, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    ok("station", "carry", stick, *records.keys)
    words = ("fleet", "import-enrolments", stick, *records.data)
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    when(records, 3, lambda: process.send_signal(signal.SIGKILL), process)
    process.wait()
    found = ok(*words)
    assert (found["registered"] + found["known"], found["refused"]) == (DEVICES, 0)
    assert found["known"] >= 3
    with serving(records.world.data.path) as server:
        ok("station", "upload", "--to", server.base, "--token", token(records), *records.keys)
    agree(records)


def test_import_beside_a_running_server_and_an_upload_at_the_same_time(records: Records, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    ok("station", "carry", stick, *records.keys)
    with serving(records.world.data.path) as server:
        words = ("station", "upload", "--to", server.base, "--token", token(records), *records.keys)
        process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert edgeseal("fleet", "import-enrolments", stick, *records.data).exit_code == 0
        assert process.wait(30) == 0
    agree(records)


def test_a_registry_that_lost_a_device_would_be_seen(records: Records) -> None:
    """Negative control of `agree`."""
    with serving(records.world.data.path) as server:
        ok("station", "upload", "--to", server.base, "--token", token(records), *records.keys)
    agree(records)
    with records.world.data.open() as fleet:
        fleet.registry.forget("press-0003")
    with pytest.raises(AssertionError):
        agree(records)

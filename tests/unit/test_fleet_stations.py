"""Stations that a fleet trusts: whose record is whose, in which order, at the same time, and in an older registry."""

from __future__ import annotations

import io
import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.enrol_world import NOW, Records, other_signer, outcomes
from tests.unit.publisher_world import edgeseal, ok

from edgeseal.enrolment import Record
from edgeseal.errors import FormatError, IncompatibleError, NotAuthorisedError, RefusedError
from edgeseal_host.fleet import imports, operations
from edgeseal_host.fleet.stations import TrustedStation

pytestmark = pytest.mark.unit
VERSION_1 = Path(__file__).parents[1] / "vectors" / "fleet-schema-1.sql"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records.make(tmp_path_factory.mktemp("records") / "world")


@pytest.fixture
def records(made: Records, tmp_path: Path) -> Records:
    return made.copied(tmp_path / "world")


def test_the_whole_pin_names_a_station_not_its_beginning(records: Records) -> None:
    """An id is short enough to be typed; what counts is compared in full."""
    records.trust()
    pin = records.station.pin
    with records.world.data.open() as fleet:
        assert fleet.stations.find(pin).public == records.station.raw
        for other in (pin[:16] + bytes(32), pin[:-1] + bytes([pin[-1] ^ 1]), pin[:16], b"", pin + b"\0"):
            with pytest.raises(NotAuthorisedError, match="is not one this fleet trusts"):
                fleet.stations.find(other)


@pytest.mark.parametrize("length", [0, 1951, 1953, 1312])
def test_what_is_no_key_of_a_station(length: int) -> None:
    with pytest.raises(FormatError, match="1952 bytes"):
        TrustedStation("x", bytes(length))


def test_stations_are_in_use_from_the_first_one_on_for_good(records: Records) -> None:
    with records.world.data.open() as fleet:
        assert fleet.stations.in_use() is False
        station = TrustedStation("line 1", records.station.raw)
        fleet.stations.trust(station, now=NOW)
        assert fleet.stations.in_use() is True
        fleet.stations.distrust(station.id, "sold", now=NOW + 1)
        assert fleet.stations.in_use() is True


def test_list_says_who_brought_how_many_and_what_became_of_him(records: Records) -> None:
    other = other_signer()
    id_1, id_2 = records.trust(), records.trust(other, name="line 2")
    records.take(records.carried(records.records[:2]))
    records.take(records.carried(records.records[2:], other))
    ok("fleet", "distrust-station", id_2, "--reason", "key copied", *records.data)
    found = {s["id"]: s for s in ok("fleet", "stations", *records.data)["stations"]}
    assert (found[id_1]["devices"], found[id_1]["reason"], found[id_1]["groups"]) == (2, None, [])
    assert (found[id_2]["devices"], found[id_2]["reason"]) == (1, "key copied")
    shown = edgeseal("fleet", "stations", *records.data).stdout
    assert re.search(rf"{id_1} +line 1 +trusted +2026-\d\d-\d\d +any +2", shown)
    assert re.search(rf"{id_2} +line 2 +distrusted +\d{{4}}-\d\d-\d\d +any +1 +key copied", shown)
    with records.world.data.open() as fleet:
        assert operations.device_details(fleet, "press-0003", now=NOW)["station"] == id_2


def test_commands_name_a_directory_that_is_no_fleet(tmp_path: Path, records: Records) -> None:
    file = tmp_path / "f"
    file.write_bytes(records.carried())
    nowhere = ("--data", str(tmp_path / "none"))
    public = records.world.place / "keys" / "line-1.pub.json"
    for words in (
        ("trust-station", public),
        ("stations",),
        ("distrust-station", "00", "--reason", "x"),
        ("import-enrolments", file),
    ):
        result = edgeseal("fleet", *words, *nowhere)
        assert result.exit_code == 2, result.output
        assert "fleet init" in result.stderr
    assert not (tmp_path / "none").exists()


def test_two_imports_of_one_file_at_the_same_time_register_each_device_once(records: Records) -> None:
    records.trust()
    data, go = records.carried(), threading.Barrier(2)

    def run() -> list[str]:
        go.wait()
        return outcomes(records.take(data))

    with ThreadPoolExecutor(2) as pool:
        one, other = (job.result() for job in [pool.submit(run), pool.submit(run)])
    for a, b in zip(one, other, strict=True):
        assert sorted((a, b)) == ["known", "registered"]
    assert len(records.devices()) == 3


def test_registry_of_version_1_takes_stations_once_it_is_upgraded(records: Records) -> None:
    """Its devices came without a digest of their record: the same record again is still no stranger."""
    record = Record.from_bytes(records.records[0])
    with records.world.data.open() as fleet:
        psk = record.psk(fleet.data.ring("enrol").ring())
        fleet.registry.enrol(record, psk, now=NOW)
    _as_version_1(records.world.data.database)
    assert edgeseal("fleet", "stations", *records.data).exit_code == 6
    assert ok("fleet", "upgrade", *records.data)["from"] == 1
    records.trust()
    assert outcomes(records.take(records.carried())) == ["known", "registered", "registered"]
    found = records.devices()
    assert (found["press-0001"]["station"], len(found)) == (None, 3)


def _as_version_1(database: Path) -> None:
    """Put devices, keys and settings into tables that version 1's own statements make."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    newer = database.rename(database.with_name("newer.db"))
    with closing(sqlite3.connect(database)) as connection:
        for statement in re.split(r"\n+(?=CREATE )", VERSION_1.read_text()):
            connection.execute(statement)
        connection.execute("ATTACH ? AS newer", [str(newer)])
        for table in ("setting", "token", "device", "generation"):
            names = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM newer.{table}")  # noqa: S608 - ours
        connection.execute("UPDATE setting SET value = '1' WHERE name = 'schema'")
        connection.commit()
    database.chmod(0o600)
    newer.unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_to_a_file_registers_anything_that_was_not_in_it(records: Records, data: st.DataObject) -> None:
    """Bits flipped, pieces moved, doubled and cut out: whoever joins is one of those that the station signed."""
    records.trust()
    file = bytearray(records.carried())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file) - 1))
        length = data.draw(st.integers(1, 400))
        what = data.draw(st.sampled_from(["flip", "cut", "double", "move"]))
        piece = bytes(file[at : at + length])
        if what == "flip":
            file[at] ^= 1 << data.draw(st.integers(0, 7))
            continue
        if what != "double":
            del file[at : at + length]
        if what != "cut" and file:
            place = data.draw(st.integers(0, len(file) - 1))
            file[place:place] = piece
        if not file:
            break
    with records.world.data.open() as fleet:
        try:
            lines = list(imports.import_enrolments(fleet, io.BytesIO(bytes(file)), now=NOW))
        except (RefusedError, IncompatibleError):
            return
        there = {d["name"]: (d["serial"], d["group"]) for d in operations.devices(fleet)}
    good = {(r := Record.from_bytes(data)).device: (r.serial, r.group) for data in records.records}
    assert there.items() <= good.items()
    assert {x.device for x in lines if x.outcome != "refused"} <= set(good)

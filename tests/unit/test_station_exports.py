"""`edgeseal station export` and `verify-journal`, as whoever keeps a factory's books uses them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sqlite3
import threading
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import station_papers_world as papers
from tests.unit.publisher_world import edgeseal, ok, refused
from tests.unit.station_world import World

from edgeseal.provisioning import Code, Verdict
from edgeseal_host.station import chain, exports
from edgeseal_host.station.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit
# docs/spec and the guide promise these names; a bookkeeper's macro counts columns.
COLUMNS = [
    *("device", "group", "batch", "serial", "eth_mac", "mmc_cid", "rpi_duid", "board_revision", "provision_ts"),
    *("operator", "fixture", "timings", "kid", "suite", "hardware", "agent", "entropy", "locked", "uploaded"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return papers.filled(tmp_path_factory.mktemp("papers") / "world")


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return made.copied(tmp_path / "world")


def at(world: World) -> tuple[object, ...]:
    return "--station", world.directory.path, "--keys", world.place / "keys"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


# Contents ------------------------------------------------------------------------------------------------------------


def test_csv_has_the_factory_tools_names_in_this_order_and_every_device(made: World) -> None:
    result = edgeseal("station", "export", "--csv", *at(made))
    assert result.exit_code == 0, result.output
    header, *_ = csv.reader(io.StringIO(result.stdout, newline=""))
    assert header == COLUMNS
    found = rows(result.stdout)
    assert [r["device"] for r in found] == ["press-0001", "press-0002", "press-0003", "press-0004"]
    first = found[0]
    assert first["serial"] == "10000001"
    assert (first["eth_mac"], first["mmc_cid"], first["rpi_duid"], first["board_revision"]) == (
        *("b8:27:eb:00:00:01", "cid-1", "duid-1", "c03115"),
    )
    assert (first["operator"], first["fixture"], first["batch"], first["group"]) == (
        *("anna", "port-1", "2026-11-a", "presses"),
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["provision_ts"])
    assert json.loads(first["timings"]) == {"granted": 0.1, "provisioned": 0.25, "locked": 0.3}
    assert [r["uploaded"] for r in found] == ["true", "false", "false", "false"]
    raw = result.stdout_bytes
    assert raw.endswith(b"\r\n")
    assert raw.count(b"\r\n") == raw.count(b"\n") == 5, "RFC 4180 line ends"


def test_json_has_the_same_names_and_what_the_boards_really_said(made: World) -> None:
    found = ok("station", "export", *at(made))
    assert found["format"] == "edgeseal/devices/1"
    assert [list(device) for device in found["devices"]] == [COLUMNS] * 4
    assert found["devices"][1]["serial"] == papers.FORMULA
    assert found["devices"][0]["timings"] == {"granted": 0.1, "provisioned": 0.25, "locked": 0.3}
    assert found["devices"][3]["operator"] == "@bob\n"


def test_both_formats_say_the_same(made: World) -> None:
    from_json = ok("station", "export", *at(made))["devices"]
    from_csv = rows(edgeseal("station", "export", *at(made)).stdout)
    for one, other in zip(from_json, from_csv, strict=True):
        plain = {k: v for k, v in one.items() if isinstance(v, str) and v not in {papers.FORMULA, "@bob\n"}}
        assert {k: other[k] for k in plain} == plain
        assert json.loads(other["entropy"]) == one["entropy"]


def test_one_batch_and_a_batch_nobody_made(made: World) -> None:
    assert [d["device"] for d in ok("station", "export", "--batch", "2026-12-b", *at(made))["devices"]] == [
        "press-0004"
    ]
    said = refused(2, "station", "export", "--batch", "2026-13", *at(made))
    assert "2026-11-a, 2026-12-b" in said


def test_two_formats_at_once_are_a_mistake(made: World) -> None:
    assert "leave one out" in json.loads(edgeseal("station", "export", "--csv", "--json", *at(made)).stdout)["hint"]


def test_out_writes_a_file_and_says_so(made: World, tmp_path: Path) -> None:
    out = tmp_path / "devices.csv"
    assert "4 devices in" in edgeseal("station", "export", "--out", out, *at(made)).stdout
    assert out.read_bytes() == edgeseal("station", "export", *at(made)).stdout_bytes
    assert ok("station", "export", "--out", tmp_path / "d.json", *at(made))["devices"] == 4
    assert json.loads((tmp_path / "d.json").read_text()) == ok("station", "export", *at(made))
    assert refused(1, "station", "export", "--out", tmp_path / "no" / "such", *at(made))


def test_a_station_without_devices_has_a_header(tmp_path: Path) -> None:
    world = World.make(tmp_path / "empty")
    assert edgeseal("station", "export", *at(world)).stdout.count("\n") == 1
    assert ok("station", "export", *at(world))["devices"] == []
    assert "no device was provisioned here yet" in refused(2, "station", "export", "--batch", "x", *at(world))


def test_a_journal_that_was_changed_exports_nothing(world: World) -> None:
    tamper(world, "UPDATE entry SET eth_mac = 'b8:27:eb:66:66:66' WHERE n = 3")
    for command in ("export", "labels"):
        out = ("--out", world.place / "labels") if command == "labels" else ()
        assert "entry 3" in refused(3, "station", command, *out, *at(world))
    assert not (world.place / "labels").exists()


def test_every_failure_with_its_reason(world: World) -> None:
    with world.journal() as journal:
        book = world.book(journal, fixture="lane3", seconds=lambda: 0.5)
        assert world.provision(book, papers.home(1)).code is Code.SERIAL_SEEN  # the same board with a new card
        verdict = Verdict(passed=False, reason="no answer; =1+1", code=Code.NO_ANSWER)
        world.book(journal, batch="2026-12-b").failed(verdict, "", None)
        verdict = world.provision(book, papers.home(1))
        book.failed(verdict, "10000001", None)
    found = ok("station", "export", "--failures", *at(world))
    assert found["format"] == "edgeseal/failures/1"
    assert [list(row) for row in found["failures"]] == [list(exports.FAILURE_COLUMNS)] * 2
    silent, seen = found["failures"]
    assert (silent["code"], silent["reason"], silent["serial"]) == (128, "no answer; =1+1", "")
    assert (seen["code"], seen["serial"], seen["fixture"], seen["operator"]) == (131, "10000001", "lane3", "anna")
    assert seen["reason"] == "serial number 10000001 was already provisioned, as press-0001"
    assert seen["timings"] == {"failed": 0.5}
    table = rows(edgeseal("station", "export", "--csv", "--failures", "--batch", "2026-12-b", *at(world)).stdout)
    assert [row["reason"] for row in table] == ["no answer; '=1+1"]
    out = edgeseal("station", "export", "--failures", "--out", world.place / "f.csv", *at(world)).stdout
    assert out.startswith("2 failures in")


# Spreadsheets ------------------------------------------------------------------------------------------------------


def csv_of(**values: Any) -> dict[str, str]:
    (row,) = rows(exports.devices([papers.device(**values)]).as_csv())
    return row


@pytest.mark.parametrize("sign", list("=+-@＝＋－＠"))  # noqa: RUF001 - in full width too
def test_what_a_board_says_is_no_formula(sign: str) -> None:
    assert csv_of(serial=f"{sign}cmd|' /C calc'!A0")["serial"].startswith(f"'{sign}")
    assert csv_of(serial=f" {sign}1")["serial"] == f" '{sign}1"
    assert csv_of(serial=f"a;{sign}1")["serial"] == f"a;'{sign}1"
    assert csv_of(serial=f'a;"{sign}1')["serial"] == f"a;\"'{sign}1"
    assert csv_of(serial=f"\t{sign}1")["serial"] == f"?{sign}1"


def cells_where_semicolons_separate(text: str) -> list[str]:
    """What a spreadsheet of such a country makes of the file: quotes around commas mean nothing to it."""
    return [cell.strip(" \"'") if "'" not in cell else "'" for line in text.splitlines() for cell in line.split(";")]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text("=+-@;,\"' \t\r\nx＝", max_size=12))  # noqa: RUF001
def test_no_text_becomes_a_formula_or_another_cell(text: str) -> None:
    file = exports.devices([papers.device(serial=text, operator=text, rpi_duid=text)]).as_csv()
    _, row = csv.reader(io.StringIO(file, newline=""), strict=True)
    assert len(row) == len(COLUMNS)
    for cell in row:
        assert cell.isprintable()
        assert not cell.lstrip(' "').startswith(tuple("=+-@＝＋－＠"))  # noqa: RUF001
    for cell in cells_where_semicolons_separate(file):
        assert not cell.startswith(tuple("=+-@＝＋－＠"))  # noqa: RUF001
    assert file.encode().count(b"\n") == 2


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_json_keeps_every_text_and_is_ascii(text: str) -> None:
    file = exports.devices([papers.device(serial=text)]).as_json()
    assert file.isascii()
    assert "\x1b" not in file
    assert "\x7f" not in file or "\x7f" in text
    assert json.loads(file)["devices"][0]["serial"] == text


def test_without_the_apostrophe_the_property_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "_FORMULA", re.compile(r"($^)()"))
    with pytest.raises(AssertionError):
        test_what_a_board_says_is_no_formula("=")


# verify-journal ------------------------------------------------------------------------------------------------------


def tamper(world: World, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(world.directory.journal_file)) as connection, connection:
        for trigger in ("entry_stays", "entry_is_kept", "entry_follows"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)


def test_a_whole_journal_gives_a_head_to_write_down(world: World) -> None:
    found = ok("station", "verify-journal", *at(world))
    assert (found["entries"], found["signed"]) == (15, 15)
    assert re.fullmatch(r"15:[0-9a-f]{96}", found["head"])
    result = edgeseal("station", "verify-journal", *at(world))
    assert result.exit_code == 0
    assert found["head"] in result.stdout
    assert "all of them" in result.stdout


MOVED = (
    "UPDATE entry SET n = 99 WHERE n = 5",
    "UPDATE entry SET n = 5 WHERE n = 6",
    "UPDATE entry SET n = 6 WHERE n = 99",
)


@pytest.mark.parametrize(
    ("statements", "row"),
    [
        (["UPDATE entry SET serial = '66' WHERE n = 3"], "entry 3: it was edited"),
        (["UPDATE entry SET operator = 'mallory' WHERE n = 15"], "entry 15: it was edited"),
        (["UPDATE entry SET timings = '{}' WHERE n = 4"], "entry 4: it was edited"),
        (["DELETE FROM entry WHERE n = 7"], "entry 7"),
        (["DELETE FROM entry WHERE n = 1"], "entry 1"),
        (MOVED, "entry 5"),
        (["DELETE FROM entry WHERE n > 12"], "ends with entry 12, but had 15"),
        (["DELETE FROM entry"], "ends with entry 0, but had"),
        (["UPDATE entry SET detail = replace(detail, 'signature', 'sign') WHERE n = 15"], "entry 15: it was edited"),
    ],
    ids=["serial", "last", "timings", "removed", "first", "moved", "cut-off", "emptied", "unsigned"],
)
def test_whatever_was_done_to_a_row_is_refused_and_named(world: World, statements: list[str], row: str) -> None:
    tamper(world, *statements)
    said = refused(3, "station", "verify-journal", *at(world))
    assert row in said
    assert "hint: stop the line" in said
    found = json.loads(edgeseal("station", "verify-journal", "--json", *at(world)).stdout)
    assert (found["error"], found["exit_code"]) == ("IntegrityError", 3)


def test_dropping_the_triggers_alone_is_no_change(world: World) -> None:
    """Negative control of `tamper`."""
    tamper(world)
    assert ok("station", "verify-journal", *at(world))["entries"] == 15


def test_a_run_that_goes_on_may_be_checked(world: World) -> None:
    with world.journal() as journal:
        journal.append(chain.BEGAN, operator="anna")
        found = ok("station", "verify-journal", *at(world))
        assert (found["entries"], found["signed"]) == (16, 15)
        assert "the first 15" in edgeseal("station", "verify-journal", *at(world)).stdout
        assert len(ok("station", "export", *at(world))["devices"]) == 4


def test_checking_while_a_run_writes_never_cries_wolf(world: World) -> None:
    def write() -> None:
        with contextlib.closing(Journal(world.directory.journal_file, now=lambda: 1)) as journal:
            for n in range(60):
                journal.append(chain.FAILED, serial=f"{n}", detail={"code": 128, "reason": "no answer"})

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(ok("station", "verify-journal", *at(world))["entries"])
        ok("station", "export", "--failures", *at(world))
    writer.join()
    assert seen == sorted(seen)
    assert ok("station", "verify-journal", *at(world))["entries"] == 15 + 60


def test_an_old_backup_in_its_place_is_seen_by_who_knows_the_head(world: World, made: World, tmp_path: Path) -> None:
    """Journal and head of yesterday fit together: nothing in them shows that today is missing."""
    with world.journal() as journal:
        journal.append(chain.BEGAN)
        journal.end(world.sign, detail={})
    head = ok("station", "verify-journal", *at(world))["head"]
    assert ok("station", "verify-journal", "--known", head, *at(world))["entries"] == 17
    yesterday = made.copied(tmp_path / "yesterday")
    assert ok("station", "verify-journal", *at(yesterday))["entries"] == 15
    assert "had an entry 17" in refused(3, "station", "verify-journal", "--known", head, *at(yesterday))


def test_a_head_of_another_history_is_refused(made: World) -> None:
    said = refused(3, "station", "verify-journal", "--known", f"3:{'00' * 48}", *at(made))
    assert "entry 3 is another one than it was" in said


@pytest.mark.parametrize(
    "known", ["", "3", "3:", "0:" + "0" * 96, "x:" + "0" * 96, "3:" + "0" * 95, "9" * 19 + ":" + "0" * 96]
)
def test_a_head_that_is_none_is_a_mistake_of_the_caller(made: World, known: str) -> None:
    assert "expected N:HASH" in refused(2, "station", "verify-journal", "--known", known, *at(made))


def test_another_stations_key_does_not_verify(world: World, tmp_path: Path) -> None:
    other = World.make(tmp_path / "other")
    said = refused(3, "station", "verify-journal", "--station", world.directory.path, "--keys", other.place / "keys")
    assert "entry 15" in said or "journal.db is that of" in said


def test_a_flipped_bit_of_the_file_never_passes_for_another_journal(world: World) -> None:
    """It is refused, or it is in a part of the file that says nothing; it is never a traceback."""
    file = world.directory.journal_file
    with contextlib.closing(Journal(file, now=lambda: 1)) as journal:
        journal._execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = file.read_bytes()
    exported = edgeseal("station", "export", *at(world)).stdout
    random, codes = Random(4), set()
    for _ in range(100):
        data = bytearray(good)
        place = random.choice([n for n in (random.randrange(len(data)) for _ in range(99)) if data[n]])
        data[place] ^= 1 << random.randrange(8)
        for beside in ("-wal", "-shm"):
            file.with_name(file.name + beside).unlink(missing_ok=True)
        file.write_bytes(data)
        result = edgeseal("station", "verify-journal", *at(world))
        assert result.exception is None or isinstance(result.exception, SystemExit), (place, result.exception)
        codes.add(result.exit_code)
        if result.exit_code == 0:
            assert edgeseal("station", "export", *at(world)).stdout == exported, place
    assert 3 in codes
    assert codes <= {0, 1, 3, 5}


def test_an_index_that_hides_a_serial_number_is_found(world: World) -> None:
    """The chain would hold, and the device could be provisioned a second time."""
    file = world.directory.journal_file
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entry_by_serial'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(file.read_bytes())
    page = slice((root - 1) * size, root * size)
    data[page] = data[page].replace(b"10000001", b"10000009")
    file.write_bytes(data)
    assert "journal.db is damaged" in refused(3, "station", "verify-journal", *at(world))


def test_the_journal_itself_is_never_changed_by_reading(world: World) -> None:
    before = ok("station", "verify-journal", *at(world))["head"]
    for command in (["export"], ["labels", "--out", world.place / "l"], ["verify-journal"]):
        assert edgeseal("station", *command, *at(world)).exit_code == 0
    assert ok("station", "verify-journal", *at(world))["head"] == before

"""docs/spec/station-journal.md against the code: a second auditor, written from the page, agrees on every journal."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit import station_papers_world as papers
from tests.unit.publisher_world import edgeseal
from tests.unit.second_journal_reader import COLUMNS, audit
from tests.unit.second_reader import Refused
from tests.unit.station_world import World

from edgeseal_host.station import chain, exports, labels
from edgeseal_host.station.journal import Journal

pytestmark = pytest.mark.unit
PAGE = (Path(__file__).parents[2] / "docs" / "spec" / "station-journal.md").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return papers.filled(tmp_path_factory.mktemp("page") / "world")


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return made.copied(tmp_path / "world")


def both(world: World) -> int:
    """Return the entries that the second auditor found; 0 if it refused. Both must say the same."""
    ours = edgeseal(
        *("station", "verify-journal", "--json"),
        *("--station", str(world.directory.path), "--keys", str(world.place / "keys")),
    )
    refusal, theirs = "", []
    try:
        theirs = audit(world.directory.path, world.directory.public().raw)
    except Refused as e:
        refusal = str(e)
    said = json.loads(ours.stdout)
    assert ours.exit_code == (3 if refusal else 0), (ours.output, refusal)
    if not refusal:
        assert said["entries"] == len(theirs)
    elif number := re.match(r"\d+", refusal):
        assert re.search(rf"\b{number[0]}\b|newest were removed", said["message"]), (said, refusal)
    return len(theirs)


def test_a_second_auditor_finds_the_same_journal_whole(world: World) -> None:
    assert both(world) == 15
    with world.journal() as journal:
        journal.append(
            chain.FAILED, serial="日本語 \U0001f511", detail={"code": 130, "reason": "ü"}, offer=bytes(70_000)
        )
    assert both(world) == 16


def test_what_was_written_is_what_the_page_says(made: World) -> None:
    entries = audit(made.directory.path, made.directory.public().raw)
    by_kind = {entry["kind"]: json.loads(entry["detail"]) for entry in entries}
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|$", PAGE.split("## 3. Kinds")[1], re.MULTILINE))
    assert set(table) == {value for name, value in vars(chain).items() if name.isupper() and isinstance(value, str)} - {
        chain.VERSION
    }
    for kind in ("opened", "granted"):
        assert set(re.findall(r"`(\w+)`", table[kind])) == set(by_kind[kind])
    assert by_kind["provisioned"] == by_kind["granted"] or set(by_kind["provisioned"]) == set(by_kind["granted"])
    assert "signature" in by_kind["ended"]


def test_names_columns_and_sizes_of_the_page() -> None:
    described = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (?:integer|text|blob)", PAGE, re.MULTILINE)
    assert [name for cell in described for name in re.findall(r"\w+", cell)] == list(COLUMNS) == list(chain.COLUMNS)
    rows = PAGE.split("Members of a row")[1].split("New ones")[0]
    assert re.findall(r"`(\w+)`", rows) == list(exports.COLUMNS)
    failures = PAGE.split('"edgeseal/failures/1", "failures"')[1].split("What the station")[0]
    assert re.findall(r"`(\w+)`", failures) == list(exports.FAILURE_COLUMNS)
    assert exports.FORMAT in PAGE
    assert chain.VERSION in PAGE
    assert f"one label of {labels.WIDTH:g} x {labels.HEIGHT:g}" in PAGE
    assert f"{labels.ACROSS} x {labels.DOWN} with a margin of {labels.EDGE:g}" in PAGE


CHANGES = [
    "UPDATE entry SET serial = 'x' WHERE n = 4",
    "UPDATE entry SET kid = zeroblob(16) WHERE n = 4",
    "UPDATE entry SET timings = timings || ' ' WHERE n = 4",
    "UPDATE entry SET previous = zeroblob(48) WHERE n = 9",
    "DELETE FROM entry WHERE n = 6",
    "DELETE FROM entry WHERE n = 1",
    "DELETE FROM entry WHERE n > 13",
    "UPDATE entry SET n = 77 WHERE n = 15",
]


@pytest.mark.parametrize("change", CHANGES)
def test_both_refuse_the_same_entry(world: World, change: str) -> None:
    with contextlib.closing(sqlite3.connect(world.directory.journal_file)) as connection, connection:
        for trigger in ("entry_stays", "entry_is_kept", "entry_follows"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(change)
    assert both(world) == 0


def test_both_refuse_hashes_that_were_calculated_anew(world: World) -> None:
    file = world.directory.journal_file
    with contextlib.closing(Journal(file, now=lambda: 1)) as journal:
        entries = [replace(e, operator="mallory") if e.n == 5 else e for e in journal]
    for beside in ("", "-wal", "-shm"):
        file.with_name(file.name + beside).unlink(missing_ok=True)
    last = None
    with contextlib.closing(Journal(file, now=lambda: 1)) as journal:
        for entry in entries:
            last = chain.linked(entry, last)
            journal._insert(last)
    assert last is not None
    file.with_suffix(".head").write_text(f"{last.n} {last.hash.hex()}\n")
    assert both(world) == 0


def test_both_refuse_another_stations_signature(world: World, tmp_path: Path) -> None:
    other = World.make(tmp_path / "other")
    with pytest.raises(Refused, match="15: was not signed by this station"):
        audit(world.directory.path, other.directory.public().raw)


def test_a_head_one_entry_behind_is_a_power_cut_and_no_fraud(world: World) -> None:
    with contextlib.closing(Journal(world.directory.journal_file, now=lambda: 1)) as journal:
        before = list(journal)[-2]
    world.directory.journal_file.with_suffix(".head").write_text(f"{before.n} {before.hash.hex()}\n")
    assert both(world) == 15

"""The registry's schema over the years: older ones are upgraded, newer ones refused, and changes need a new number."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from tests.unit.fleet_world import run

from edgeseal.durable import locked
from edgeseal.errors import EdgesealError, IncompatibleError, IntegrityError, RefusedError, TemporaryError
from edgeseal_host.fleet import schema, upgrade
from edgeseal_host.fleet.data import DataDirectory

FROM_0 = ("ALTER TABLE device ADD COLUMN report BLOB", "UPDATE device SET report = x'00' WHERE name = 'press-7'")
TABLES_OF = {
    1: "3360b3c9bd940bc7b4173b6356440f6b0660ee0c0ccfff8cefe2a8b012aca54b",
    2: "b34a0d87ace4e8caae3db3a30d897cebd4b5bf2e108614fd071a25a71b9fbfe4",
}  # SHA-256 of the statements that make the tables, by schema version


LATER = dict.fromkeys(range(1, schema.SCHEMA_VERSION), ())  # the made-up version 0 has what came since already
VERSION_1 = Path(__file__).parents[1] / "vectors" / "fleet-schema-1.sql"


def statements() -> str:
    made: list[sa.schema.ExecutableDDLElement] = [sa.schema.CreateTable(t) for t in schema.tables.sorted_tables]
    made += [sa.schema.CreateIndex(i) for t in schema.tables.sorted_tables for i in sorted(t.indexes, key=str)]
    return "\n".join(str(s.compile(dialect=sqlite.dialect())) for s in made)


def test_tables_never_change_under_one_version_number() -> None:
    """Did this fail? Add one to SCHEMA_VERSION, the statements that lead there to upgrade.STEPS, and a line above."""
    assert hashlib.sha256(statements().encode()).hexdigest() == TABLES_OF[schema.SCHEMA_VERSION]


def test_every_earlier_version_can_be_upgraded() -> None:
    assert sorted(upgrade.STEPS) == list(range(1, schema.SCHEMA_VERSION))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A registry as a made-up version 0 wrote it, with one device."""
    path = tmp_path / "fleet.db"
    schema.create(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE device DROP COLUMN report")
        connection.execute(
            "INSERT INTO device (name, serial, hardware, group_name, ctr, tag, enrolled_at)"
            " VALUES ('press-7', '', 'pi', 'g', 41, x'', 0)"
        )
        connection.execute("UPDATE setting SET value = '0' WHERE name = 'schema'")
        connection.commit()
    return path


def columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return sorted(row[1] for row in connection.execute("PRAGMA table_info(device)"))


def test_older_registry_is_refused_until_it_is_upgraded(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IncompatibleError, match="schema version 0") as caught:
        schema.open_database(old)
    assert "fleet upgrade" in (caught.value.hint or "")
    monkeypatch.setattr(upgrade, "STEPS", {0: FROM_0, **LATER})
    found, copy = upgrade.upgrade(old)
    assert (found, copy) == (0, old.with_name("fleet.db.schema-0"))
    assert copy is not None
    assert copy.stat().st_mode & 0o777 == 0o600
    schema.create(old.with_name("new.db"))
    assert columns(old) == columns(old.with_name("new.db"))
    assert "report" not in columns(copy)
    schema.open_database(old).close()
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT ctr, report FROM device").fetchall() == [(41, b"\0")]
    assert upgrade.upgrade(old) == (schema.SCHEMA_VERSION, None)


def shape(path: Path) -> dict[str, list[object]]:
    """Columns, references and indexes of every table."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            f"{what} of {table}": sorted(row[1:] if what != "foreign_key_list" else row[2:5] for row in rows)
            for table in tables
            for what in ("table_info", "foreign_key_list", "index_list")
            for rows in [connection.execute(f"PRAGMA {what}({table})").fetchall()]
        }


def test_registry_that_version_1_wrote_becomes_one_of_today(tmp_path: Path) -> None:
    """The statements are those that version 1 made its tables with."""
    path, fresh = tmp_path / "fleet.db", tmp_path / "new.db"
    path.touch(mode=0o600)
    text = VERSION_1.read_text()
    assert hashlib.sha256(text.encode()).hexdigest() == TABLES_OF[1]
    with closing(sqlite3.connect(path)) as connection:
        for statement in re.split(r"\n+(?=CREATE )", text):
            connection.execute(statement)
        connection.execute("INSERT INTO setting VALUES ('schema', '1')")
        connection.execute(
            "INSERT INTO device (name, serial, hardware, group_name, tag, enrolled_at)"
            " VALUES ('press-7', 's', 'pi', 'g', x'', 0)"
        )
        connection.commit()
    assert upgrade.upgrade(path)[0] == 1
    schema.create(fresh)
    assert {k: v for k, v in shape(path).items() if "device" not in k} == {
        k: v for k, v in shape(fresh).items() if "device" not in k
    }
    assert columns(path) == columns(fresh)
    for what in ("foreign_key_list", "index_list"):
        assert shape(path)[f"{what} of device"] == shape(fresh)[f"{what} of device"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name, station, record FROM device").fetchall() == [("press-7", None, None)]


@pytest.mark.parametrize("steps", [("ALTER TABLE nothing ADD COLUMN x", *FROM_0), (*FROM_0, "SELECT nonsense")])
def test_failing_upgrade_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[str, ...]) -> None:
    monkeypatch.setattr(upgrade, "STEPS", {0: steps, **LATER})
    with pytest.raises(EdgesealError, match="could not be upgraded"):
        upgrade.upgrade(old)
    assert "report" not in columns(old)
    with pytest.raises(RefusedError, match="there already"):  # the copy is never overwritten
        upgrade.upgrade(old)
    assert schema.version_of(old) == 0


def test_upgrade_that_breaks_references_is_undone(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan = "INSERT INTO generation VALUES (x'00', 'nobody', 1, x'00', x'00', 0)"
    monkeypatch.setattr(upgrade, "STEPS", {0: (*FROM_0, orphan), **LATER})
    with pytest.raises(IntegrityError, match="rows point nowhere"):
        upgrade.upgrade(old)
    assert "report" not in columns(old)


def test_newer_registry_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    schema.create(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE setting SET value = '99' WHERE name = 'schema'")
        connection.commit()
    for call in (schema.open_database, upgrade.upgrade):
        with pytest.raises(IncompatibleError, match="schema version 99") as caught:
            call(path)
        assert caught.value.hint == "use the edgeseal that wrote it"
    assert [p.name for p in tmp_path.glob("*.schema-*")] == []


def test_registry_too_old_names_the_step_that_is_missing(old: Path) -> None:
    with pytest.raises(IncompatibleError, match="cannot upgrade from version 0"):
        upgrade.upgrade(old)


@pytest.mark.parametrize("value", ["", "one", None])
def test_database_without_a_version_is_no_registry(tmp_path: Path, value: str | None) -> None:
    path = tmp_path / "fleet.db"
    schema.create(path)
    with closing(sqlite3.connect(path)) as connection:
        if value is None:
            connection.execute("DELETE FROM setting")
        else:
            connection.execute("UPDATE setting SET value = ?", [value])
        connection.commit()
    with pytest.raises(EdgesealError, match="does not say"):
        schema.open_database(path)


def test_command_upgrades_nothing_twice_and_needs_a_stopped_server(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "fleet")
    data.create("http://127.0.0.1:1", now=0)
    done = run("fleet", "upgrade", "--data", str(data.path), "--json")
    assert json.loads(done.stdout) == {"from": schema.SCHEMA_VERSION, "to": schema.SCHEMA_VERSION, "copy": None}
    with locked(data.path / "serve.lock"):
        assert run("fleet", "upgrade", "--data", str(data.path)).returncode == TemporaryError.exit_code
    with closing(sqlite3.connect(data.database)) as connection:
        connection.execute("UPDATE setting SET value = '99' WHERE name = 'schema'")
        connection.commit()
    served = run("fleet", "serve", "--data", str(data.path), "--listen", "127.0.0.1:0")
    assert served.returncode == IncompatibleError.exit_code
    assert "schema version 99" in served.stderr

"""The station's journal: kills at every write, every way to change it afterwards, and who is refused and why."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import station_world

from edgeseal.errors import IntegrityError, NoSpaceError, RefusedError, TemporaryError, UsageError
from edgeseal.provisioning import Code, Stage
from edgeseal.suite import PrivateKey
from edgeseal_host.station import chain
from edgeseal_host.station.book import is_unheard_lock, locked_as
from edgeseal_host.station.journal import Journal, offer_of
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit
KINDS = [chain.GRANTED, chain.PROVISIONED, chain.LOCKED]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    return station_world.World.make(tmp_path_factory.mktemp("station"))


@pytest.fixture
def world(made: station_world.World, tmp_path: Path) -> station_world.World:
    """The same station with an empty journal of its own."""
    return made.copied(tmp_path / "world")


@pytest.fixture(scope="module")
def full(made: station_world.World, tmp_path_factory: pytest.TempPathFactory) -> station_world.World:
    """Three devices and the end of a run: entries 2 to 10 and 11; a new run has begun."""
    world = made.copied(tmp_path_factory.mktemp("full") / "world")
    with world.journal() as journal:
        for number in range(3):
            assert world.provision(world.book(journal), home(number)).passed
        journal.end(world.sign, detail={"passed": 3})
        journal.append(chain.BEGAN)
    return world


@pytest.fixture
def filled(full: station_world.World, tmp_path: Path) -> station_world.World:
    return full.copied(tmp_path / "filled")


def home(number: int = 1, **changes: Any) -> MemoryHome:
    return MemoryHome(serial=f"1000{number:04}", **changes)


class Killed(BaseException):
    """The process is gone."""


class Mortal(Journal):
    """A journal whose process is killed at one write: before it is durable, between file and head, or after both."""

    kill_at = (0, "never")
    _writes = 0

    def _insert(self, entry: chain.Entry) -> None:
        self._writes += 1
        if self.kill_at == (self._writes, "before"):
            raise Killed
        super()._insert(entry)
        if self.kill_at == (self._writes, "between"):
            raise Killed

    def append(self, kind: str, **values: Any) -> chain.Entry:
        entry = super().append(kind, **values)
        if self.kill_at == (self._writes, "after"):
            raise Killed
        return entry


# Kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "between", "after"])
@pytest.mark.parametrize("write", [1, 2, 3])
def test_killed_at_a_write_the_next_run_completes_with_one_identity(
    world: station_world.World, write: int, moment: str
) -> None:
    device = home()
    mortal = Mortal(world.directory.journal_file, now=lambda: 1)
    mortal.kill_at = (write, moment)
    with pytest.raises(Killed):
        world.provision(world.book(mortal), device)
    mortal.close()
    with world.journal() as journal:  # checks chain and head
        complete = journal.last(chain.LOCKED) is not None
        verdict = world.provision(world.book(journal), device)
        assert verdict.passed is not complete, verdict
        if not complete and journal.last(chain.LOCKED) is None:
            assert world.book(journal).finished(device.serial)
            world.book(journal).lock_was_heard(device.serial)
        assert [e.kind for e in journal][1:] == KINDS, "each step once"
        (granted,) = journal.of_kind(chain.GRANTED)
    assert device.identity is not None
    assert device.identities == 1
    assert offer_of(granted).kid == device.identity[0].public.kid
    assert device.stage() is Stage.LOCKED


def test_disk_full_or_gone_is_said_and_nothing_left_the_station(world: station_world.World) -> None:
    with world.journal() as journal:
        pages = journal._execute("PRAGMA page_count").fetchone()[0]
        journal._execute(f"PRAGMA max_page_count={pages}")
        device = home()
        verdict = world.provision(world.book(journal), device)
        assert verdict.code is Code.JOURNAL, verdict
        assert "no space" in verdict.reason
        assert device.identity is None
        with pytest.raises(NoSpaceError):
            journal.append(chain.FAILED, detail={"reason": "x" * 99_999})


# Changing it afterwards ----------------------------------------------------------------------------------------------


def tamper(filled: station_world.World, *statements: str) -> None:
    with sqlite3.connect(filled.directory.journal_file) as connection:
        for trigger in ("entry_stays", "entry_is_kept", "entry_follows"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def rechained(filled: station_world.World, change: Callable[[chain.Entry], chain.Entry | None]) -> None:
    """Change entries and calculate every hash anew, head included: what a thief of the file can do without the key."""
    journal = Journal(filled.directory.journal_file, now=lambda: 1)
    entries, last = [], None
    for entry in journal:
        if (changed := change(entry)) is not None:
            last = chain.linked(changed, last)
            entries.append(last)
    journal.close()
    filled.directory.journal_file.unlink()
    journal = Journal(filled.directory.journal_file, now=lambda: 1)
    for entry in entries:
        journal._insert(entry)
    journal.close()
    assert last is not None
    filled.directory.journal_file.with_suffix(".head").write_text(f"{last.n} {last.hash.hex()}\n")


def test_an_untouched_journal_is_good(filled: station_world.World) -> None:
    with filled.journal() as journal:
        assert journal.verify(filled.directory.public().check) == (12, 11)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE entry SET serial = '66' WHERE n = 3", "entry 3: it was edited"),
        ("UPDATE entry SET offer = x'00' WHERE n = 2", "entry 2: it was edited"),
        ("UPDATE entry SET provision_ts = 5 WHERE n = 4", "entry 4: it was edited"),
        ("UPDATE entry SET hash = zeroblob(48) WHERE n = 4", "entry 4: it was edited"),
        ("DELETE FROM entry WHERE n = 5", "entry 5: entry 6 stands there"),
        ("DELETE FROM entry WHERE n = 1", "entry 1: entry 2 stands there"),
        ("DELETE FROM entry WHERE n > 9", "the newest were removed"),
        ("DELETE FROM entry", "the newest were removed"),
    ],
)
def test_an_entry_was_edited_or_removed(filled: station_world.World, statement: str, says: str) -> None:
    tamper(filled, statement)
    with pytest.raises(IntegrityError, match=says), filled.journal():
        pass


def test_entries_were_reordered_or_closed_up_after_a_removal(filled: station_world.World) -> None:
    swap = "UPDATE entry SET n = {} WHERE n = {}"
    tamper(filled, swap.format(99, 5), swap.format(5, 6), swap.format(6, 99))
    with pytest.raises(IntegrityError, match="entry 5: it was edited"), filled.journal():
        pass


def test_the_last_entry_is_another_one(filled: station_world.World) -> None:
    entry = list(Journal(filled.directory.journal_file, now=lambda: 1))[-1]
    forged = replace(entry, operator="mallory")
    forged = replace(forged, hash=chain.digest(forged))
    tamper(filled, f"UPDATE entry SET operator = 'mallory', hash = x'{forged.hash.hex()}' WHERE n > 11")  # noqa: S608
    with pytest.raises(IntegrityError, match="another one than its head says"), filled.journal():
        pass


def test_whoever_calculates_all_hashes_anew_lacks_the_stations_signature(filled: station_world.World) -> None:
    rechained(filled, lambda e: replace(e, device="press-9999") if e.n == 3 else e)
    with pytest.raises(IntegrityError, match="signature is not this station's"), filled.journal():
        pass


def test_rechaining_without_a_change_is_no_change(filled: station_world.World) -> None:
    """Negative control of the forger above."""
    rechained(filled, lambda e: e)
    with filled.journal() as journal:
        assert journal.verify(filled.directory.public().check) == (12, 11)


@pytest.mark.parametrize(("head", "says"), [(None, "is missing"), ("x", "damaged"), ("99 00", "newest were removed")])
def test_the_head_file_is_gone_or_of_another_journal(filled: station_world.World, head: str | None, says: str) -> None:
    file = filled.directory.journal_file.with_suffix(".head")
    file.unlink() if head is None else file.write_text(head)
    with pytest.raises(IntegrityError, match=says), filled.journal():
        pass


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET serial = 'x'",
        "DELETE FROM entry",
        "INSERT OR REPLACE INTO entry SELECT * FROM entry WHERE n = 2",
        "INSERT INTO entry (n, kind) VALUES (99, 'locked')",
    ],
)
def test_sqlite_itself_refuses_to_change_entries(filled: station_world.World, statement: str) -> None:
    connection = sqlite3.connect(filled.directory.journal_file)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_a_file_that_is_no_journal_and_one_that_is_gone(filled: station_world.World) -> None:
    filled.directory.journal_file.write_bytes(b"not a database" * 100)
    with pytest.raises(Exception, match=r"journal\.db is not a station's journal"), filled.journal():
        pass
    filled.directory.journal_file.unlink()
    with pytest.raises(UsageError, match="is not there"), filled.journal():
        pass


def test_two_runs_at_a_time(filled: station_world.World) -> None:
    with filled.journal(), pytest.raises(TemporaryError, match="a run of this station is going on"), filled.journal():
        pass


def test_a_station_is_made_once(filled: station_world.World) -> None:
    with pytest.raises(RefusedError, match="holds a station already"):
        filled.directory.create("line 1", "other", None)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_key_that_was_ever_seen_is_refused_on_another_board(world: station_world.World) -> None:
    """A dead random source, or a copied card."""
    dead = PrivateKey(1, bytes(32))
    one, other = home(1), home(2)
    for device in (one, other):
        device.pending = (dead, device.new_key(1, "mix", b"")[1])
    with world.journal() as journal:
        assert world.provision(world.book(journal), one).passed
        verdict = world.provision(world.book(journal), other)
        assert verdict.code is Code.KEY_SEEN
        assert verdict.reason == "10000002 shows the key that was given to 10000001 before"
        assert "random source is dead" in verdict.remedy
        assert other.identity is None
        assert journal.count(chain.GRANTED) == 1


def test_a_serial_number_comes_again_until_rework_is_authorised(world: station_world.World) -> None:
    with world.journal() as journal:
        book = world.book(journal)
        assert world.provision(book, home()).passed
        verdict = world.provision(book, home())  # a new card: a new key
        assert verdict.code is Code.SERIAL_SEEN
        assert verdict.reason == "serial number 10000001 was already provisioned, as press-0001"
        journal.append(chain.AUTHORISED, serial="10000001", operator="boss", detail={"reason": "new card"})
        assert world.provision(book, home()).passed
        assert [e.device for e in journal.of_kind(chain.LOCKED)] == ["press-0001", "press-0002"]
        assert world.provision(book, home()).code is Code.SERIAL_SEEN, "authorised once"


def test_a_card_written_back_to_an_older_state_is_refused(world: station_world.World) -> None:
    with world.journal() as journal:
        book = world.book(journal)
        before = home()
        before.new_key(1, "mix", b"")
        old = replace(before)
        assert world.provision(book, before).passed
        journal.append(chain.AUTHORISED, serial="10000001")
        assert world.provision(book, home()).passed
        verdict = world.provision(book, old)
        assert (verdict.passed, verdict.code) == (False, Code.SERIAL_SEEN)
        assert "older state" in verdict.remedy


def test_unhealthy_entropy_under_require_and_a_wrong_board(world: station_world.World) -> None:
    with world.journal() as journal:
        require = replace(world.order(), policy="require")
        verdict = world.provision(world.book(journal), home(), require)
        assert verdict.code is Code.ENTROPY
        assert "plug in the noise source" in verdict.remedy
        boards = replace(world.order(), hardware=("raspberrypi,5-model-b",))
        verdict = world.provision(world.book(journal), home(), boards)
        assert verdict.code is Code.WRONG_BOARD
        assert verdict.reason == "this board is test-board; the batch is for raspberrypi,5-model-b"
        assert journal.count(chain.GRANTED) == 0


def test_a_lock_nobody_heard_of_is_a_pass_once(world: station_world.World) -> None:
    with world.journal() as journal:
        book, device = world.book(journal), home()
        mortal_lock = book.locked
        book.locked = lambda result: None  # type: ignore[method-assign]  # noqa: ARG005
        assert world.provision(book, device).passed
        book.locked = mortal_lock  # type: ignore[method-assign]
        assert is_unheard_lock(journal, device.serial)
        assert world.provision(book, device).passed
        assert book.lock_was_heard(device.serial) == "press-0001"
        assert not is_unheard_lock(journal, device.serial)
        assert locked_as(journal, device.serial) is not None
        assert world.provision(book, device).code is Code.LOCKED


# Secrets -------------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_the_stations_files(world: station_world.World) -> None:
    device = home()
    with world.journal() as journal:
        assert world.provision(world.book(journal), device).passed
    assert device.identity is not None
    _, grant, _ = device.identity
    found = station_world.everything_below(world.place)
    assert device.serial.encode() in found, "negative control: what is not secret is found"
    for secret in (grant.psk, grant.k_rng):
        assert secret not in found
        assert secret.hex().encode() not in found

"""Records on their way to the fleet server: no answer, refusals, kills in between; `station upload` and `rework`."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit import enrol_world
from tests.unit.enrol_world import Records
from tests.unit.fleet_world import serving
from tests.unit.publisher_world import edgeseal, ok, refused

from edgeseal.enrolment import Record
from edgeseal.errors import IntegrityError, NotAuthorisedError, RefusedError, TemporaryError
from edgeseal.suite import PrivateKey
from edgeseal_host.fleet import imports
from edgeseal_host.station import chain, uploader
from edgeseal_host.station.devices import to_send
from edgeseal_host.station.uploader import SigningRegistrar, Uploader
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgeseal_host.station.enrolments import SignedRecord
    from edgeseal_host.station.journal import Journal

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records.make(tmp_path_factory.mktemp("records") / "world")


@pytest.fixture
def records(made: Records, tmp_path: Path) -> Records:
    """Three devices that left the line, and a fleet that trusts their station."""
    found = made.copied(tmp_path / "world")
    found.trust()
    return found


class Direct:
    """The fleet server without a network: the same function takes the record. `before` and `after` may raise."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.before: Callable[[int], None] = lambda _: None
        self.after: Callable[[int], None] = lambda _: None
        self.calls = 0

    def enrol_signed(self, signed: SignedRecord) -> dict[str, object]:
        self.calls += 1
        self.before(self.calls)
        with self.records.world.data.open() as fleet:
            _, answer = imports.take(fleet, signed, now=enrol_world.NOW)
        self.after(self.calls)
        return answer


@pytest.fixture
def server(records: Records) -> Direct:
    return Direct(records)


class Talk:
    """What was said, and an uploader that is run to its end."""

    def __init__(self, records: Records, server: Direct) -> None:
        self.said: list[str] = []
        self._registrar = SigningRegistrar(server, records.signer)

    def begin(self, journal: Journal) -> Uploader:
        return Uploader(journal, self._registrar, self.said.append, retry=0.01)

    def all(self, journal: Journal) -> Uploader:
        made = self.begin(journal)
        made.close()
        return made


@pytest.fixture
def talk(records: Records, server: Direct) -> Talk:
    return Talk(records, server)


def uploaded(journal: Journal) -> list[str]:
    return [e.device for e in journal.of_kind(chain.UPLOADED)]


ALL = ["press-0001", "press-0002", "press-0003"]


# During a run --------------------------------------------------------------------------------------------------------


def test_what_earlier_runs_left_is_sent_and_written_down_once(records: Records, talk: Talk, server: Direct) -> None:
    with records.world.journal() as journal:
        done = talk.all(journal)
        assert (done.sent, done.waiting, done.refused) == (3, 0, 0)
        assert uploaded(journal) == ALL
        assert talk.all(journal).sent == 0
    assert server.calls == 3
    assert list(records.devices()) == ALL
    assert talk.said == []


def test_device_provisioned_meanwhile_is_sent(records: Records, talk: Talk) -> None:
    with records.world.journal() as journal:
        running = talk.begin(journal)
        home = MemoryHome(serial="new")
        assert records.world.provision(records.world.book(journal), home).passed
        running.close()
        assert uploaded(journal) == [*ALL, "press-0004"]
    assert records.devices()["press-0004"]["serial"] == "new"


def test_the_network_never_holds_the_line_up(records: Records, talk: Talk, server: Direct) -> None:
    hangs = threading.Event()

    def hang(_: int) -> None:
        hangs.wait(30)

    server.before = hang
    with records.world.journal() as journal:
        running = talk.begin(journal)
        began = time.monotonic()
        for _ in range(20):
            running.step()
        running.close(patience=0.05)
        assert time.monotonic() - began < 20, "nobody waited for the server"
        assert running.waiting == 3
        assert "3 records are not at the fleet server yet: edgeseal station upload, or carry" in talk.said
        assert uploaded(journal) == []
    hangs.set()


def test_server_that_comes_back_gets_everything(records: Records, talk: Talk, server: Direct) -> None:
    back = threading.Event()

    def down(call: int) -> None:
        if call < 5:
            raise TemporaryError("no answer")
        back.set()

    server.before = down
    with records.world.journal() as journal:
        running = talk.begin(journal)
        assert back.wait(30), "asked again and again"
        running.close()
        assert (running.waiting, uploaded(journal)) == (0, ALL)


def test_server_that_does_not_answer_is_asked_once_more_at_the_end_and_not_waited_for(
    records: Records, server: Direct
) -> None:
    asked = threading.Event()

    def down(_: int) -> None:
        asked.set()
        raise TemporaryError("no answer")

    server.before = down
    said: list[str] = []
    with records.world.journal() as journal:
        running = Uploader(journal, SigningRegistrar(server, records.signer), said.append, retry=3600)
        assert asked.wait(30)
        running.close(patience=3600)
        assert (server.calls, running.waiting) == (2, 3)
    assert said == ["3 records are not at the fleet server yet: edgeseal station upload, or carry"]


def test_a_backlog_is_written_down_a_little_at_a_time(
    records: Records, talk: Talk, server: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry is flushed to disk, and the lines wait as long."""
    monkeypatch.setattr(uploader, "NOTES", 1)
    done = threading.Event()
    server.after = lambda call: done.set() if call == 3 else None
    with records.world.journal() as journal:
        running = talk.begin(journal)
        assert done.wait(30)
        while running._sent.qsize() < 3:
            time.sleep(0.001)
        running.step()
        assert uploaded(journal) == ALL[:1]
        running.close()
        assert uploaded(journal) == ALL


def test_answer_that_was_lost_is_asked_for_again(records: Records, talk: Talk, server: Direct) -> None:
    def lost(call: int) -> None:
        if call == 1:
            raise TemporaryError("connection reset")

    server.after = lost
    with records.world.journal() as journal:
        assert talk.all(journal).sent == 3
        assert uploaded(journal) == ALL
    assert (server.calls, list(records.devices())) == (4, ALL)


def test_one_refused_record_stops_no_other_and_is_tried_again_by_the_next_run(
    records: Records, talk: Talk, server: Direct
) -> None:
    def refuse(call: int) -> None:
        if call == 2:
            raise RefusedError("serial number 10000002 is device other", hint="revoke it")

    server.before = refuse
    with records.world.journal() as journal:
        done = talk.all(journal)
        assert (done.sent, done.refused, done.waiting) == (2, 1, 0)
        assert talk.said == [
            "press-0002: the fleet server refused its record: serial number 10000002 is device other (revoke it)"
        ]
        assert talk.all(journal).sent == 1
        assert uploaded(journal) == ["press-0001", "press-0003", "press-0002"]


def test_station_that_is_not_welcome_says_so_once_and_keeps_everything(
    records: Records, talk: Talk, server: Direct
) -> None:
    def not_welcome(_: int) -> None:
        raise NotAuthorisedError("station 00 is not one this fleet trusts")

    server.before = not_welcome
    with records.world.journal() as journal:
        done = talk.all(journal)
        assert (done.sent, done.refused, done.waiting) == (0, 0, 3)
        assert uploaded(journal) == []
    assert server.calls == 1
    assert len(talk.said) == 2, talk.said
    assert "takes nothing from this station" in talk.said[0]


class Killed(BaseException):
    """The station's process is gone."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_around_the_servers_answer_both_sides_agree_after_the_next_run(
    records: Records, server: Direct, talk: Talk, call: int, moment: str
) -> None:
    def killed(number: int) -> None:
        if number == call:
            raise Killed

    setattr(server, moment, killed)
    registrar = SigningRegistrar(server, records.signer)
    with records.world.journal() as journal, pytest.raises(Killed):
        list(uploader.send(journal, registrar, list(to_send(journal))))
    rows = len(records.devices())
    with records.world.journal() as journal:
        assert rows - len(uploaded(journal)) == (moment == "after"), "at most one row that the journal does not know"
        assert talk.all(journal).waiting == 0
        assert uploaded(journal) == ALL
        assert [e.device for e in journal.of_kind(chain.PROVISIONED)] == list(records.devices())


# Re-work -------------------------------------------------------------------------------------------------------------


def authorised(journal: Journal) -> list[tuple[str, str, str, str]]:
    return [(e.serial, e.device, e.operator, e.details()["reason"]) for e in journal.of_kind(chain.AUTHORISED)]


def rework(records: Records, serial: str, *more: str) -> tuple[str, ...]:
    return ("station", "rework", serial, "--reason", "new card", "--operator", "boss", *more, *records.keys)


def test_rework_is_journalled_with_operator_and_reason_and_serves_once(records: Records) -> None:
    serial = records.homes[0].serial
    assert ok(*rework(records, serial))["new"] is True
    again = edgeseal(*rework(records, serial))
    assert "authorised before, not used yet" in again.stdout
    assert "edgeseal device revoke press-0001" in again.stdout
    with records.world.journal() as journal:
        assert authorised(journal) == [(serial, "press-0001", "boss", "new card")]
        book = records.world.book(journal)
        assert records.world.provision(book, MemoryHome(serial=serial)).passed
        assert not records.world.provision(book, MemoryHome(serial=serial)).passed, "authorised once"
        journal.verify(records.station.check)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("unknown", "--reason", "x"), "was provisioned here"),
        (("10000001", "--reason", " "), "--reason: 1 to 256"),
        (("10000001", "--reason", "x" * 300), "--reason: 1 to 256"),
        (("10000001", "--reason", "a\x1b[2J"), "--reason: 1 to 256"),
        (("10000001", "--reason", "x", "--operator", ""), "--operator: 1 to 256"),
        (("10000001", "--reason", "x", "--to", "http://127.0.0.1:1"), "are needed"),
        (("10000001",), "--reason"),
    ],
)
def test_rework_that_nobody_could_account_for_is_refused(records: Records, change: tuple[str, ...], says: str) -> None:
    assert says in refused(2, "station", "rework", *change, *records.keys)
    with records.world.journal() as journal:
        assert authorised(journal) == []


def test_rework_waits_for_the_end_of_a_run_and_for_its_port(records: Records, tmp_path: Path) -> None:
    with records.world.journal():
        assert "a run of this station is going on" in refused(5, *rework(records, "10000001"))
    said = refused(5, *rework(records, "10000001", "--port", str(tmp_path / "no-port")))
    assert "cannot be opened" in said
    with records.world.journal() as journal:
        assert len(authorised(journal)) == 1, "authorised; the reset may be tried again"


def test_a_former_identity_that_was_never_sent_is_not_sent_any_more(records: Records, talk: Talk) -> None:
    """Its device is gone: its row would be one without a device."""
    serial = records.homes[0].serial
    ok(*rework(records, serial))
    with records.world.journal() as journal:
        assert [m.entry.device for m in to_send(journal)] == ALL, "authorised is not yet done"
        assert records.world.provision(records.world.book(journal), MemoryHome(serial=serial)).passed
        assert talk.all(journal).refused == 0
        assert uploaded(journal) == ["press-0002", "press-0003", "press-0004"]
    assert list(records.devices()) == ["press-0002", "press-0003", "press-0004"]


# The commands, against a server in a process -------------------------------------------------------------------------


@pytest.fixture
def to(records: Records, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    token = tmp_path / "enrol.token"
    ok("fleet", "token", "new", "--scope", "enrol", "--out", token, *records.data)
    with serving(records.world.data.path) as running:
        yield "--to", running.base, "--token", str(token)


def test_upload_as_a_person_types_it(records: Records, to: tuple[str, ...]) -> None:
    first = edgeseal("station", "upload", *to, *records.keys)
    assert (first.exit_code, first.stdout) == (0, "3 records sent, 0 refused\n"), first.output
    admin = ("--to", to[1], "--token", str(records.world.data.admin_token))
    found = ok("device", "list", "--station", records.station.pin[:16].hex(), *admin)["devices"]
    assert [d["name"] for d in found] == ALL
    assert ok("device", "list", "--station", "00" * 16, *admin)["devices"] == []
    again = edgeseal("station", "upload", *to, *records.keys)
    assert again.stdout == "the fleet server has every record already\n"
    assert list(records.devices()) == ALL


def test_upload_of_a_station_that_is_not_trusted_any_more(records: Records, to: tuple[str, ...]) -> None:
    ok("fleet", "distrust-station", records.station.pin[:16].hex(), "--reason", "stolen", *records.data)
    assert "distrusted since" in refused(4, "station", "upload", *to, *records.keys)
    with records.world.journal() as journal:
        assert uploaded(journal) == []


def test_upload_names_what_is_refused_and_goes_on(records: Records, to: tuple[str, ...]) -> None:
    admin = ("--to", to[1], "--token", str(records.world.data.admin_token))
    other = enrol_world.other_signer()
    records.trust(other, name="line 2")
    with records.world.data.open() as fleet:
        taken = records.records[1]
        imports.take(fleet, other.signed(_as(records, taken, "other-0002")), now=enrol_world.NOW)
    result = edgeseal("station", "upload", *to, *records.keys, "--json")
    assert result.exit_code == IntegrityError.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["sent"], [r["device"] for r in found["refused"]]) == (2, ["press-0002"])
    assert "is device other-0002" in found["refused"][0]["reason"]
    for change in (("--reason", " "), ("--reason", "x", "--port", "/nowhere")):
        assert edgeseal("station", "rework", "10000002", *change, *admin, *records.keys).exit_code in {2, 5}
    assert not any(d["revoked"] for d in records.devices().values()), "nothing is revoked by half a command"
    shown = ok("station", "rework", "10000002", "--reason", "came from line 2", *admin, *records.keys)
    assert shown["revoked"] == ["other-0002"]
    assert ok("station", "upload", *to, *records.keys)["sent"] == 1


def _as(records: Records, record: bytes, name: str) -> bytes:
    """The same board with another key, as another station would have provisioned it."""
    found = Record.from_bytes(record)
    made = Record.make(
        device=name,
        serial=found.serial,
        hardware=found.hardware,
        group=found.group,
        key=PrivateKey(1, b"o" * 32).public,
        psk=bytes(32),
        enrol=records.world.data.public().enrol,
    )
    return made.to_bytes()

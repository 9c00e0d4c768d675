"""Enrolment records from a station to a fleet server on a stick: written, read by any length and shape, imported."""

from __future__ import annotations

import base64
import io
import itertools
import json
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit import enrol_world
from tests.unit.enrol_world import Records, outcomes
from tests.unit.publisher_world import edgeseal, ok, refused

from edgeseal.enrolment import Record
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, IntegrityError
from edgeseal_host.station import chain, enrolments, receipts
from edgeseal_host.station.enrolments import FORMAT, MAX_LINE, Bad, Header, SignedRecord, Signer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit
SIGNATURE = bytes(enrolments.SIGNATURE_LENGTH)
NOBODY = Signer("line 9", bytes(48), lambda _: SIGNATURE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records.make(tmp_path_factory.mktemp("records") / "world")


@pytest.fixture
def records(made: Records, tmp_path: Path) -> Records:
    """Three devices that left the line; the fleet knows nothing yet."""
    return made.copied(tmp_path / "world")


def items(data: bytes) -> list[enrolments.Item]:
    return [item for _, item in enrolments.read(io.BytesIO(data))]


def line(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


HEAD = line(format=FORMAT, station="00" * 48, name="line 9", count=1)


# The format ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=5), st.text(max_size=64))
def test_what_was_written_is_read(found: list[bytes], name: str) -> None:
    signer = Signer(name, bytes(range(48)), lambda record: (record * enrolments.SIGNATURE_LENGTH)[: len(SIGNATURE)])
    try:
        data = b"".join(enrolments.write(found, signer))
    except UnicodeEncodeError:
        return  # a lone surrogate is no text
    header, *rest = items(data)
    assert header == Header(signer.pin, name, len(found))
    assert rest == [signer.signed(record) for record in found]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, after_a_header: bool) -> None:
    try:
        found = items(HEAD + data if after_a_header else data)
    except (FormatError, IncompatibleError):
        assert not after_a_header, "once a file is one, a bad line stops nothing"
        return
    assert isinstance(found[0], Header)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(FORMAT),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format", "station", "name", "count", "record", "signature", "x"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    data = (
        HEAD + json.dumps(value).encode() + b"\n" + line(record="AAAA", signature=base64.b64encode(SIGNATURE).decode())
    )
    found = items(data)
    assert found[-1] == SignedRecord(bytes(3), found[-1].pin, SIGNATURE), "the line after it is read"  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_record_with_a_flipped_bit_or_a_cut_is_refused_or_another(made: Records, data: st.DataObject) -> None:
    """Property of the record's own parser: never another error, never the same device from other bytes."""
    good = made.records[0]
    at = data.draw(st.integers(0, len(good) * 8 - 1))
    flipped = bytearray(good)
    flipped[at // 8] ^= 1 << at % 8
    for changed in (bytes(flipped), good[: at // 8], good + good[: at // 8 + 1]):
        try:
            found = Record.from_bytes(changed)
        except EdgesealError:
            continue
        assert found.to_bytes() == changed
        assert found != Record.from_bytes(good)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "cut off"),
        (b"[]", "no enrolment record"),
        (b"null", "no enrolment record"),
        (b"{}", "no enrolment record"),
        (b"\xff\xfe", "cut off"),
        (b"[" * 60_000, "no enrolment record"),
        (b'{"format": ' + b"[" * 60_000, "cut off"),
        (b'{"record": ' + b'{"x": ' * 9_000, "cut off"),
        (line(record="AAAA"), "signature"),
        (line(record="AAAA", signature="AAAA"), "signature"),
        (line(record="A", signature=base64.b64encode(SIGNATURE).decode()), "record"),
        (line(record="AAAA", signature=base64.b64encode(SIGNATURE).decode(), x=1), "x"),
        (line(record=7, signature=8), "record"),
        (line(record="A" * 40_000, signature=base64.b64encode(SIGNATURE).decode()), "record"),
        (line(format=FORMAT, station="zz", name="", count=0), "station"),
        (line(format=FORMAT, station="00" * 48, name="", count=-1), "count"),
        (line(format=FORMAT, station="00" * 48, name="x" * 300, count=0), "name"),
        (line(format="edgeseal/enrolments/2"), "another format"),
        (line(format=None), "another format"),
    ],
)
def test_a_bad_line_is_named_and_the_next_one_is_read(text: bytes, says: str) -> None:
    good = line(record="AAAA", signature=base64.b64encode(SIGNATURE).decode())
    _, bad, next_ = items(HEAD + text.rstrip(b"\n") + b"\n" + good)
    assert isinstance(bad, Bad)
    assert says in str(bad.error)
    assert isinstance(next_, SignedRecord)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", FormatError, "empty"),
        (b"\n \n", FormatError, "empty"),
        (b"\x00" * 100, FormatError, "names no station"),
        (line(record="AAAA", signature=""), FormatError, "names no station"),
        (line(format="edgeseal/enrolments/2", station="x"), IncompatibleError, "another format"),
        (b"-----BEGIN PGP MESSAGE-----\n", FormatError, "names no station"),
    ],
)
def test_a_file_that_is_none(data: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        items(data)
    assert cast("EdgesealError", caught.value).hint


class Endless(io.RawIOBase):
    """Bytes without end, that counts how many were asked for at a time."""

    def __init__(self, piece: bytes, total: int) -> None:
        self.left, self.piece, self.most = total, piece, 0

    def readline(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert 0 < size <= MAX_LINE + 1, "never a whole line of any length"
        self.most = max(self.most, size)
        out = self.piece[: min(size, self.left)]
        self.left -= len(out)
        return out


def test_one_line_of_100_megabytes_costs_no_memory() -> None:
    source = Endless(b"x" * (MAX_LINE + 1), 100 * 2**20)
    with pytest.raises(FormatError, match="names no station"):
        list(enrolments.read(cast("BinaryIO", source)))
    assert source.left == 0, "it was skipped to its end"


@pytest.mark.parametrize(
    ("more", "items_", "says"),
    [
        (line(record="AAAA", signature=base64.b64encode(SIGNATURE).decode()), 3001, "more than 3000 lines; the rest"),
        (b"{}\n", 1001, "more than 1000 lines are no records; the rest"),
        (HEAD, 1001, "more than 1000 lines are no records; the rest"),
        (b" \n", 2, "more than 3000 lines; the rest"),
    ],
)
def test_lines_without_end_come_to_an_end(monkeypatch: pytest.MonkeyPatch, more: bytes, items_: int, says: str) -> None:
    monkeypatch.setattr(enrolments, "MAX_LINES", 3000)
    endless = Lines(itertools.chain([HEAD], itertools.repeat(more)))
    found = list(enrolments.read(cast("BinaryIO", endless)))
    assert len(found) == items_
    assert isinstance(last := found[-1][1], Bad)
    assert says in str(last.error)


class Lines:
    """A file that never ends."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def readline(self, _size: int) -> bytes:
        return next(self._lines)


def test_a_signature_for_anything_else_is_none(records: Records) -> None:
    """FIPS 204's context keeps what a station signs for one purpose from serving another."""
    record, key = records.records[0], records.world.key
    good = records.signer.signed(record)
    good.check(records.station.raw)
    for context in (chain.CONTEXT, b"edgeseal factory reset", b""):
        with pytest.raises(IntegrityError):
            SignedRecord(record, good.pin, key.sign(record, context)).check(records.station.raw)
    for changed in (SignedRecord(record + b"\0", good.pin, good.signature), SignedRecord(record, good.pin, b"")):
        with pytest.raises(IntegrityError):
            changed.check(records.station.raw)


# Commands ------------------------------------------------------------------------------------------------------------


def test_carried_and_imported_as_people_type_it_and_once_more(records: Records, tmp_path: Path) -> None:
    file = tmp_path / "stick" / "line-1.jsonl"
    file.parent.mkdir()
    written = ok("station", "carry", file, *records.keys)
    assert written["devices"] == ["press-0001", "press-0002", "press-0003"]
    public = records.world.place / "keys" / "line-1.pub.json"
    trusted = ok("fleet", "trust-station", public, "--id", written["pin"][:32], *records.data)
    assert (trusted["id"], trusted["new"]) == (written["pin"][:32], True)
    assert ok("fleet", "trust-station", public, *records.data)["new"] is False
    first = edgeseal("fleet", "import-enrolments", file, *records.data)
    assert first.exit_code == 0, first.output
    assert "line 2: press-0001: registered" in first.stderr
    assert first.stdout == "3 devices registered, 0 were registered before, 0 lines refused\n"
    before = records.devices()
    assert [d["station"] for d in before.values()] == [trusted["id"]] * 3
    again = ok("fleet", "import-enrolments", file, *records.data)
    assert (again["registered"], again["known"], again["refused"]) == (0, 3, 0)
    assert {x["outcome"] for x in again["lines"]} == {"known"}
    said = edgeseal("fleet", "import-enrolments", file, *records.data)
    assert said.stdout == "nothing changed: all 3 devices were registered before\n"
    assert records.devices() == before
    (listed,) = ok("fleet", "stations", *records.data)["stations"]
    assert (listed["name"], listed["devices"], listed["distrusted_at"]) == ("line-1", 3, None)


def test_one_bad_line_of_three(records: Records, tmp_path: Path) -> None:
    records.trust()
    head, one, two, three = records.carried().splitlines(keepends=True)
    file = tmp_path / "f"
    file.write_bytes(head + one + two.replace(b'"record": "', b'"record": "AAAA') + three)
    result = edgeseal("fleet", "import-enrolments", file, *records.data, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert [x["outcome"] for x in found["lines"]] == ["registered", "refused", "registered"]
    assert "signature is not its station's" in found["lines"][1]["reason"]
    assert sorted(records.devices()) == ["press-0001", "press-0003"]
    assert records.take(records.carried())[1].outcome == "registered", "the right file repairs it"


def test_a_hostile_line_commands_no_terminal(records: Records, tmp_path: Path) -> None:
    records.trust()
    file = tmp_path / "f"
    file.write_bytes(records.carried([]) + b'{"record": "AAAA", "\\u001b[2Jboo\\u0007": 1}\n')
    said = refused(3, "fleet", "import-enrolments", file, *records.data)
    assert "?[2Jboo?" in said
    assert "\x1b" not in said


def test_distrusted_stations_records_are_refused_and_its_devices_stay(records: Records, tmp_path: Path) -> None:
    id_ = records.trust()
    assert outcomes(records.take(records.carried(records.records[:1]))) == ["registered"]
    done = edgeseal("fleet", "distrust-station", id_, "--reason", "stolen", *records.data)
    assert done.exit_code == 0, done.output
    assert "1 devices are from it" in done.stdout
    file = tmp_path / "later"
    file.write_bytes(records.carried())
    said = refused(3, "fleet", "import-enrolments", file, *records.data)
    assert "is distrusted since" in said
    assert "stolen" in said
    assert sorted(records.devices()) == ["press-0001"]
    public = records.world.place / "keys" / "line-1.pub.json"
    assert "--again" in refused(3, "fleet", "trust-station", public, *records.data)
    assert ok("fleet", "trust-station", public, "--again", *records.data)["new"] is True
    assert outcomes(records.take(file.read_bytes())) == ["known", "registered", "registered"]
    refused(2, "fleet", "distrust-station", "00" * 16, "--reason", "x", *records.data)


def test_trusting_the_wrong_file_or_the_wrong_station(records: Records, tmp_path: Path) -> None:
    public = records.world.place / "keys" / "line-1.pub.json"
    assert "is the key of station" in refused(3, "fleet", "trust-station", public, "--id", "ab" * 16, *records.data)
    private = records.world.place / "keys" / "line-1.key"
    assert "expected its NAME.pub.json" in refused(2, "fleet", "trust-station", private, *records.data)
    broken = tmp_path / "x.pub.json"
    broken.write_text("{}")
    refused(3, "fleet", "trust-station", broken, *records.data)
    other = json.loads(public.read_text())
    ok("key", "new", "small", "--kind", "ml-dsa-44", "--no-passphrase", "--keys", tmp_path / "k")
    assert "ml-dsa-65 is needed" in refused(2, "fleet", "trust-station", tmp_path / "k/small.pub.json", *records.data)
    stolen = tmp_path / "y.pub.json"
    stolen.write_text(json.dumps({**other, "keyid": "00" * 32}))
    refused(3, "fleet", "trust-station", stolen, *records.data)
    assert ok("fleet", "stations", *records.data)["stations"] == []


def test_carry_writes_nothing_twice_and_nothing_over_another_file(records: Records, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("mine")
    assert "is there already" in refused(2, "station", "carry", file, *records.keys)
    assert file.read_text() == "mine"
    with records.world.journal() as journal:
        for entry in list(journal.of_kind(chain.PROVISIONED)):
            journal.append(chain.UPLOADED, device=entry.device, serial=entry.serial, kid=entry.kid)
    nothing = edgeseal("station", "carry", tmp_path / "g", *records.keys)
    assert (nothing.exit_code, "nothing to carry" in nothing.stdout) == (0, True), "a job of every night is no failure"
    assert not (tmp_path / "g").exists()
    assert len(ok("station", "carry", tmp_path / "g", "--all", *records.keys)["devices"]) == 3
    assert ok("station", "carry", tmp_path / "h", "--all", "--batch", "no", *records.keys)["file"] is None


def test_carry_works_while_a_run_is_going_on(records: Records, tmp_path: Path) -> None:
    with records.world.journal():
        assert len(ok("station", "carry", tmp_path / "f", *records.keys)["devices"]) == 3


def test_files_of_two_stations_joined(records: Records) -> None:
    other = enrol_world.other_signer()
    id_1, id_2 = records.trust(), records.trust(other, name="line 2")
    both = records.carried(records.records[:1]) + records.carried(records.records[1:], other)
    found = records.take(both)
    assert outcomes(found) == ["registered"] * 3
    assert [d["station"] for d in records.devices().values()] == [id_1, id_2, id_2]


# The way back --------------------------------------------------------------------------------------------------------


def test_receipt_comes_back_and_the_next_file_holds_only_what_is_new(records: Records, tmp_path: Path) -> None:
    records.trust()
    one, receipt, two = tmp_path / "one", tmp_path / "receipt", tmp_path / "two"
    one.write_bytes(records.carried(records.records[:2]))
    imported = edgeseal("fleet", "import-enrolments", one, "--receipt", receipt, *records.data)
    assert imported.exit_code == 0, imported.output
    station = records.keys[:4]
    found = ok("station", "acknowledge", receipt, *station)
    assert (found["devices"], found["waiting"]) == (["press-0001", "press-0002"], 1)
    assert ok("station", "acknowledge", receipt, *station)["devices"] == [], "twice is once"
    assert ok("station", "carry", two, *records.keys)["devices"] == ["press-0003"]
    again = edgeseal("fleet", "import-enrolments", two, "--receipt", receipt, *records.data)
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    assert list(records.devices()) == ["press-0001", "press-0002"], "and nothing was imported"


def test_receipt_of_a_file_with_refused_lines_names_the_others(records: Records, tmp_path: Path) -> None:
    records.trust()
    head, first, second, third = records.carried().splitlines(keepends=True)
    file, receipt = tmp_path / "f", tmp_path / "receipt"
    file.write_bytes(head + first + second.replace(b"A", b"B") + third)
    refused(3, "fleet", "import-enrolments", file, "--receipt", receipt, *records.data)
    found = ok("station", "acknowledge", receipt, *records.keys[:4])
    assert (found["devices"], found["waiting"]) == (["press-0001", "press-0003"], 1)


def test_receipt_of_another_station_or_of_nothing_changes_nothing(records: Records, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt"
    for digests in ([], [bytes(48)], [receipts.digest(records.records[0] + b"\0")]):
        receipt.write_bytes(receipts.write(digests))
        assert ok("station", "acknowledge", receipt, *records.keys[:4])["devices"] == []
    with records.world.journal():
        refused(5, "station", "acknowledge", receipt, *records.keys[:4])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=48, max_size=48)))
def test_receipt_that_was_written_is_read(digests: list[bytes]) -> None:
    assert receipts.read(receipts.write(digests)) == frozenset(digests)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=100) | st.lists(st.integers() | st.text()).map(lambda x: json.dumps(x).encode()))
@example(b'{"format": "edgeseal/enrolments-receipt/1", "records": ["00"]}')
@example(b'{"format": "edgeseal/enrolments-receipt/2", "records": []}')
@example(b'{"format": "edgeseal/enrolments-receipt/1", "records": [], "x": 1}')
@example(b'{"records": ' + b"[" * 100_000)
def test_what_is_no_receipt(data: bytes) -> None:
    with pytest.raises(FormatError, match="no receipt") as caught:
        receipts.read(data)
    assert caught.value.hint

"""Between a station and the fleet server: stolen tokens, forged, altered, replayed, spliced and foreign records."""

from __future__ import annotations

import base64
import io
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.unit import fleet_world
from tests.unit.enrol_world import NOW, PUBLIC, Records, other_signer, outcomes
from tests.unit.fleet_world import Server, serving
from tests.unit.publisher_world import ok, refused

from edgeseal.enrolment import Record
from edgeseal.errors import FormatError, IntegrityError, NotAuthorisedError, RefusedError, UsageError
from edgeseal.suite import PrivateKey
from edgeseal_host.fleet import enrolling, imports, operations
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.fleet.stations import TrustedStation
from edgeseal_host.station import chain
from edgeseal_host.station.enrolments import SignedRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return Records.make(tmp_path_factory.mktemp("records") / "world")


@pytest.fixture
def records(made: Records, tmp_path: Path) -> Records:
    """Three devices that left the line, and a fleet that trusts their station."""
    found = made.copied(tmp_path / "world")
    found.trust()
    return found


@pytest.fixture
def server(records: Records) -> Iterator[Server]:
    with serving(records.world.data.path) as running:
        yield running


def client(records: Records, server: Server, *scopes: str) -> FleetClient:
    """A client with a token of these scopes only."""
    with records.world.data.open() as fleet:
        return FleetClient(server.base, token=fleet.tokens.create(scopes, now=NOW))


def altered(data: bytes, **changes: Any) -> bytes:
    return msgspec.structs.replace(Record.from_bytes(data), **changes).to_bytes()


def fresh(records: Records, name: str, *, serial: str = "new", key: PrivateKey | None = None) -> bytes:
    """A record that is good in itself, for this fleet."""
    made = Record.make(
        device=name,
        serial=serial,
        hardware="test-board",
        group="presses",
        key=(key or PrivateKey(1, name.encode().ljust(32))).public,
        psk=bytes(32),
        enrol=records.world.data.public().enrol,
    )
    return made.to_bytes()


def take(records: Records, signed: SignedRecord) -> bool:
    with records.world.data.open() as fleet:
        return bool(imports.take(fleet, signed, now=NOW)[1]["new"])


# Tokens and signatures -----------------------------------------------------------------------------------------------


def test_stolen_enrol_token_alone_adds_no_device(records: Records, server: Server) -> None:
    stolen, publisher = client(records, server, "enrol"), client(records, server, "publish")
    with pytest.raises(NotAuthorisedError, match="a trusted station has signed"):
        stolen.enrol(fresh(records, "mallory"))
    with pytest.raises(NotAuthorisedError, match="needs enrol"):
        publisher.enrol_signed(records.signer.signed(records.records[0]))
    assert records.devices() == {}
    assert stolen.enrol_signed(records.signer.signed(records.records[0]))["new"] is True, "negative control"
    assert client(records, server, "admin").enrol(fresh(records, "by-hand"))["new"] is True, "an admin still may"
    by_name = records.devices()
    assert by_name["by-hand"]["station"] is None
    assert by_name["press-0001"]["station"] == records.station.pin[:16].hex()


def test_enrol_token_stays_weak_when_the_last_station_was_distrusted(records: Records, server: Server) -> None:
    with records.world.data.open() as fleet:
        fleet.stations.distrust(records.station.pin[:16].hex(), "stolen", now=NOW)
    stolen = client(records, server, "enrol")
    with pytest.raises(NotAuthorisedError, match="a trusted station has signed"):
        stolen.enrol(fresh(records, "mallory"))
    with pytest.raises(NotAuthorisedError, match=r"distrusted since .* stolen"):
        stolen.enrol_signed(records.signer.signed(records.records[0]))
    assert records.devices() == {}


def test_signature_of_nobody_of_another_and_for_another_fleet_over_the_network(
    records: Records, server: Server, tmp_path: Path
) -> None:
    token, record = client(records, server, "enrol"), records.records[0]
    good, other = records.signer.signed(record), other_signer()
    with pytest.raises(NotAuthorisedError, match="is not one this fleet trusts"):
        token.enrol_signed(other.signed(record))
    with pytest.raises(IntegrityError, match="signature is not its station's"):
        token.enrol_signed(replace(good, signature=other.sign(record)))
    with pytest.raises(IntegrityError, match="signature is not its station's"):
        token.enrol_signed(replace(good, signature=good.signature[:-1]))
    stranger = DataDirectory(tmp_path / "other").create("http://127.0.0.1:1", now=0)
    foreign = fleet_world.record("press-9", PrivateKey(1, bytes(32)).public, bytes(32), stranger)
    with pytest.raises(RefusedError, match="a key this fleet server does not have"):
        token.enrol_signed(records.signer.signed(foreign))
    with pytest.raises(FormatError):
        token.enrol_signed(records.signer.signed(b"\xa0"))
    assert records.devices() == {}


HALVES: list[dict[str, Any]] = [
    {"record": "AAAA", "station": "00" * 48},
    {"record": "AAAA", "signature": "AAAA"},
    {"record": "AAAA", "station": "00" * 47, "signature": "AAAA"},
    {"record": "AAAA", "station": "GG" * 48, "signature": "AAAA"},
    {"record": "AAAA", "station": "00" * 48 + "\n", "signature": "AAAA"},
    {"record": "AAAA", "station": 5, "signature": "AAAA"},
    {"record": "AAAA", "station": "00" * 48, "signature": "A" * 9000},
    {"record": "AAAA", "station": "00" * 48, "signature": "AAAA", "admin": True},
]


def test_half_a_signature_is_not_taken_for_none(server: Server, records: Records) -> None:
    """Without the pin, or without the signature, a request must not fall back to an unsigned one."""
    admin = client(records, server, "admin")
    for body in HALVES:
        with pytest.raises(UsageError, match="request body"):
            admin._call("POST", "devices", body)
    assert records.devices() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "press-9999"},
        {"serial": "10009999"},
        {"hardware": "other"},
        {"group": "vip"},
        {"public": PrivateKey(1, bytes(32)).public.raw},
        {"enrol_kid": bytes(16)},
        {"sealed_psk": bytes(1136)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_altered_record_is_refused_whatever_was_altered(records: Records, changes: dict[str, Any]) -> None:
    good = records.signer.signed(records.records[0])
    with pytest.raises(IntegrityError, match="signature is not its station's"):
        take(records, replace(good, record=altered(good.record, **changes)))
    assert records.devices() == {}


def test_without_the_check_an_altered_record_would_be_taken(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the tests above: nothing but the signature keeps these out."""
    monkeypatch.setattr(SignedRecord, "check", lambda _self, _public: None)
    good = records.signer.signed(records.records[0])
    assert take(records, replace(good, record=altered(good.record, serial="10009999", group="vip")))
    assert records.devices()["press-0001"]["group"] == "vip"


def test_signature_for_the_journal_is_none_for_a_record(records: Records) -> None:
    record = records.records[0]
    spliced = SignedRecord(record, records.station.pin, records.world.key.sign(record, chain.CONTEXT))
    with pytest.raises(IntegrityError):
        take(records, spliced)


# Replays -------------------------------------------------------------------------------------------------------------


def test_replayed_record_changes_nothing_and_revives_nobody(records: Records) -> None:
    signed = records.signer.signed(records.records[0])
    assert take(records, signed) is True
    before = records.devices()
    assert take(records, signed) is False
    assert records.devices() == before
    with records.world.data.open() as fleet:
        fleet.registry.revoke("press-0001", "stolen")
    assert take(records, signed) is False
    assert records.devices()["press-0001"]["revoked"] is True


def test_replay_after_the_device_has_replaced_its_keys_is_known(records: Records) -> None:
    """Else a record whose answer was lost would be refused for good: its first key is gone from the registry."""
    signed = records.signer.signed(records.records[0])
    assert take(records, signed) is True
    pending = PrivateKey(1, b"n" * 32).public
    with records.world.data.open() as fleet:
        row = fleet.registry.current_generation("press-0001")
        with fleet.registry.transaction() as tx:
            assert tx.add_pending(row, suite=1, public=pending.raw, psk=bytes(32))
        found = fleet.registry.find(pending.kid)
        assert found is not None
        with fleet.registry.transaction() as tx:
            tx.promote(found)
    assert take(records, signed) is False
    with records.world.data.open() as fleet:
        assert fleet.registry.current_generation("press-0001").kid == pending.kid


def test_known_record_needs_no_enrolment_key_any_more(records: Records) -> None:
    """Rotated twice, the key the record was sealed to is gone."""
    data = records.carried()
    assert outcomes(records.take(data)) == ["registered"] * 3
    for _ in range(2):
        records.world.data.rotate("enrol", now=NOW)
    records.world.data.destroy_expired_keys(now=NOW + 400 * 86_400)
    assert outcomes(records.take(data)) == ["known"] * 3


# Two stations, one device --------------------------------------------------------------------------------------------


def test_two_stations_bring_one_record(records: Records) -> None:
    other = other_signer()
    records.trust(other, name="line 2")
    assert take(records, records.signer.signed(records.records[0])) is True
    assert take(records, other.signed(records.records[0])) is False
    assert records.devices()["press-0001"]["station"] == records.station.pin[:16].hex(), "whose it was, it stays"


def test_two_stations_name_one_key(records: Records) -> None:
    other = other_signer()
    records.trust(other, name="line 2")
    assert take(records, records.signer.signed(records.records[0])) is True
    copy = altered(records.records[0], device="drill-0001", serial="another")
    with pytest.raises(RefusedError):  # the label of its sealed PSK names the device
        take(records, other.signed(copy))
    key = PrivateKey(1, b"k" * 32)
    assert take(records, records.signer.signed(fresh(records, "one", serial="a", key=key))) is True
    with pytest.raises(RefusedError, match="already enrolled as one"):
        take(records, other.signed(fresh(records, "two", serial="b", key=key)))
    assert sorted(records.devices()) == ["one", "press-0001"]


def test_two_stations_provision_one_board(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_signer()
    records.trust(other, name="line 2")
    serial = Record.from_bytes(records.records[0]).serial
    assert take(records, records.signer.signed(records.records[0])) is True
    second = other.signed(fresh(records, "drill-0001", serial=serial))
    with pytest.raises(RefusedError, match=f"serial number {serial} is device press-0001") as caught:
        take(records, second)
    assert "device revoke press-0001" in (caught.value.hint or "")
    with records.world.data.open() as fleet:
        fleet.registry.revoke("press-0001", "re-work at line 2")
    assert take(records, second) is True, "once somebody has said that the former is gone"
    monkeypatch.setattr(enrolling, "_check_serial", lambda *_: None)
    assert take(records, other.signed(fresh(records, "x", serial=serial))) is True, "negative control"


def test_station_distrusted_in_the_middle_of_an_import(records: Records) -> None:
    id_ = records.station.pin[:16].hex()
    with records.world.data.open() as fleet:
        lines = imports.import_enrolments(fleet, io.BytesIO(records.carried()), now=NOW)
        assert next(lines).outcome == "registered"
        fleet.stations.distrust(id_, "stolen", now=NOW)
        assert outcomes(list(lines)) == ["refused", "refused"]
        record = Record.from_bytes(records.records[2])
        with pytest.raises(NotAuthorisedError):  # between the check of its signature and the transaction
            operations.enrol(fleet, record, now=NOW, station=id_)
    assert list(records.devices()) == ["press-0001"]


# Files ---------------------------------------------------------------------------------------------------------------


def test_truncated_file_is_never_taken_for_a_whole_one(records: Records, tmp_path: Path) -> None:
    whole = records.carried()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    with pytest.raises(FormatError, match="names no station"):
        records.take(whole[: ends[0] - 2])
    cuts = {*ends[:-1], *(e - 2 for e in ends[1:]), *range(ends[0], len(whole), 1997)}
    for number, cut in enumerate(sorted(cuts)):
        found = records.copied(tmp_path / str(number))
        lines = found.take(whole[:cut])
        complete = sum(end <= cut + 1 for end in ends) - 1
        assert len(found.devices()) == complete, "what is whole is taken"
        assert (outcomes(lines).count("refused") > 0) == (cut < len(whole) - 1), f"cut at {cut}"
        if number % 4 == 0:
            assert set(outcomes(found.take(whole))) <= {"registered", "known"}, "the whole file repairs it"
            assert len(found.devices()) == 3


def test_order_swapped_lines_doubled_and_spliced(records: Records) -> None:
    head, one, two, three = records.carried().splitlines(keepends=True)
    assert outcomes(records.take(head + three + one + two)) == ["registered"] * 3
    assert outcomes(records.take(head + one + two + three)) == ["known"] * 3
    doubled = records.take(head + one + one + three)
    assert outcomes(doubled) == ["known", "refused", "known"]
    assert "the record of line 2 once more" in doubled[1].reason
    signature = two.partition(b'"signature"')[2]
    spliced = records.take(head + one.partition(b'"signature"')[0] + b'"signature"' + signature)
    assert "signature is not its station's" in spliced[0].reason


def test_header_swapped_for_another_trusted_stations(records: Records) -> None:
    other = other_signer()
    records.trust(other, name="line 2")
    lines = records.carried().splitlines(keepends=True)
    header = records.carried(signer=other).splitlines(keepends=True)[0]
    assert outcomes(records.take(b"".join([header, *lines[1:]]))) == ["refused"] * 3
    assert records.devices() == {}


def test_file_of_100_megabytes_costs_no_memory(records: Records, tmp_path: Path) -> None:
    nothing, long = tmp_path / "zeros", tmp_path / "long"
    for file, begin in ((nothing, b""), (long, records.carried())):
        with file.open("wb") as out:
            out.write(begin)
            out.truncate(100 * 2**20)
    assert "names no station" in refused(3, "fleet", "import-enrolments", nothing, *records.data)
    tracemalloc.start()
    with long.open("rb") as stream, records.world.data.open() as fleet:
        lines = list(imports.import_enrolments(fleet, stream, now=NOW))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcomes(lines)[:4] == ["registered", "registered", "registered", "refused"]
    assert "no record is as long" in lines[3].reason
    assert peak < 16 * 2**20


def test_no_secret_is_in_a_carried_file(records: Records, tmp_path: Path) -> None:
    file = tmp_path / "f"
    ok("station", "carry", file, *records.keys)
    data = file.read_bytes()
    assert base64.b64encode(records.records[0]) in data, "negative control"
    for home in records.homes:
        assert home.identity is not None
        _, grant, _ = home.identity
        for secret in (grant.psk, grant.k_rng):
            for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
                assert form not in data


# What a station is trusted for ---------------------------------------------------------------------------------------


def test_station_brings_nobody_into_a_group_it_is_not_trusted_for(records: Records) -> None:
    """A stolen station would else give its thief the models of every group."""
    other = other_signer()
    with records.world.data.open() as fleet:
        station = TrustedStation("line 2", PUBLIC[other.pin])
        fleet.stations.trust(station, groups=["presses", "presses 2"], now=NOW)
    vip = Record.from_bytes(fresh(records, "vip-1"))
    with pytest.raises(RefusedError, match="trusted for presses, presses 2, not for group ''"):
        take(records, other.signed(_in_group(records, "vip-1", "")))
    for group in ("vip", "press", "presses\n", "2"):
        with pytest.raises(RefusedError, match="not for group"):
            take(records, other.signed(_in_group(records, "vip-1", group)))
    assert records.devices() == {}
    assert take(records, other.signed(_in_group(records, "good-1", "presses 2"))) is True
    assert take(records, records.signer.signed(vip.to_bytes())) is True, (
        "negative control: no group was named for line 1"
    )


def _in_group(records: Records, name: str, group: str) -> bytes:
    return altered(fresh(records, name, serial=name), group=group)


def test_what_a_station_is_trusted_for_does_not_change_by_the_way(records: Records) -> None:
    public = records.world.place / "keys" / "line-1.pub.json"
    said = refused(3, "fleet", "trust-station", public, "--group", "presses", *records.data)
    assert "is trusted for any group" in said
    assert ok("fleet", "trust-station", public, "--group", "presses", "--again", *records.data)["new"] is True
    assert "is trusted for presses" in refused(3, "fleet", "trust-station", public, *records.data)
    refused(2, "fleet", "trust-station", public, "--group", "a\nb", "--again", *records.data)
    (listed,) = ok("fleet", "stations", *records.data)["stations"]
    assert listed["groups"] == ["presses"]

"""Every parser of floor 1: round trips, and arbitrary bytes raise nothing but our own errors."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vectors import make_bundle

from edgeseal import cbor, checkin, contentkey, enrolment, servers
from edgeseal.contentkey import open_ticket, seal_ticket, unwrap, wrap
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, IntegrityError
from edgeseal.manifest import Manifest
from edgeseal.names import check_model_name
from edgeseal.session.messages import Header
from edgeseal.session.server import ring
from edgeseal.suite import SUITES, PrivateKey, PublicKey
from edgeseal.table import open_table, parse_plaintext

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = pytest.mark.parametrize("number", SUITES)
HASHES = st.binary(min_size=32, max_size=32)
COUNTS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FREE = st.dictionaries(TEXT, st.integers(-5, 5) | TEXT | st.lists(TEXT, max_size=2), max_size=3)
MODELS = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True).filter(
    lambda n: n not in {"root", "targets", "snapshot", "timestamp"}
)


def key(number: int, byte: int = 1) -> PrivateKey:
    return PrivateKey(number, bytes([byte]) * SUITES[number].seed_length)


manifests = st.builds(
    Manifest,
    model=MODELS,
    release=st.integers(1, 2**63 - 1),
    suite=st.sampled_from([1, 2]),
    ck_commitment=HASHES,
    table_sha256=HASHES,
    table_length=st.integers(1, 2**25),
    plain_size=st.integers(1, 2**63 - 1),
    stored_size=st.integers(1, 2**63 - 1),
    requirements=FREE,
    hints=st.lists(HASHES, max_size=16, unique=True),
    provenance=FREE,
)
reports = st.builds(
    checkin.Report,
    format=st.just(1),
    agent=TEXT,
    hardware=TEXT,
    runtimes=st.lists(TEXT, max_size=3),
    models=st.dictionaries(TEXT, st.builds(checkin.ModelState, COUNTS, TEXT), max_size=3),
    failed=st.lists(st.builds(checkin.Failure, TEXT, COUNTS, TEXT), max_size=3),
    metadata=st.dictionaries(TEXT, COUNTS, max_size=3),
    entropy=st.dictionaries(TEXT, TEXT, max_size=3),
    free_disk=COUNTS,
    free_ram=COUNTS,
)
orders = st.builds(
    checkin.Orders,
    format=st.just(1),
    assignments=st.lists(st.builds(checkin.Assignment, TEXT, TEXT, HASHES, COUNTS, COUNTS, COUNTS), max_size=3),
    keys=st.lists(st.builds(checkin.Grant, TEXT, COUNTS, HASHES, COUNTS), max_size=3),
    poll_seconds=COUNTS,
    report_seconds=COUNTS,
)
fleets = st.builds(
    servers.FleetServers,
    format=st.just(1),
    min_suite=st.integers(1, 255),
    keys=st.lists(
        st.builds(servers.ServerKey, st.integers(1, 255), st.binary(max_size=40), COUNTS), min_size=1, max_size=4
    ),
)


@given(manifests)
def test_manifest_round_trip(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(reports)
def test_report_round_trip(report: checkin.Report) -> None:
    assert checkin.Report.from_bytes(report.to_bytes()) == report


@given(orders)
def test_orders_round_trip(made: checkin.Orders) -> None:
    assert checkin.Orders.from_bytes(made.to_bytes()) == made


@given(fleets)
def test_fleet_servers_round_trip(fleet: servers.FleetServers) -> None:
    assert servers.FleetServers.from_bytes(fleet.to_bytes()) == fleet


@given(TEXT, TEXT, TEXT, st.lists(TEXT, max_size=3))
def test_enrolment_request_round_trip(serial: str, hardware: str, agent: str, entropy: list[str]) -> None:
    request = enrolment.Request(1, 1, key(1).public.raw, serial, hardware, agent, entropy)
    assert enrolment.Request.from_bytes(request.to_bytes()) == request


# Anything that decodes to a map with the right keys gets far into a parser; plain bytes do not.
JUNK = st.binary(max_size=60) | st.lists(
    st.integers(-2, 300) | st.binary(max_size=40) | TEXT | st.none() | st.lists(st.integers(0, 3) | TEXT, max_size=3)
    | st.dictionaries(st.integers(0, 3), st.binary(max_size=33), max_size=2) | FREE, max_size=12,
).map(lambda values: cbor.encode(dict(enumerate([1, *values]))))  # fmt: skip
PARSERS: dict[str, Callable[[bytes], Any]] = {
    "manifest": Manifest.from_bytes,
    "report": checkin.Report.from_bytes,
    "orders": checkin.Orders.from_bytes,
    "fleet servers": servers.FleetServers.from_bytes,
    "enrolment request": enrolment.Request.from_bytes,
    "enrolment record": enrolment.Record.from_bytes,
    "enrolment grant": lambda d: enrolment.Grant.open(key(1), d),
    "sealed table": lambda d: open_table(d, ck=bytes(32), suite=1, model="m", release=1),
    "sealed table behind its magic": lambda d: open_table(b"ESTB\1\1" + d, ck=bytes(32), suite=1, model="m", release=1),
    "table": parse_plaintext,
    "table behind its length": lambda d: parse_plaintext(len(d).to_bytes(4, "big") + d + bytes(108)),
    "content-key envelope": lambda d: unwrap(ring([key(1)]), d, model="m", release=1),
    "ticket": lambda d: open_ticket(key(1), bytes(32), d, model="m", release=1),
    "X1 header": lambda d: Header.cut(1, d),
    "public key": lambda d: PublicKey(1, d),
    "model name": lambda d: check_model_name(d.decode("latin1")),
}


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(data=JUNK)
def test_arbitrary_bytes_raise_only_our_errors(parse: Callable[[bytes], Any], data: bytes) -> None:
    with contextlib.suppress(EdgesealError):
        parse(data)


@BOTH
@given(data=st.binary(max_size=60))
def test_arbitrary_public_key_of_the_right_length(number: int, data: bytes) -> None:
    raw = (data * (1 + 1600 // max(1, len(data))))[: SUITES[number].public_length]
    with contextlib.suppress(EdgesealError):
        PublicKey(number, raw).seal(b"info", b"message")


# Suite ----------------------------------------------------------------------------------------------------------------


@BOTH
def test_seal_and_open(number: int) -> None:
    sealed = key(number).public.seal(b"info", b"message")
    assert len(sealed) == len(b"message") + SUITES[number].seal_overhead
    assert key(number).open(b"info", sealed) == b"message"


@BOTH
def test_sealed_to_another_key_or_purpose_refused(number: int) -> None:
    sealed = key(number).public.seal(b"info", b"message")
    for other, info in ((key(number, 2), b"info"), (key(number), b"other")):
        with pytest.raises(IntegrityError, match="does not open with this key"):
            other.open(info, sealed)


@BOTH
def test_seed_or_public_key_of_another_length_refused(number: int) -> None:
    with pytest.raises(FormatError, match=f"needs {SUITES[number].seed_length}"):
        PrivateKey(number, bytes(SUITES[number].seed_length - 1))
    with pytest.raises(FormatError, match=f"needs {SUITES[number].public_length}"):
        PublicKey(number, bytes(SUITES[number].public_length + 1))


def test_unknown_suite_names_the_known_ones() -> None:
    with pytest.raises(IncompatibleError, match="cipher suite 3 is unknown here; this version has suites 1, 2"):
        PublicKey(3, b"")


@BOTH
def test_non_canonical_ml_kem_key_refused(number: int) -> None:
    """FIPS 203 §7.2: coefficients of 4095 are not reduced modulo 3329."""
    raw = key(number).public.raw
    with pytest.raises(FormatError, match="invalid KEM public key"):
        PublicKey(number, b"\xff" * 3 + raw[3:])


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)], ids=["0", "1"])
def test_low_order_x25519_key_refused(point: bytes) -> None:
    weak = PublicKey(1, key(1).public.raw[:1184] + point)
    with pytest.raises(FormatError, match="low-order"):
        weak.seal(b"info", b"message")


def test_key_id_depends_on_suite_and_key() -> None:
    ids = {key(number, byte).public.kid for number in SUITES for byte in (1, 2)}
    assert len(ids) == 4
    assert {len(i) for i in ids} == {16}


# Content keys ---------------------------------------------------------------------------------------------------------


@BOTH
def test_envelope_is_for_one_key_model_and_release(number: int) -> None:
    envelope = wrap(key(number).public, model="m", release=1, ck=b"c" * 32)
    keys = ring([key(number), key(number, 2)])
    assert unwrap(keys, envelope, model="m", release=1) == b"c" * 32
    for model, release in (("n", 1), ("m", 2)):
        with pytest.raises(IntegrityError):
            unwrap(keys, envelope, model=model, release=release)
    with pytest.raises(IntegrityError, match=r"public\.json"):
        unwrap(ring([key(number, 2)]), envelope, model="m", release=1)
    for wrong in (envelope[:-1], envelope + b"\0", b"\x09" + envelope[1:], b""):
        with pytest.raises(FormatError):
            unwrap(keys, wrong, model="m", release=1)


@BOTH
def test_ticket_is_for_one_device_model_and_release(number: int) -> None:
    device, psk = key(number), b"p" * 32
    ticket = seal_ticket(device.public, psk, model="m", release=1, ck=b"c" * 32, not_after=99)
    assert open_ticket(device, psk, ticket, model="m", release=1) == (b"c" * 32, 99)
    for other, secret, model, release in (
        (key(number, 2), psk, "m", 1), (device, b"q" * 32, "m", 1), (device, psk, "n", 1), (device, psk, "m", 2),
    ):  # fmt: skip
        with pytest.raises(IntegrityError):
            open_ticket(other, secret, ticket, model=model, release=release)
    for at in (0, 40, len(ticket) // 2, len(ticket) - 1):
        with pytest.raises(IntegrityError):
            open_ticket(device, psk, ticket[:at] + bytes([ticket[at] ^ 1]) + ticket[at + 1 :], model="m", release=1)
    with pytest.raises(FormatError, match=f"suite {number} needs {len(ticket)}"):
        open_ticket(device, psk, ticket[:-1], model="m", release=1)


def test_commitment_is_locked() -> None:
    """Against the vectors' own writer."""
    assert contentkey.commitment(bytes(32), "m", 1) == make_bundle.commitment(bytes(32), "m", 1)
    assert contentkey.commitment(bytes(32), "m", 1).hex().startswith("81deed1547f532d6")


# Enrolment ------------------------------------------------------------------------------------------------------------


def grant(number: int = 1, **changes: Any) -> enrolment.Grant:
    fields: dict[str, Any] = {
        "format": 1, "device": "press-7", "suite": number, "psk": b"p" * 32, "k_rng": b"k" * 32,
        "fleet_url": "http://fleet", "root": b"{}", "time_floor": 5,
    }  # fmt: skip
    return enrolment.Grant(**{**fields, **changes})


@BOTH
def test_grant_opens_on_its_device_only(number: int) -> None:
    sealed = grant(number).seal(key(number).public)
    assert enrolment.Grant.open(key(number), sealed) == grant(number)
    with pytest.raises(IntegrityError, match="another device's request"):
        enrolment.Grant.open(key(number, 2), sealed)
    for at in (17, len(sealed) - 1):
        with pytest.raises(IntegrityError):
            enrolment.Grant.open(key(number), sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    for wrong in (b"", sealed[:17], sealed + bytes(2**20)):
        with pytest.raises(FormatError):
            enrolment.Grant.open(key(number), wrong)
    with pytest.raises(IncompatibleError, match="format 2"):
        enrolment.Grant.open(key(number), b"\x02" + sealed[1:])


@pytest.mark.parametrize(
    "changes",
    [{"device": "Press"}, {"device": ""}, {"device": "a" * 65}, {"device": "../a"}, {"device": "a\n"}, {"psk": b"p"},
     {"k_rng": b""}, {"time_floor": -1}, {"suite": 2}],
    ids=str,
)  # fmt: skip
def test_grant_with_a_bad_field_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        enrolment.Grant.open(key(1), grant(**changes).seal(key(1).public))


def test_grant_of_another_format_inside_refused() -> None:
    with pytest.raises(EdgesealError):
        enrolment.Grant.open(key(1), grant(format=2).seal(key(1).public))


@BOTH
def test_record_keeps_a_psk_with_its_device_and_key(number: int) -> None:
    enrol = key(number, 9)
    made = enrolment.Record.make(
        device="press-7", serial="s", hardware="h", group="line-1", key=key(1).public, psk=b"p" * 32, enrol=enrol.public
    )
    record = enrolment.Record.from_bytes(made.to_bytes())
    assert record == made
    assert record.psk(ring([enrol])) == b"p" * 32
    values = list(cbor.to_map(record).values())
    for position, value in ((1, "press-8"), (6, key(1, 2).public.raw)):
        swapped = enrolment.Record.from_bytes(
            cbor.encode(dict(enumerate([*values[:position], value, *values[position + 1 :]])))
        )
        with pytest.raises(IntegrityError):
            swapped.psk(ring([enrol]))
    with pytest.raises(IntegrityError, match=r"public\.json"):
        record.psk(ring([key(number, 8)]))


def test_enrolment_request_with_a_key_that_does_not_load_refused() -> None:
    for suite, raw, error in ((1, b"\xff" * 1216, FormatError), (1, b"", FormatError), (3, b"", IncompatibleError)):
        request = enrolment.Request(1, suite, raw, "s", "h", "a", [])
        with pytest.raises(error):
            enrolment.Request.from_bytes(request.to_bytes())


# Check-in and servers -------------------------------------------------------------------------------------------------


def test_newer_formats_are_told_apart_from_broken_ones() -> None:
    report = checkin.Report(2, "a", "h", [], {}, [], {}, {}, 0, 0)
    with pytest.raises(IncompatibleError, match="check-in format 2"):
        checkin.Report.from_bytes(report.to_bytes())
    with pytest.raises(IncompatibleError, match="format 2"):
        checkin.Orders.from_bytes(checkin.Orders(2, [], [], 1, 1).to_bytes())
    fleet = servers.FleetServers(2, 1, [servers.ServerKey(1, b"", 0)])
    with pytest.raises(IncompatibleError, match="format 2"):
        servers.FleetServers.from_bytes(fleet.to_bytes())


def test_counts_beyond_the_limits_refused() -> None:
    grants = [checkin.Grant("m", i, bytes(32), 0) for i in range(checkin.MAX_MODELS + 1)]
    failures = [checkin.Failure("m", i, "r") for i in range(9)]
    keys = [servers.ServerKey(1, b"", 0)] * (servers.MAX_KEYS + 1)
    for data, parse in (
        (checkin.Orders(1, [], grants, 1, 1).to_bytes(), checkin.Orders.from_bytes),
        (checkin.Report(1, "a", "h", [], {}, failures, {}, {}, 0, 0).to_bytes(), checkin.Report.from_bytes),
        (servers.FleetServers(1, 1, keys).to_bytes(), servers.FleetServers.from_bytes),
        (servers.FleetServers(1, 1, []).to_bytes(), servers.FleetServers.from_bytes),
    ):
        with pytest.raises(FormatError):
            parse(data)


def test_usable_server_keys_keep_their_order_and_leave_out_ended_and_weak_ones() -> None:
    one, two, three = key(1).public, key(2, 2).public, key(2, 3).public
    fleet = servers.FleetServers(
        1,
        1,
        [servers.ServerKey(2, three.raw, 20), servers.ServerKey(1, one.raw, 10), servers.ServerKey(2, two.raw, 20)],
    )
    assert [k.raw for k in fleet.usable(9)] == [three.raw, one.raw, two.raw]
    assert [k.raw for k in fleet.usable(10)] == [three.raw, two.raw], "not_after is the first moment that is too late"
    strict = servers.FleetServers(1, 2, fleet.keys)
    assert [k.raw for k in strict.usable(0)] == [three.raw, two.raw]
    assert fleet.usable(20) == []


def test_server_key_of_a_future_suite_does_not_lock_devices_out() -> None:
    fleet = servers.FleetServers(1, 1, [servers.ServerKey(3, b"?", 20), servers.ServerKey(1, key(1).public.raw, 20)])
    assert [k.raw for k in fleet.usable(0)] == [key(1).public.raw]
    broken = servers.FleetServers(1, 1, [servers.ServerKey(1, b"?", 20)])
    with pytest.raises(FormatError):
        broken.usable(0)


# No secret in what a log may print ------------------------------------------------------------------------------------


def test_secrets_are_not_in_reprs() -> None:
    secret = hashlib.sha256(b"secret").digest()
    shown = [repr(checkin.Grant("m", 1, secret, 0)), repr(grant(psk=secret, k_rng=secret)), repr(key(1))]
    shown.append(repr(checkin.Orders(1, [], [checkin.Grant("m", 1, secret, 0)], 1, 1)))
    for text in shown:
        assert secret.hex() not in text
        assert repr(secret) not in text

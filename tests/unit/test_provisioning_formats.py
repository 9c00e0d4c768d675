"""Every parser of the manufacturing line against any bytes, cut and flipped ones, and values outside the limits."""

from __future__ import annotations

import contextlib
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.line_world import ROOT, Line, order

from edgeseal.enrolment import Request
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError, RefusedError
from edgeseal.provisioning import Board, Destroyed, EntropyReport, Identity, Machine, Offer, Package, Step, wire
from edgeseal.provisioning.machine import ANSWERED, CARRIED, FINAL, NEXT
from edgeseal.provisioning.messages import (
    Authorisation,
    Hello,
    Kind,
    Refused,
    Reset,
    ResetNonce,
    cut,
    frame,
)
from edgeseal.provisioning.offer import pack, unpack_root
from edgeseal.provisioning.transcript import Transcript
from edgeseal.suite import PrivateKey

pytestmark = pytest.mark.unit
KEY = PrivateKey(1, bytes(32))
REQUEST = Request(1, 1, KEY.public.raw, "0001", "pi-4", "0.1", ["os"]).to_bytes()
BOARD = Board("b8:27:eb:12:34:56", "cid", "duid", "c03115")
GOOD: dict[str, Any] = {
    "hello": Hello(1, "batch", 1, "mix", bytes(16), bytes(32), bytes(64)),
    "identity": Identity(1, False, REQUEST, BOARD, EntropyReport("mix", 1, ["os"], ["x"]), bytes(32)),  # noqa: FBT003
    "package": Package(b"sealed", b"root", bytes(48), "line 1", "batch", {"root": 1}),
    "reset": Reset(1, bytes(16), bytes(32)),
    "reset-nonce": ResetNonce(bytes(16), "0001", bytes(32)),
    "authorisation": Authorisation(bytes(1952), bytes(3309)),
    "destroyed": Destroyed(bytes(16), bytes(32)),
    "refused": Refused(5, "why", "0001"),
    "offer": Offer(1, "press-1", "", "batch", "0001", 1, bytes(16), b"s", b"r", bytes(48), bytes(48)),
}


@pytest.mark.parametrize("name", GOOD)
def test_message_is_read_back(name: str) -> None:
    message = GOOD[name]
    assert type(message).from_bytes(message.to_bytes()) == message


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=80))
def test_any_bytes_are_refused(name: str, data: bytes) -> None:
    with pytest.raises((FormatError, IncompatibleError)):
        type(GOOD[name]).from_bytes(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_flipped_and_cut_messages_are_another_message_or_refused(name: str, data: st.DataObject) -> None:
    message = GOOD[name]
    raw = bytearray(message.to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(FormatError, IncompatibleError):
        assert type(message).from_bytes(bytes(raw)) != message
    with pytest.raises(FormatError):
        type(message).from_bytes(message.to_bytes()[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(FormatError):
        type(message).from_bytes(message.to_bytes() + b"\0")


def changed(name: str, field: int, value: Any) -> bytes:
    values = cbor2.loads(GOOD[name].to_bytes())
    values[field] = value
    return cbor2.dumps(values, canonical=True)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("hello", 2, 0),
        ("hello", 3, "off"),
        ("hello", 4, bytes(15)),
        ("hello", 5, bytes(33)),
        ("hello", 6, bytes(63)),
        ("hello", 7, 1),
        ("hello", 1, "x" * 257),
        ("hello", 8, None),
        ("identity", 1, None),
        ("identity", 3, ["", "", "", "", ""]),
        ("identity", 4, ["mix", -1, [], []]),
        ("identity", 4, ["mix", 0, ["x"] * 17, []]),
        ("package", 2, bytes(47)),
        ("package", 5, {"root": -1}),
        ("package", 5, {f"role-{i}": 1 for i in range(17)}),
        ("authorisation", 0, bytes(1951)),
        ("authorisation", 1, bytes(3310)),
        ("refused", 0, 0),
        ("refused", 0, 256),
        ("offer", 1, "Press 1"),
    ],
)
def test_values_outside_the_limits(name: str, field: int, value: Any) -> None:
    with pytest.raises(FormatError):
        type(GOOD[name]).from_bytes(changed(name, field, value))


@pytest.mark.parametrize("name", ["hello", "identity", "reset", "offer"])
def test_newer_format_is_incompatible(name: str) -> None:
    with pytest.raises(IncompatibleError, match="format 2"):
        type(GOOD[name]).from_bytes(changed(name, 0, 2))


@pytest.mark.parametrize("request_", [b"", REQUEST[:-1], REQUEST.replace(b"0001", b"0\x1b01")])
def test_identity_with_a_request_that_is_none(request_: bytes) -> None:
    identity = Identity.from_bytes(changed("identity", 2, request_))
    with pytest.raises(FormatError):
        _ = identity.asked


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("snolhdcx"),
        st.one_of(st.binary(max_size=16), st.integers(-5, 10**7), st.booleans(), st.text(max_size=3), st.none()),
    )
)
def test_any_map_is_a_piece_or_refused(body: dict[str, Any]) -> None:
    for schema in (wire.Put, wire.Get, wire.Piece):
        try:
            found = wire.read(body, schema)
        except FormatError:
            continue
        assert wire.read(wire.write(found), schema) == found


@given(st.binary(max_size=4))
def test_message_kinds(data: bytes) -> None:
    try:
        kind, body = cut(data)
    except FormatError:
        assert not data or data[0] not in set(Kind)
        return
    assert frame(kind, body) == data


# The order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carried", [False, True])
def test_machine_takes_what_its_table_says_and_nothing_else(carried: bool) -> None:
    table = CARRIED if carried else NEXT
    for step in Step:
        for kind in Kind:
            machine = Machine(carried=carried)
            machine.step = step
            if kind is Kind.REFUSED and step in ANSWERED:
                assert machine.move(kind) is Step.REFUSED
            elif (step, kind) in table:
                assert machine.move(kind) is table[step, kind]
            else:
                with pytest.raises(FormatError, match="no place"):
                    machine.move(kind)
                assert machine.step is step


def test_every_way_through_the_table_ends() -> None:
    for table in (NEXT, CARRIED):
        for step in table.values():
            assert step in FINAL or any(here is step for here, _ in table)


# Cryptography ---------------------------------------------------------------------------------------------------------


def pair() -> tuple[Transcript, Transcript]:
    station, device = Transcript(), Transcript()
    for side in (station, device):
        side.absorb(Kind.HELLO, b"hello")
        side.absorb(Kind.IDENTITY, b"identity")
    device.open_challenge(KEY, station.challenge(KEY.public, bytes(range(32))))
    return station, device


def test_both_sides_have_the_same_tags_and_locks() -> None:
    station, device = pair()
    assert station.th == device.th
    station.check_tag(b"proof", device.tag(b"proof"))
    assert device.unlock(b"grant", station.lock(b"grant", b"x")) == b"x"


def test_tag_serves_one_purpose_and_one_moment() -> None:
    station, device = pair()
    tag = device.tag(b"proof")
    for label in (b"lock", b"locked", b""):
        with pytest.raises(IntegrityError):
            station.check_tag(label, tag)
    station.absorb(Kind.PROOF, tag)
    with pytest.raises(IntegrityError):
        station.check_tag(b"proof", tag)
    with pytest.raises(IntegrityError):
        device.unlock(b"confirm", station.lock(b"grant", b"x"))


def test_challenge_of_a_wrong_length() -> None:
    station, device = Transcript(), Transcript()
    sealed = station.challenge(KEY.public, bytes(31))
    with pytest.raises(IntegrityError, match="wrong length"):
        device.open_challenge(KEY, sealed)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_root(data: bytes) -> None:
    line = Line()
    line.provision()
    assert line.home.identity is not None
    (offer,) = line.book.offers.values()
    package = msgspec.structs.replace(pack(order(), offer), root=data)
    _, grant, _ = line.home.identity
    with pytest.raises(RefusedError):
        unpack_root(package, grant)
    assert unpack_root(pack(order(), offer), grant) == ROOT

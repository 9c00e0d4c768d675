"""X1 against the vectors of an independent implementation, both roles, every intermediate value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeseal.session import selftest
from edgeseal.session.messages import (
    Flags,
    Header,
    PendingRequest,
    Reply,
    Status,
    build_reply,
    lock,
    pad,
    reply_keys,
    request_lock,
    t,
    th0,
    u64,
    unlock,
)
from edgeseal.session.server import Ring, Row, exchange, ring
from edgeseal.suite import PrivateKey, PublicKey, expand
from edgeseal_host.testing.registry import MemoryRegistry

VECTORS = Path(__file__).parents[1] / "vectors"
SUITES = json.loads((VECTORS / "x1.json").read_text())["suites"]
EXCHANGES = [pytest.param(s, e, id=f"{s['suite']}-{e['name']}") for s in SUITES for e in s["exchanges"]]
REJECTED = [pytest.param(s, r, id=f"{s['suite']}-{r['why']}") for s in SUITES for r in s["rejected"]]
Case = dict[str, Any]


def octets(case: Case, name: str) -> bytes:
    return bytes.fromhex(case[name])


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: str(s["suite"]))
def test_keys_ids_and_th0(suite: Case) -> None:
    for role, kid_name in (("server", "kid_s"), ("device", "kid_d")):
        key = PrivateKey(suite["suite"], octets(suite, f"{role}_seed")).public
        assert (key.raw, key.kid) == (octets(suite, f"{role}_pk"), octets(suite, kid_name))
    assert th0(PublicKey(suite["suite"], octets(suite, "server_pk"))) == octets(suite, "th0")


@pytest.mark.parametrize(("suite", "e"), EXCHANGES)
def test_request_opens_to_every_intermediate_value(suite: Case, e: Case) -> None:
    server = PrivateKey(suite["suite"], octets(suite, "server_seed"))
    device = PrivateKey(suite["suite"], octets(e, "device_seed")).public
    ephemeral = PrivateKey(suite["suite"], octets(e, "e_seed")).public
    header, raw, locked = Header.cut(suite["suite"], server.open(octets(suite, "th0"), octets(e, "m1")[18:]))
    assert header == Header(octets(e, "kid_d"), ephemeral.raw, octets(e, "s1"), e["ctr"], octets(e, "qkd_id"))
    assert raw == header.to_bytes() == octets(e, "hdr")
    prk1, ad = request_lock(octets(e, "psk"), octets(suite, "th0"), device.raw, raw)
    assert (prk1, ad, locked[:32]) == (octets(e, "prk1"), octets(e, "ad1"), octets(e, "n1"))
    assert expand(prk1, b"k" + locked[:32], 32) == octets(e, "k1")
    plain = pad(bytes([e["flags"]]) + octets(e, "body"))
    assert unlock(suite["suite"], prk1, ad, locked) == plain
    assert lock(suite["suite"], prk1, ad, plain) == locked == octets(e, "x1")


@pytest.mark.parametrize(("suite", "e"), EXCHANGES)
def test_reply_opens_to_every_intermediate_value(suite: Case, e: Case) -> None:
    number, th1 = suite["suite"], t(b"reply", octets(suite, "th0"), octets(e, "m1"))
    assert th1 == octets(e, "th1")
    prk2 = reply_keys(octets(e, "psk"), octets(e, "s1"), octets(e, "qkd_key"), th1)
    m2 = octets(e, "m2")
    assert (prk2, m2[1:33]) == (octets(e, "prk2"), octets(e, "n2"))
    assert expand(prk2, b"k" + m2[1:33], 32) == octets(e, "k2")
    c_e = unlock(number, prk2, th1, m2[1:])
    assert (t(b"e", th1), t(b"d", th1)) == (octets(e, "info_e"), octets(e, "info_d"))
    c_d = PrivateKey(number, octets(e, "e_seed")).open(t(b"e", th1), c_e)
    plain = PrivateKey(number, octets(e, "device_seed")).open(t(b"d", th1), c_d)
    assert (c_e, c_d, plain) == (octets(e, "c_e"), octets(e, "c_d"), octets(e, "reply_padded"))
    assert plain == pad(bytes([e["status"]]) + u64(e["now"]) + octets(e, "reply_body"))


def pending(suite: Case, e: Case) -> PendingRequest:
    """Return the vector's request as the device holds it in flight: coins of M1 come from the vector."""
    request = PendingRequest(
        server=PublicKey(suite["suite"], octets(suite, "server_pk")),
        device=PrivateKey(suite["suite"], octets(e, "device_seed")),
        psk=octets(e, "psk"),
        e_seed=octets(e, "e_seed"),
        s1=octets(e, "s1"),
        ctr=e["ctr"],
        flags=e["flags"],
        body=octets(e, "body"),
        qkd_id=octets(e, "qkd_id"),
        qkd_key=octets(e, "qkd_key"),
    )
    request.m1, request.th1 = octets(e, "m1"), octets(e, "th1")
    return request


@pytest.mark.parametrize(("suite", "e"), EXCHANGES)
def test_device_opens_the_reply(suite: Case, e: Case) -> None:
    reply = pending(suite, e).open_reply(octets(e, "m2"))
    assert reply == Reply(Status(e["status"]), e["now"], octets(e, "reply_body"))


@pytest.mark.parametrize(("suite", "e"), EXCHANGES)
def test_our_reply_is_as_long_and_opens(suite: Case, e: Case) -> None:
    number = suite["suite"]
    reply = Reply(Status(e["status"]), e["now"], octets(e, "reply_body"))
    m2 = build_reply(
        suite=number,
        prk2=octets(e, "prk2"),
        th1=octets(e, "th1"),
        ephemeral=PrivateKey(number, octets(e, "e_seed")).public,
        device=PrivateKey(number, octets(e, "device_seed")).public,
        reply=reply,
    )
    assert len(m2) == len(octets(e, "m2"))
    assert pending(suite, e).open_reply(m2) == reply


def replayed_registry(suite: Case) -> MemoryRegistry:
    registry = MemoryRegistry()
    registry.enrol("d", PublicKey(suite["suite"], octets(suite, "device_pk")), octets(suite, "psk"))
    return registry


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: str(s["suite"]))
def test_server_gives_the_statuses_of_the_vectors_in_their_order(suite: Case) -> None:
    registry = replayed_registry(suite)
    keys = ring([PrivateKey(suite["suite"], octets(suite, "server_seed"))])
    for e in suite["exchanges"]:
        registry.devices["d"].revoked = e["status"] == Status.REVOKED
        reply = pending(suite, e).open_reply(answer_of(e, keys, registry))
        assert (reply.status, reply.now, reply.body) == (e["status"], e["now"], octets(e, "reply_body")), e["name"]
    assert registry.devices["d"].alarms == 1


def answer_of(e: Case, keys: Ring, registry: MemoryRegistry) -> bytes:
    """Return our server's answer, with the vector's handler reply, re-key bytes and QKD key."""

    def handler(_tx: MemoryRegistry, _row: Row, _body: bytes) -> tuple[Status, bytes]:
        return Status.OK, octets(e, "reply_body")

    def random(n: int) -> bytes:
        return octets(e, "reply_body") if e["flags"] & Flags.REKEY else bytes(n)

    def qkd(_id: bytes) -> bytes:
        return octets(e, "qkd_key")

    return exchange(
        octets(e, "m1"), ring=keys, registry=registry, handler=handler, now=e["now"], random=random, qkd=qkd
    )


@pytest.mark.parametrize(("suite", "case"), REJECTED)
def test_server_rejects_as_the_vectors_say(suite: Case, case: Case) -> None:
    registry = replayed_registry(suite)
    if case["why"] == "old generation after re-key":
        new = suite["exchanges"][-1]
        row = registry.find(octets(suite, "kid_d"))
        assert row is not None
        public = PrivateKey(suite["suite"], octets(new, "device_seed")).public
        registry.promote(replace(row, kid=public.kid, public=public.raw, psk=octets(new, "psk")))
    keys = ring([PrivateKey(suite["suite"], octets(suite, "server_seed"))])

    def never(_tx: MemoryRegistry, _row: Row, _body: bytes) -> tuple[Status, bytes]:
        raise AssertionError("a rejected request reached the handler")

    answer = exchange(octets(case, "m1"), ring=keys, registry=registry, handler=never, now=0, random=bytes)
    assert answer.hex() == case["answer"]


def test_selftest_passes_and_fails_when_an_answer_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.run()
    monkeypatch.setattr(selftest, "reply_keys", lambda *_: bytes(48))
    with pytest.raises(Exception, match="known-answer self-test fails for suite 1"):
        selftest.run()

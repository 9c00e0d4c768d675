"""X1 against an attacker on the wire: every bit, every length, replay, reflection, swap."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseal.errors import EdgesealError, FormatError, IntegrityError
from edgeseal.session.messages import (
    KEY_UNKNOWN,
    MAX_PADDED,
    REFUSED,
    Header,
    PendingRequest,
    Reply,
    Status,
    lock,
    pad,
    reply_base,
    request_base,
    unlock,
    unpad,
)
from edgeseal.session.server import Row, exchange, ring
from edgeseal.suite import SUITES, PrivateKey
from edgeseal_host.testing.registry import MemoryRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_800_000_000
PSK = bytes(range(32))
EIGHTHS = range(8)


def key(suite: int, name: str) -> PrivateKey:
    """Return a fixed key pair per role, so that failures repeat."""
    return PrivateKey(suite, name.encode().ljust(SUITES[suite].seed_length, b"."))


@dataclass
class Wire:
    """A fleet with one device `d`, and a request of it in flight."""

    suite: int
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server, self.device = key(self.suite, "server"), key(self.suite, "device")
        self.registry.enrol("d", self.device.public, PSK)

    def request(self, *, ctr: int = 1, psk: bytes = PSK, flags: int = 0, body: bytes = b"b") -> PendingRequest:
        return PendingRequest(
            server=self.server.public,
            device=self.device,
            psk=psk,
            e_seed=os.urandom(SUITES[self.suite].seed_length),
            s1=os.urandom(32),
            ctr=ctr,
            flags=flags,
            body=body,
        )

    def handler(self, _tx: MemoryRegistry, _row: Row, body: bytes) -> tuple[Status, bytes]:
        self.bodies.append(body)
        return Status.OK, b"reply"

    def answer(self, m1: bytes) -> bytes:
        return exchange(
            m1,
            ring=ring([self.server]),
            registry=self.registry,
            handler=self.handler,
            now=NOW,
            random=os.urandom,
        )


@pytest.fixture(params=[1, 2])
def wire(request: pytest.FixtureRequest) -> Wire:
    return Wire(request.param)


def flips(message: bytes, eighth: int) -> Iterator[tuple[int, bytes]]:
    """Return (byte index, message with one bit flipped) for every bit of one eighth of the message."""
    for i in range(eighth, len(message), len(EIGHTHS)):
        for bit in range(8):
            yield i, message[:i] + bytes([message[i] ^ 1 << bit]) + message[i + 1 :]


@pytest.mark.parametrize("eighth", EIGHTHS)
def test_every_bit_flip_of_a_request_is_refused_alike(wire: Wire, eighth: int) -> None:
    m1 = wire.request().m1
    for i, bad in flips(m1, eighth):
        assert wire.answer(bad) == (KEY_UNKNOWN if 2 <= i < 18 else REFUSED), f"byte {i}"
    assert not wire.bodies
    assert wire.registry.devices["d"].ctr == 0
    assert len(wire.answer(m1)) > 2, "the untouched request must pass, or this test proves nothing"


@pytest.mark.parametrize("eighth", EIGHTHS)
def test_every_bit_flip_of_a_reply_is_refused_alike(wire: Wire, eighth: int) -> None:
    request = wire.request()
    m2 = wire.answer(request.m1)
    for i, bad in flips(m2, eighth):
        with pytest.raises((IntegrityError, FormatError)):
            request.open_reply(bad)
        assert bad[i] != m2[i]
    assert request.open_reply(m2) == Reply(Status.OK, NOW, b"reply")


def test_every_truncation_and_extension_is_refused(wire: Wire) -> None:
    request = wire.request()
    m2 = wire.answer(request.m1)
    for n in range(len(request.m1)):
        assert wire.answer(request.m1[:n]) == REFUSED
    for extra in (b"\x00", bytes(256), bytes(MAX_PADDED)):
        assert wire.answer(request.m1 + extra) == REFUSED
        with pytest.raises(EdgesealError):
            request.open_reply(m2 + extra)
    for n in range(len(m2)):
        with pytest.raises(EdgesealError):
            request.open_reply(m2[:n])


@pytest.mark.parametrize("suite", SUITES)
def test_message_lengths_are_those_of_the_specification(suite: int) -> None:
    assert (request_base(suite), reply_base(suite)) == {1: (2490, 2321), 2: (3290, 3217)}[suite]
    wire = Wire(suite)
    request = wire.request(body=bytes(12_286))
    assert len(request.m1) == request_base(suite) + MAX_PADDED
    assert request.open_reply(wire.answer(request.m1)).status is Status.OK
    with pytest.raises(ValueError, match="at most"):
        wire.request(body=bytes(12_287))


def test_replay_is_answered_stale_and_reaches_no_handler(wire: Wire) -> None:
    request = wire.request()
    wire.answer(request.m1)
    reply = request.open_reply(wire.answer(request.m1))
    assert reply.status is Status.STALE
    assert reply.body == (1).to_bytes(8, "big") + request.tag
    assert wire.bodies == [b"b"]


def test_reflected_request_is_no_reply(wire: Wire) -> None:
    request = wire.request()
    with pytest.raises(EdgesealError):
        request.open_reply(request.m1)


def test_reply_to_another_request_is_refused(wire: Wire) -> None:
    first, second = wire.request(ctr=1), wire.request(ctr=2)
    replies = [wire.answer(r.m1) for r in (first, second)]
    with pytest.raises(EdgesealError):
        first.open_reply(replies[1])
    with pytest.raises(EdgesealError):
        second.open_reply(replies[0])


def test_unknown_device_and_wrong_psk_get_the_same_answer(wire: Wire) -> None:
    assert wire.answer(wire.request(psk=bytes(32)).m1) == REFUSED
    wire.device = key(wire.suite, "stranger")
    assert wire.answer(wire.request().m1) == REFUSED


def test_header_of_one_device_with_the_lock_of_another_is_refused(wire: Wire) -> None:
    """A thief of device e's PSK cannot speak for device d."""
    wire.registry.enrol("e", key(wire.suite, "e").public, bytes(32))
    wire.device = key(wire.suite, "device")
    assert wire.answer(wire.request(psk=bytes(32)).m1) == REFUSED


def test_revoked_device_learns_only_that(wire: Wire) -> None:
    wire.registry.devices["d"].revoked = True
    request = wire.request()
    assert request.open_reply(wire.answer(request.m1)) == Reply(Status.REVOKED, NOW, b"")
    assert not wire.bodies
    assert wire.registry.devices["d"].ctr == 0


def test_counter_rollback_and_jump_beyond_the_window_are_stale(wire: Wire) -> None:
    for ctr, status in [(5, Status.OK), (4, Status.STALE), (5 + 2**20, Status.OK), (6 + 2**21, Status.STALE)]:
        request = wire.request(ctr=ctr)
        assert request.open_reply(wire.answer(request.m1)).status is status


def test_unknown_flags_are_denied_after_the_counter_moved(wire: Wire) -> None:
    request = wire.request(flags=0x80)
    assert request.open_reply(wire.answer(request.m1)).status is Status.DENIED
    assert wire.registry.devices["d"].ctr == 1
    assert not wire.bodies


def test_eight_parallel_duplicates_are_accepted_once(wire: Wire) -> None:
    request = wire.request()
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: request.open_reply(wire.answer(request.m1)), range(8)))
    assert sorted(r.status for r in replies) == [Status.OK] + [Status.STALE] * 7
    assert len(wire.bodies) == 1


def test_handler_exception_rolls_the_counter_back(wire: Wire) -> None:
    request = wire.request()

    def fails(_tx: MemoryRegistry, _row: Row, _body: bytes) -> tuple[Status, bytes]:
        raise RuntimeError("database gone")

    with pytest.raises(RuntimeError):
        exchange(
            request.m1, ring=ring([wire.server]), registry=wire.registry, handler=fails, now=NOW, random=os.urandom
        )
    assert wire.registry.devices["d"].ctr == 0
    assert request.open_reply(wire.answer(request.m1)).status is Status.OK


def test_request_with_a_low_order_ephemeral_key_is_refused_without_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suite 1's X25519 half set to the identity: nobody can be sealed to, the answer is error 0."""
    wire = Wire(1)
    honest = Header.to_bytes

    def low_order(header: Header) -> bytes:
        return honest(replace(header, e_public=header.e_public[:-32] + bytes(32)))

    monkeypatch.setattr(Header, "to_bytes", low_order)
    assert wire.answer(wire.request().m1) == REFUSED
    assert wire.bodies == [b"b"], "the refusal must come from sealing, after the request was accepted"


@given(st.binary(max_size=600))
def test_pad_round_trip(message: bytes) -> None:
    padded = pad(message)
    assert len(padded) % 256 == 0
    assert unpad(padded) == message


@given(st.binary(max_size=1024))
def test_unpad_accepts_only_what_pad_makes(padded: bytes) -> None:
    try:
        message = unpad(padded)
    except FormatError:
        return
    assert pad(message) == padded


@given(st.binary(min_size=48, max_size=48), st.binary(max_size=40), st.binary(max_size=300), st.sampled_from([1, 2]))
def test_lock_round_trip_and_binding(prk: bytes, ad: bytes, message: bytes, suite: int) -> None:
    locked = lock(suite, prk, ad, message)
    assert len(locked) == len(message) + 48
    assert unlock(suite, prk, ad, locked) == message
    assert lock(suite, prk, ad, message + b"x")[:32] != locked[:32]
    for bad_prk, bad_ad in ((prk, ad + b"x"), (bytes(b ^ 1 for b in prk), ad)):
        with pytest.raises(IntegrityError):
            unlock(suite, bad_prk, bad_ad, locked)


@given(st.binary(max_size=4000))
def test_random_bytes_never_crash_the_server(m1: bytes) -> None:
    assert Wire(1).answer(m1) in (REFUSED, KEY_UNKNOWN)

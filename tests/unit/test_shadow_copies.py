"""Copies of requests from process to process: whole or not at all, never more than allowed, never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal.errors import FormatError
from edgeseal.runtime import oip, shadow_copies
from edgeseal.runtime.shadow_copies import MAX_OPEN, Copies, Copy, Counts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


def str_of(document: object) -> bytes:
    return json.dumps(document).encode()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at


# The format -----------------------------------------------------------------------------------------------------------


@given(
    st.binary(max_size=3000),
    st.none() | st.integers(0, 3000),
    st.binary(max_size=3000),
    st.none() | st.integers(0, 3000),
    st.floats(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_a_copy_arrives_as_it_was_sent(
    request: bytes, request_json: int | None, answer: bytes, answer_json: int | None, seconds: float
) -> None:
    copy = Copy(request, request_json, answer, answer_json, seconds)
    before = descriptors()
    with pair() as (ours, theirs):
        shadow_copies.send(ours, copy)
        assert shadow_copies.receive(theirs) == copy
        shadow_copies.done(theirs)
        assert ours.recv(10) == b"."
        ours.close()
        assert shadow_copies.receive(theirs) is None
    assert descriptors() == before


GOOD = {"request": 2, "request_json": None, "answer": 1, "answer_json": None, "seconds": 0.5}


@pytest.mark.parametrize(
    ("head", "files"),
    [
        (msgspec.json.encode({**GOOD, "answer": 2}), 1),
        (msgspec.json.encode({**GOOD, "request": -1, "answer": 4}), 1),
        (msgspec.json.encode({**GOOD, "request": 2**62}), 1),
        (msgspec.json.encode({**GOOD, "more": 1}), 1),
        (msgspec.json.encode({**GOOD, "seconds": None}), 1),
        (msgspec.json.encode(GOOD), 0),
        (b"{", 1),
        (b"\xff" * 2000, 1),
    ],
)
def test_a_message_that_is_no_copy(head: bytes, files: int) -> None:
    before = descriptors()
    with pair() as (ours, theirs), os.fdopen(os.memfd_create("t"), "wb") as f:
        f.write(b"abc")
        f.flush()
        socket.send_fds(ours, [msgspec.json.encode(GOOD)], [f.fileno()])  # negative control
        found = shadow_copies.receive(theirs)
        assert found is not None
        assert (found.request, found.answer) == (b"ab", b"c")
        socket.send_fds(ours, [head], [f.fileno()] * files)
        with pytest.raises(FormatError):
            shadow_copies.receive(theirs)
    assert descriptors() == before


TENSORS = [
    ("FP32", np.array([[0.1, -2.5]], np.float32)),
    ("FP64", np.array([1e300, 0.1])),
    ("INT64", np.array([-(2**63), 2**63 - 1], np.int64)),
    ("BOOL", np.array([True, False])),
    ("BYTES", np.array(["", "größe"], dtype=object)),
]


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_is_read_back_as_the_model_gave_it(*, binary: bool) -> None:
    outputs: dict[str, tuple[str, Any]] = {f"y{n}": tensor for n, tensor in enumerate(TENSORS)}
    request = oip.Request(None, {}, list(outputs), default_binary=binary)
    body, head = oip.build_response("m", "1", outputs, request)
    found = oip.parse_response(body, head)
    assert list(found) == list(outputs)
    for name, (datatype, value) in outputs.items():
        assert found[name][0] == datatype
        assert np.array_equal(found[name][1], value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.just("y"), "datatype": st.sampled_from(["FP32", "BYTES", "BOOL"]) | JSON, "shape": JSON},
    optional={"data": JSON, "parameters": st.fixed_dictionaries({"binary_data_size": JSON}) | JSON},
)


@given(
    st.binary(max_size=40) | st.fixed_dictionaries({"outputs": st.lists(TENSOR, max_size=3) | JSON}).map(str_of),
    st.none() | st.integers(-5, 60),
)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_instead_of_an_answer_is_refused_as_that(body: bytes, head: int | None) -> None:
    with contextlib.suppress(FormatError):
        oip.parse_response(body, head)


# The sender -----------------------------------------------------------------------------------------------------------


def copy_of(size: int) -> Copy:
    return Copy(b"x" * size, None, b"", None, 0.0)


def _answered(copies: Copies) -> int:
    return copies.counts.copied + copies.counts.dropped


async def settled(copies: Copies, open_now: int) -> None:
    """Wait for the sender's thread and the words of the other end."""
    async with asyncio.timeout(10):
        while len(copies._open) != open_now or _answered(copies) != copies.counts.seen:  # noqa: ASYNC110 - threads' doing
            await asyncio.sleep(0.005)


async def offer(copies: Copies, size: int = 10) -> None:
    assert copies.wants("m")
    await copies.offer(copy_of(size))


def sender(end: socket.socket, fraction: float = 1.0, counts: Counts | None = None) -> Copies:
    return Copies(end, order="1", model="m", fraction=fraction, counts=counts or Counts())


def test_a_shadow_that_hangs_gets_no_more_than_it_can_hold() -> None:
    async def run() -> None:
        with pair() as (ours, theirs):
            copies = sender(ours)
            for _ in range(3 * MAX_OPEN):
                await offer(copies)
            await settled(copies, MAX_OPEN)
            assert copies.counts == Counts(3 * MAX_OPEN, MAX_OPEN, 2 * MAX_OPEN)
            assert shadow_copies.receive(theirs) == copy_of(10)
            shadow_copies.done(theirs)  # it goes on
            await settled(copies, MAX_OPEN - 1)
            await offer(copies)
            await settled(copies, MAX_OPEN)
            assert copies.counts.copied == MAX_OPEN + 1
            copies.close()

    asyncio.run(run())


def test_a_shadow_that_answers_what_it_never_got_holds_nobody_up() -> None:
    async def run() -> None:
        with pair() as (ours, theirs):
            theirs.settimeout(0)
            copies = sender(ours)
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.send(b".")
            for _ in range(500):  # each is taken for done at once; what the queue does not hold is dropped
                await offer(copies)
                with contextlib.suppress(BlockingIOError):
                    theirs.send(b"." * 100)
            async with asyncio.timeout(10):
                while _answered(copies) != copies.counts.seen:  # noqa: ASYNC110 - threads' doing
                    await asyncio.sleep(0.005)
            assert copies.counts.seen == 500
            assert MAX_OPEN <= copies.counts.copied < 100
            copies.close()

    asyncio.run(run())


def test_many_bytes_are_dropped_however_few_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(shadow_copies, "MAX_BYTES", 1000)
        with pair() as (ours, theirs):
            copies = sender(ours)
            for size in (1001, 600, 401, 400):
                await offer(copies, size)
            await settled(copies, 2)
            assert copies.counts == Counts(4, 2, 2)
            assert [shadow_copies.receive(theirs), shadow_copies.receive(theirs)] == [copy_of(600), copy_of(400)]
            copies.close()

    asyncio.run(run())


def test_a_shadow_that_has_gone_is_sent_nothing() -> None:
    async def run() -> None:
        with pair() as (ours, theirs):
            copies = sender(ours)
            await offer(copies)
            await settled(copies, 1)
            theirs.close()
            async with asyncio.timeout(10):
                while copies.wants("m"):
                    await copies.offer(copy_of(10))
                    await asyncio.sleep(0.005)
            await copies.offer(copy_of(10))  # on its way when the end came
            assert copies.counts.copied == 1

    asyncio.run(run())


def test_no_memory_for_a_copy_is_no_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        def full(*_: object) -> None:
            raise OSError(12, "no memory")

        monkeypatch.setattr(shadow_copies, "send", full)
        with pair() as (ours, _):
            copies = sender(ours)
            await offer(copies)
            await settled(copies, 0)
            assert copies.counts == Counts(1, 0, 1)
            copies.close()

    asyncio.run(run())


def test_only_a_fraction_of_one_model_is_wanted() -> None:
    async def run() -> None:
        with pair() as (ours, _):
            copies = sender(ours, 0.25, Counts(seen=5))
            wanted = sum(copies.wants("m") for _ in range(4000))
            assert 700 < wanted < 1300
            assert not copies.wants("other")
            assert copies.counts.seen == 4005
            copies.close()
            copies.close()
            assert not copies.wants("m")

    asyncio.run(run())

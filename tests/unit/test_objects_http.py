"""Objects over HTTP from a peer that breaks off, lies, drips, redirects or answers with a web page."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.hostile_http import Asked, answer, hostile, ranged

from edgeseal.errors import IntegrityError, TemporaryError, UsageError
from edgeseal.install import _fetch_object
from edgeseal.store import ObjectStore
from edgeseal.transport.objects import HttpObjects

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(1).randbytes(97)
NAME = hashlib.sha256(DATA).digest()
LARGE = random.Random(2).randbytes(300_000)
LARGE_NAME = hashlib.sha256(LARGE).digest()


def fetch(objects: HttpObjects, *, offset: int = 0, data: bytes = DATA) -> bytes:
    name = hashlib.sha256(data).digest()
    return b"".join(objects.fetch("chunks", name, offset=offset, length=len(data)))


def test_whole_object_under_its_name() -> None:
    with hostile(lambda asked: asked.send(ranged(DATA, asked.start))) as server:
        assert fetch(HttpObjects(server.base)) == DATA
    assert server.asked[0].path == f"/chunks/{NAME.hex()[:2]}/{NAME.hex()}"
    assert "range:" not in server.asked[0].head.lower()


def test_base_address_with_a_path() -> None:
    with hostile(lambda asked: asked.send(ranged(DATA, asked.start))) as server:
        assert fetch(HttpObjects(server.base + "/mirror/edge/")) == DATA
    assert server.asked[0].path.startswith("/mirror/edge/chunks/")


def test_one_connection_serves_many_objects() -> None:
    with hostile(lambda asked: asked.send(ranged(LARGE, asked.start))) as server:
        objects = HttpObjects(server.base)
        for _ in range(5):
            assert fetch(objects, data=LARGE) == LARGE
    assert (len(server.asked), server.connections) == (5, 1)


def test_threads_do_not_share_a_connection() -> None:
    meet = threading.Barrier(2, timeout=20)

    def script(asked: Asked) -> None:
        meet.wait()  # both requests are under way at once, or the test breaks here
        asked.send(ranged(LARGE, asked.start))

    got: list[bytes] = []
    with hostile(script) as server:
        objects = HttpObjects(server.base)
        threads = [threading.Thread(target=lambda: got.append(fetch(objects, data=LARGE))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [LARGE, LARGE]
    assert server.connections == 2


def test_idle_connection_that_the_server_closed() -> None:
    closed = threading.Event()

    def script(asked: Asked) -> None:
        asked.send(ranged(DATA, asked.start))
        asked.hang_up()
        closed.set()

    with hostile(script) as server:
        objects = HttpObjects(server.base)
        assert fetch(objects) == DATA
        assert closed.wait(30)
        assert fetch(objects) == DATA


# Broken off ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["reset", "hang_up"])
def test_connection_breaks_at_every_byte(tmp_path: Path, ending: str) -> None:
    """Wherever the first answer breaks off, head or body, the object is whole after the second."""
    whole = ranged(DATA, 0)
    head = len(whole) - len(DATA)
    cut = 0

    def script(asked: Asked) -> None:
        if asked.number:
            asked.send(ranged(DATA, asked.start))
        else:
            asked.send(whole[:cut])
            getattr(asked, ending)()

    for cut in range(len(whole)):
        store = ObjectStore(tmp_path / f"{ending}-{cut}")
        with hostile(script) as server:
            _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
        assert store.read("chunks", NAME, limit=len(DATA)) == DATA
        assert len(server.asked) == 2
        assert server.asked[1].start <= max(0, cut - head)
        if ending == "hang_up":  # nothing that came is asked for again
            assert server.asked[1].start == max(0, cut - head)
        assert [p.name for p in store.directory.rglob("*") if p.is_file()] == [NAME.hex()]


def test_reset_again_and_again_ends_but_keeps_what_came(tmp_path: Path) -> None:
    def script(asked: Asked) -> None:
        asked.send(ranged(DATA, asked.start)[: -len(DATA) + asked.start + 10])
        asked.hang_up()

    store = ObjectStore(tmp_path)
    with hostile(script) as server, pytest.raises(TemporaryError) as caught:
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert "goes on from there" in str(caught.value)
    kept = store.partial("chunks", NAME, length=len(DATA))
    assert kept == DATA[:30]
    with hostile(lambda asked: asked.send(ranged(DATA, asked.start))) as server:
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert [a.start for a in server.asked] == [30]
    assert store.read("chunks", NAME, limit=len(DATA)) == DATA


def test_damaged_part_is_fetched_from_the_start(tmp_path: Path) -> None:
    """A part that a power cut damaged costs one more download, not the object."""
    store = ObjectStore(tmp_path)
    store.keep_partial("chunks", NAME, bytearray(40))
    with hostile(lambda asked: asked.send(ranged(DATA, asked.start))) as server:
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert [a.start for a in server.asked] == [40, 0]
    assert store.read("chunks", NAME, limit=len(DATA)) == DATA


# 206 and 200 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1, 48, 96])
def test_range_is_ignored(offset: int) -> None:
    with hostile(lambda asked: asked.send(answer("200 OK", DATA))) as server:
        assert fetch(HttpObjects(server.base), offset=offset) == DATA[offset:]


@pytest.mark.parametrize("offset", [65_536, 65_537, 299_999])
def test_range_is_ignored_for_more_than_one_piece(offset: int) -> None:
    with hostile(lambda asked: asked.send(answer("200 OK", LARGE))) as server:
        assert fetch(HttpObjects(server.base), offset=offset, data=LARGE) == LARGE[offset:]


def test_shorter_range_than_asked_for_is_continued(tmp_path: Path) -> None:
    def script(asked: Asked) -> None:
        end = min(asked.start + 40, len(DATA))
        span = f"bytes {asked.start}-{end - 1}/{len(DATA)}"
        asked.send(answer("206 Partial Content", DATA[asked.start : end], Content_Range=span))

    store = ObjectStore(tmp_path)
    with hostile(script) as server:
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert [a.start for a in server.asked] == [0, 40, 80]


@pytest.mark.parametrize(
    "span",
    [
        "",
        "bytes 0-96/97",  # begins elsewhere
        "bytes 51-96/97",
        "bytes 50-96/98",  # of another object
        "bytes 50-96/*",
        "bytes */97",
        "lines 50-96/97",
        "bytes 50-96/97, bytes 0-1/97",
        "bytes -50-96/97",
        "bytes \xb2-96/97",  # a digit to some, not to us
        "bytes 50-96/" + "9" * 400,
    ],
)
def test_another_range_than_asked_for(span: str) -> None:
    reply = answer("206 Partial Content", DATA[50:])
    head, _, body = reply.partition(b"\r\n\r\n")
    line = b"\r\nContent-Range: " + span.encode("latin-1") if span else b""
    refused = pytest.raises(TemporaryError, match="another range than bytes 50-96 of 97")
    with hostile(lambda asked: asked.send(head + line + b"\r\n\r\n" + body)) as server, refused:
        fetch(HttpObjects(server.base), offset=50)


def test_lying_range_is_caught_by_the_hash(tmp_path: Path) -> None:
    """The head says what was asked for, the bytes are from elsewhere: fetched from the start, then whole."""

    def script(asked: Asked) -> None:
        if asked.start:
            asked.send(answer("206 Partial Content", bytes(57), Content_Range="bytes 40-96/97"))
        else:
            asked.send(answer("200 OK", DATA))

    store = ObjectStore(tmp_path)
    store.keep_partial("chunks", NAME, bytearray(DATA[:40]))
    with hostile(script) as server:
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert store.read("chunks", NAME, limit=len(DATA)) == DATA


# Wrong answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (answer("404 Not Found"), "HTTP status 404 .*was it published"),
        (answer("500 Oops"), "HTTP status 500"),
        (answer("416 Range Not Satisfiable"), "HTTP status 416"),
        (answer("204 No Content", Content_Length=""), "HTTP status 204"),
        (answer("304 Not Modified", Content_Length=""), "HTTP status 304"),
        (answer("511 Network Authentication Required", b"<html>"), "HTTP status 511"),
        (answer("200 OK", b"<html>log in</html>", Content_Type="text/html; charset=utf-8"), "captive portal"),
        (answer("200 OK", b"<html>log in</html>", Content_Type="TEXT/HTML"), "captive portal"),
        (answer("200 OK", b"<html/>", Content_Type="application/xhtml+xml"), "captive portal"),
        (answer("200 OK", DATA, Content_Encoding="gzip"), "compressed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "could not be fetched"),
        (b"\x15\x03\x01\x00\x02\x02\x16" * 40 + b"\r\n\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "could not be fetched"),
        (b"", "could not be fetched"),
    ],
)
def test_anything_but_the_object(reply: bytes, says: str) -> None:
    def script(asked: Asked) -> None:
        asked.send(reply)
        asked.hang_up()

    with hostile(script) as server, pytest.raises(TemporaryError, match=says):
        fetch(HttpObjects(server.base))


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirect_is_not_followed(status: str) -> None:
    """Neither elsewhere nor in a loop: objects have one address."""
    with hostile(lambda asked: asked.send(ranged(DATA, asked.start))) as elsewhere:

        def script(asked: Asked) -> None:
            asked.send(answer(status, Location=elsewhere.base + asked.path))

        with hostile(script) as server, pytest.raises(TemporaryError, match=f"HTTP status {status[:3]}"):
            fetch(HttpObjects(server.base))
    assert (len(server.asked), len(elsewhere.asked)) == (1, 0)


def test_wrong_bytes_are_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    refused = pytest.raises(IntegrityError, match="changes data")
    with hostile(lambda asked: asked.send(answer("200 OK", bytes(len(DATA))))) as server, refused:
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert len(server.asked) == 1
    assert not [p for p in store.directory.rglob("*") if p.is_file()]


@pytest.mark.parametrize("had", [0, 40])
def test_endless_body_is_left_after_one_piece_too_many(tmp_path: Path, had: int) -> None:
    sent = 0

    def script(asked: Asked) -> None:
        nonlocal sent
        asked.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(OSError):
            while sent < 2**30:
                asked.send(bytes(65_536))
                sent += 65_536
        asked.hang_up()

    store = ObjectStore(tmp_path)
    if had:
        store.keep_partial("chunks", NAME, bytearray(DATA[:had]))
    with hostile(script) as server, pytest.raises(IntegrityError, match="longer than its 97 bytes"):
        _fetch_object("chunks", NAME, len(DATA), HttpObjects(server.base), store)
    assert sent < 2**28
    assert not [p for p in store.directory.rglob("*") if p.is_file()]


# Slow ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "body"])
def test_dripping_server_is_left_at_the_deadline(part: str) -> None:
    """Each byte starts a socket's timeout anew; the watch does not care."""
    whole = ranged(DATA, 0)
    fast = 0 if part == "head" else len(whole) - len(DATA)

    def script(asked: Asked) -> None:
        asked.send(whole[:fast])
        asked.drip(whole[fast:], 0.05)

    with hostile(script) as server, pytest.raises(TemporaryError, match=r"slower than|not within"):
        fetch(HttpObjects(server.base, deadline=0.5, silence=0.4))


def test_same_drip_with_a_longer_deadline_arrives() -> None:
    """The control for the test above: it is the deadline that ends it, nothing else."""
    with hostile(lambda asked: asked.drip(ranged(DATA, 0), 0.005)) as server:
        assert fetch(HttpObjects(server.base, deadline=60, silence=5)) == DATA


def test_rate_below_the_least() -> None:
    slow = pytest.raises(TemporaryError, match="slower than 100000 bytes a second")
    with hostile(lambda asked: asked.drip(ranged(DATA, 0), 0.05)) as server, slow:
        fetch(HttpObjects(server.base, silence=0.3, patience=0.1, min_rate=100_000))


def test_silent_server() -> None:
    over = threading.Event()

    def script(_: Asked) -> None:
        over.wait(20)

    try:
        with hostile(script) as server, pytest.raises(TemporaryError):
            fetch(HttpObjects(server.base, silence=0.2))
    finally:
        over.set()


def test_deadline_is_for_everything_not_for_each_object() -> None:
    with hostile(lambda asked: asked.send(ranged(DATA, asked.start))) as server:
        objects = HttpObjects(server.base, deadline=0.3)
        assert fetch(objects) == DATA
        time.sleep(0.4)
        with pytest.raises(TemporaryError, match="not within 0 s"):
            fetch(objects)
    assert len(server.asked) == 1


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TemporaryError, match="could not be fetched"):
        fetch(HttpObjects(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    "base", ["", "ftp://host", "host/path", "http://", "http://user:secret@host", "http://host/?q=1", "file:///etc"]
)
def test_not_an_address(base: str) -> None:
    with pytest.raises(UsageError, match=r"expected http\(s\)://host"):
        HttpObjects(base)


def test_address_with_a_password_does_not_show_it() -> None:
    with pytest.raises(UsageError) as caught:
        HttpObjects("http://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


# Any bytes -----------------------------------------------------------------------------------------------------------

_heads = st.builds(
    lambda status, fields, body: answer(f"{status} X", body, **fields),
    st.sampled_from([100, 101, 200, 204, 206, 302, 404, 999]),
    st.dictionaries(
        st.sampled_from(["Content_Length", "Content_Range", "Content_Type", "Transfer_Encoding", "Content_Encoding"]),
        st.one_of(
            st.from_regex(r"[ -~]{0,30}", fullmatch=True),
            st.sampled_from(["chunked", "gzip", "0", "97", "-1", "9" * 30, "bytes 40-96/97", "identity"]),
        ),
        max_size=4,
    ),
    st.binary(max_size=200),
)


@settings(deadline=None, max_examples=150)
@given(reply=st.one_of(_heads, st.binary(max_size=400)), offset=st.sampled_from([0, 40]))
def test_any_answer_is_bytes_or_a_temporary_error(reply: bytes, offset: int) -> None:
    """No other exception, and never more than was asked for and one piece."""

    def script(asked: Asked) -> None:
        asked.send(reply)
        asked.hang_up()

    with hostile(script) as server:
        try:
            got = fetch(HttpObjects(server.base, silence=5), offset=offset)
        except TemporaryError:
            return
    assert len(got) <= len(DATA) - offset + 65_536

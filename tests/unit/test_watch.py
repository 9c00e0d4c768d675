"""The deadline that shuts sockets, and metadata over HTTP under it: a slow name, then a dripping peer."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.hostile_http import Asked, answer, hostile
from tuf.api.exceptions import SlowRetrievalError
from urllib3.connection import HTTPSConnection

from edgeseal.trust.fetch_http import HttpFetcher
from edgeseal.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b'{"signed": {}}'


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def connected_late(watch: Watch, listener: socket.socket) -> bytes:
    """Connect after the deadline and read: what comes from a socket that was shut is its end, b""."""
    port = listener.getsockname()[1]
    pool = watch.pool_classes()["http"]("127.0.0.1", port)
    with watch.until(time.monotonic()):
        while not watch.over:
            time.sleep(0.01)
        connection = pool.ConnectionCls("127.0.0.1", port, timeout=0.2)
        connection.connect()
        assert watch._socket is not None
        try:
            return watch._socket.recv(1)
        finally:
            connection.close()
            pool.close()


def test_connection_that_comes_after_the_deadline_is_shut_at_once(listener: socket.socket) -> None:
    """A name that resolves slowly must not leave a connection that nothing watches."""
    assert connected_late(Watch(), listener) == b""


def test_connection_that_nobody_looks_at_stays_open(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the look at a new connection it stays until its own timeout."""
    monkeypatch.setattr(Watch, "_connected", lambda watch, new: setattr(watch, "_socket", new))
    with pytest.raises(TimeoutError):
        connected_late(Watch(), listener)


def test_deadline_of_one_block_is_none_for_the_next(listener: socket.socket) -> None:
    watch = Watch()
    connected_late(watch, listener)
    with watch.until(time.monotonic() + 60):
        assert not watch.over


def test_tls_connections_are_watched_too() -> None:
    assert issubclass(Watch().pool_classes()["https"].ConnectionCls, HTTPSConnection)


def late(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every name take `seconds` to resolve, which no socket timeout limits."""
    resolve = socket.getaddrinfo

    def slow(*args: object, **kwargs: object) -> object:
        time.sleep(seconds)
        return resolve(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)


def test_slow_retrieval_of_metadata_after_a_slow_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(asked: Asked) -> None:
        asked.drip(answer("200 OK", BODY), 0.005)

    with hostile(drip) as server:
        fetcher = HttpFetcher(server.base, silence=0.1)
        late(monkeypatch, 0.4)
        with pytest.raises(SlowRetrievalError, match="too slow or silent"):
            fetcher.download_bytes(fetcher.metadata_url + "timestamp.json", 1000)


def test_metadata_comes_again_after_a_connection_was_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(lambda asked: asked.send(answer("200 OK", BODY))) as server:
        fetcher = HttpFetcher(server.base, silence=0.1)
        with monkeypatch.context() as patch:
            late(patch, 0.4)
            with pytest.raises(SlowRetrievalError):
                fetcher.download_bytes(fetcher.metadata_url + "timestamp.json", 1000)
        assert fetcher.download_bytes(fetcher.metadata_url + "timestamp.json", 1000) == BODY

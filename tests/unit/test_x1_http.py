"""X1 over real HTTP: one honest exchange, and every way a server or a network can answer wrongly."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from edgeseal.errors import TemporaryError, UsageError
from edgeseal.transport.x1 import MAX_MESSAGE, FleetExchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: ClassVar[Callable[[_Handler, bytes], None]]

    def do_POST(self) -> None:
        type(self).answer(self, self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, status: int, body: bytes, kind: str = "application/octet-stream", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fleet(answer: Callable[[_Handler, bytes], None]) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"answer": staticmethod(answer)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@contextmanager
def raw_server(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run `script` on each connection: for what http.server would never say."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    script(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_one_exchange() -> None:
    def answer(handler: _Handler, body: bytes) -> None:
        assert handler.path == "/x1"
        handler.reply(200, body[::-1])

    with fleet(answer) as url:
        exchange = FleetExchange(url + "/")
        assert exchange(b"abc") == b"cba"
        assert (exchange.requests, exchange.received) == (1, 3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda h, _: h.reply(503, b""), "HTTP status 503"),
        (lambda h, _: h.reply(302, b"", Location="http://127.0.0.1:1/x1"), "HTTP status 302"),
        (lambda h, _: h.reply(200, b"<html>", "text/html"), "captive portal"),
        (lambda h, _: h.reply(200, b"x", Content_Encoding="gzip"), "captive portal"),
        (lambda h, _: h.reply(200, bytes(MAX_MESSAGE + 1)), "longer than"),
        (lambda h, _: h.connection.shutdown(socket.SHUT_RDWR), "no exchange with the fleet server"),
    ],
    ids=["busy", "redirect", "captive-portal", "compressed", "too-long", "reset"],
)
def test_wrong_answers_are_temporary(answer: Callable[[_Handler, bytes], None], message: str) -> None:
    with fleet(answer) as url, pytest.raises(TemporaryError) as caught:
        FleetExchange(url)(b"m1")
    assert message in str(caught.value)


def test_answer_cut_off() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\n"
    with raw_server(lambda c: c.sendall(head + b"half")) as url, pytest.raises(TemporaryError):
        FleetExchange(url)(b"m1")


def test_slow_drip_of_a_header_does_not_outlast_the_deadline() -> None:
    """Each byte starts a socket timeout anew; only the deadline of the whole exchange ends it."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        try:
            while not stop.wait(0.05):
                connection.sendall(b"H")
        except OSError:
            return

    with raw_server(drip) as url:
        started = time.monotonic()
        with pytest.raises(TemporaryError, match="did not answer within"):
            FleetExchange(url, deadline=1)(b"m1")
        stop.set()
        assert time.monotonic() - started < 30  # a hang, not a measurement


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TemporaryError, match="keeps being served"):
        FleetExchange(f"http://127.0.0.1:{port}")(b"m1")


@pytest.mark.parametrize("url", ["fleet.example", "ftp://fleet.example", "http://", "http://u:p@fleet.example"])
def test_not_an_address(url: str) -> None:
    with pytest.raises(UsageError):
        FleetExchange(url)

"""Handing over to a server of the Open Inference Protocol: a real one, and ones that lie, stall and never stop."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import runtime_world as world

from edgeseal.errors import UsageError
from edgeseal.runtime import adapter_oip
from edgeseal.runtime.contract import ActivationError, Candidate, make_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgeseal.runtime.contract import Adapter
    from edgeseal.runtime.repository import ModelRepository

pytestmark = pytest.mark.unit


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        yield found


def adapter_for(models: ModelRepository, url: str) -> Adapter:
    return make_adapter("oip-http", repository=models, url=url, probe=False)


def serves(adapter: Adapter, release: int) -> bool:
    health = adapter.health("m", release)
    return health is not None and health.serving


# A real server: edgeseal-serve has the repository extension ----------------------------------------------------------


def test_the_whole_contract_with_a_real_server(models: ModelRepository) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
    pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")
    world.publish(models, "m", 1, 1.0)
    models.switch("m", 1)
    with world.serving(models) as server:
        adapter = adapter_for(models, server.url)
        assert serves(adapter, 1)
        second = world.publish(models, "m", 2, 2.0)
        adapter.prepare(second)
        adapter.activate(second)
        world.until(lambda: serves(adapter, 2), "the server serves release 2")
        assert not serves(adapter, 1)
        adapter.commit(second)
        assert models.releases("m") == [2]
        third = world.publish(models, "m", 3, 3.0)
        adapter.activate(third)
        world.until(lambda: serves(adapter, 3), "the server serves release 3")
        adapter.rollback(third)
        world.until(lambda: serves(adapter, 2), "the server serves release 2 again")
        assert models.releases("m") == [2]


def test_a_real_server_that_goes_on_with_the_release_before(models: ModelRepository) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
    pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")
    world.publish(models, "m", 1, 1.0)
    models.switch("m", 1)
    with world.serving(models) as server:
        adapter = adapter_for(models, server.url)
        (models.stage("m", 2) / "model.onnx").write_bytes(b"garbage")
        candidate = Candidate("m", 2, models.publish("m", 2), 1)
        adapter.activate(candidate)
        world.until(lambda: (health := adapter.health("m", 2)) and health.failed, "the server says why")
        health = adapter.health("m", 2)
        assert health is not None
        assert not health.serving  # ready, and says which release that is
        assert "not an ONNX model" in health.failed
        adapter.rollback(candidate)
        assert serves(adapter, 1)


# A server of the test's own ------------------------------------------------------------------------------------------


@dataclass
class Server:
    """Answers each request by what `script` returns for its path, or lets it have the socket."""

    script: Callable[[str, socket.socket], bytes | None]
    listener: socket.socket
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            peer.settimeout(60)
            head = b""
            while b"\r\n\r\n" not in head or (head.startswith(b"POST") and not head.endswith(b"{}")):
                head += peer.recv(4096)
            method, path, _ = head.decode().split(" ", 2)
            self.asked.append(f"{method} {path}")
            if said := self.script(path, peer):
                peer.sendall(said)


@contextlib.contextmanager
def scripted(script: Callable[[str, socket.socket], bytes | None]) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(script, listener)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def http(status: str = "200 OK", body: object = b"", **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Length": str(len(data)), **{n.replace("_", "-"): v for n, v in headers.items()}}
    lines = "".join(f"{n}: {v}\r\n" for n, v in named.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + data


def like_triton(path: str, versions: object) -> bytes:
    """Answer as Triton does."""
    return http(body={"name": "m", "versions": versions} if path == "/v2/models/m" else b"")


def test_what_is_asked_of_the_server(models: ModelRepository) -> None:
    with scripted(lambda path, _: like_triton(path, ["1"])) as server:
        adapter = adapter_for(models, server.url + "/below/")
        candidate = world.publish(models, "m", 1, 1.0)
        adapter.activate(candidate)
        adapter.rollback(candidate)
    assert server.asked == [f"POST /below/v2/repository/models/m/{what}" for what in ("load", "unload")]


@pytest.mark.parametrize(
    ("versions", "first", "second"),
    [
        (["2"], False, True),
        (["1"], False, False),  # link 2, and it still serves 1
        (["1", "2"], False, True),
        (["v7"], False, True),  # numbers of its own: ready is all that it says
        ([], False, True),
        (None, False, True),
        ({"2": 2}, False, True),
        ([2], False, True),
    ],
)
def test_which_release_serves(models: ModelRepository, versions: object, first: bool, second: bool) -> None:
    for release in (1, 2):
        world.publish(models, "m", release, 1.0)
    models.switch("m", 2)
    with scripted(lambda path, _: like_triton(path, versions)) as server:
        adapter = adapter_for(models, server.url)
        assert (serves(adapter, 1), serves(adapter, 2)) == (first, second)


def test_a_model_that_is_not_ready_does_not_serve(models: ModelRepository) -> None:
    world.publish(models, "m", 1, 1.0)
    models.switch("m", 1)
    with scripted(lambda path, _: http("400 Bad Request" if path.endswith("ready") else "200 OK")) as server:
        health = adapter_for(models, server.url).health("m", 1)
    assert health is not None
    assert not health.serving


INDEX = [
    {"name": "n", "version": "1", "state": "UNAVAILABLE", "reason": "another model"},
    {"name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "another version"},
    "what?",
    {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "no\nsuch\x1b[2J operator"},
]


@pytest.mark.parametrize(
    ("index", "failed"),
    [
        (http(body=INDEX), "no such?[2J operator"),
        (http(body=INDEX[:3]), ""),
        (http(body=[{**INDEX[0], "name": "m", "state": "LOADING"}] if isinstance(INDEX[0], dict) else []), ""),
        (http(body=[{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": {"x": 1}}]), ""),
        (http(body={"error": "x"}), ""),
        (http("404 Not Found", INDEX), ""),
        (http(body=b"[" * 60_000), ""),
    ],
    ids=["failed", "others", "loading", "no text", "object", "none", "nested"],
)
def test_why_a_release_does_not_load(models: ModelRepository, index: bytes, failed: str) -> None:
    world.publish(models, "m", 1, 1.0)
    models.switch("m", 1)
    with scripted(lambda path, _: index if path.endswith("index") else http("400 Bad Request")) as server:
        health = adapter_for(models, server.url).health("m", 1)
    assert health is not None
    assert (health.serving, health.failed) == (False, failed)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (http("400 Bad Request", {"error": "no config.pbtxt\n in m"}), "HTTP 400: no config.pbtxt in m"),
        (http("503 Busy", b"<html>later</html>"), "HTTP 503: <html>later</html>"),
        (http("302 Found", Location="http://127.0.0.1:9/"), "HTTP 302: no reason given"),
        (http("401 Unauthorized", {"error": ["x"]}), "HTTP 401: {"),
        (http("500 X", b"[" * 60_000), "HTTP 500: [["),
        (http("500 X", b"\xff\x00\xfe"), "HTTP 500: "),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer: "),
        (b"HTTP/1.1 200\r\nContent-Length: x\r\n\r\n" + b"a" * 100, ""),
        (b"", "does not answer: "),
    ],
    ids=["error", "page", "redirect", "other json", "nested", "binary", "ssh", "bad length", "nothing"],
)
def test_a_load_that_fails_gives_the_servers_words(models: ModelRepository, said: bytes, reason: str) -> None:
    candidate = world.publish(models, "m", 1, 1.0)
    with scripted(lambda _path, _: said) as server:
        adapter = adapter_for(models, server.url)
        if not reason:  # a length that is none is read to the end of the connection
            adapter.activate(candidate)
            return
        with pytest.raises(ActivationError) as caught:
            adapter.activate(candidate)
    assert reason in caught.value.message
    assert len(caught.value.message) < 500
    assert server.asked == ["POST /v2/repository/models/m/load"]  # a redirect is not followed


def test_a_rollback_that_the_server_refuses_leaves_the_link_right(models: ModelRepository) -> None:
    world.publish(models, "m", 1, 1.0)
    models.switch("m", 1)
    with scripted(lambda _path, _: http("500 X", {"error": "busy"})) as server:
        adapter = adapter_for(models, server.url)
        candidate = world.publish(models, "m", 2, 2.0)
        for step in (adapter.activate, adapter.rollback):
            with pytest.raises(ActivationError, match="HTTP 500: busy"):
                step(candidate)
    assert (models.current("m"), models.releases("m")) == (1, [1])


def endless_body(_path: str, peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            peer.sendall(b"x" * 65_536)


def endless_head(_path: str, peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            peer.sendall(b"X-More: and more\r\n")


def test_a_huge_answer_is_cut(models: ModelRepository) -> None:
    candidate = world.publish(models, "m", 1, 1.0)
    with scripted(endless_body) as server:
        adapter_for(models, server.url).activate(candidate)  # 200 is what counts
    with scripted(endless_head) as server, pytest.raises(ActivationError, match="does not answer"):
        adapter_for(models, server.url).activate(candidate)


def dribble(prefix: bytes) -> Callable[[str, socket.socket], None]:
    def script(_path: str, peer: socket.socket) -> None:
        peer.sendall(prefix)
        with contextlib.suppress(OSError):
            while True:
                peer.sendall(b"x")
                time.sleep(0.1)

    return script


@pytest.mark.parametrize(
    "prefix",
    [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"],
    ids=["status line", "head", "body"],
)
def test_a_server_that_dribbles_is_cut_off(
    models: ModelRepository, monkeypatch: pytest.MonkeyPatch, prefix: bytes
) -> None:
    """Each byte comes in time; all of them never would. The test would run into its own timeout."""
    monkeypatch.setattr(adapter_oip, "LOAD_SECONDS", 1.0)
    monkeypatch.setattr(adapter_oip, "ASK_SECONDS", 1.0)
    candidate = world.publish(models, "m", 1, 1.0)
    with scripted(dribble(prefix)) as server:
        adapter = adapter_for(models, server.url)
        with pytest.raises(ActivationError, match=r"does not answer: (no whole answer within 1 s|timed out)"):
            adapter.activate(candidate)
        assert adapter.health("m", 1) is None


def test_a_server_that_accepts_and_says_nothing(models: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_oip, "LOAD_SECONDS", 1.0)
    candidate = world.publish(models, "m", 1, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        adapter = adapter_for(models, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ActivationError, match=r"does not answer: (no whole answer within 1 s|timed out)"):
            adapter.activate(candidate)


def test_a_server_that_is_not_there(models: ModelRepository) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    adapter = adapter_for(models, url)
    assert adapter.health("m", 1) is None  # nobody to ask: not the release's fault
    with pytest.raises(ActivationError, match="Connection refused") as caught:
        adapter.activate(world.publish(models, "m", 1, 1.0))
    assert caught.value.hint == "is the server of runtime.url running?"


def test_a_plain_server_where_https_was_said(models: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_oip, "ASK_SECONDS", 1.0)
    with scripted(lambda _path, _: http()) as server:
        adapter = adapter_for(models, server.url.replace("http:", "https:"))
        with pytest.raises(ActivationError, match="does not answer"):
            adapter.activate(world.publish(models, "m", 1, 1.0))


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:8000", "ftp://x", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none(models: ModelRepository, url: str | None) -> None:
    with pytest.raises(UsageError, match=r"runtime\.url is not an address"):
        make_adapter("oip-http", repository=models, url=url, probe=False)


def test_no_timer_is_left(models: ModelRepository) -> None:
    def ours() -> list[Any]:
        return [t for t in threading.enumerate() if isinstance(t, threading.Timer)]

    with scripted(lambda path, _: like_triton(path, ["1"])) as server:
        adapter = adapter_for(models, server.url)
        adapter.activate(world.publish(models, "m", 1, 1.0))
        for _ in range(5):
            assert serves(adapter, 1)
    world.until(lambda: not ours(), "no timer is left")

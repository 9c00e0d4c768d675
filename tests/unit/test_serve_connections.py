"""Connections on which nobody asks: none of them, and no number of them, keeps others from being answered."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import resource
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

import uvicorn

from edgeseal.runtime import connection
from edgeseal.runtime.connection import Connection, Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.unit
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """A web server whose answers wait for `go`."""

    def __init__(self, server: uvicorn.Server, port: int, go: asyncio.Event) -> None:
        self.state, self.port, self.go = server.server_state, port, go
        self.streams: list[Stream] = []

    async def open(self, data: bytes = b"") -> Stream:
        stream = await asyncio.open_connection("127.0.0.1", self.port)
        self.streams.append(stream)
        stream[1].write(data)
        return stream


@asynccontextmanager
async def serving(kind: Any = Connection) -> AsyncIterator[Server]:
    go = asyncio.Event()
    go.set()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, port=0, http=kind, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    found = Server(server, server.servers[0].sockets[0].getsockname()[1], go)
    try:
        yield found
    finally:
        for _, writer in found.streams:
            writer.close()
        for _, writer in found.streams:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        server.force_exit = server.should_exit = True
        await task


async def answered(stream: Stream) -> bool:
    """Whether an answer comes; False if the other end closes."""
    with contextlib.suppress(ConnectionError):
        return (await asyncio.wait_for(stream[0].read(1000), 20)).startswith(b"HTTP/1.1 200 ")
    return False


async def closed(stream: Stream) -> bool:
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(stream[0].read(1000), 20) == b""
    return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - uvicorn offers no event for it
            await asyncio.sleep(0.01)


async def counted(server: Server, number: int) -> None:
    """Wait until the server has that many connections."""
    await until(lambda: len(server.state.connections) == number)


def bounds(monkeypatch: pytest.MonkeyPatch, *, most: int = 256, seconds: float = 30.0) -> None:
    monkeypatch.setattr(connection, "MOST_OPEN", most)
    monkeypatch.setattr(connection, "HEAD_SECONDS", seconds)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHo", ASK[:-1]])
def test_a_head_that_does_not_come_is_not_awaited(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    bounds(monkeypatch, seconds=0.1)

    async def run() -> None:
        async with serving() as server:
            assert await closed(await server.open(begun))

    asyncio.run(run())


def test_dripping_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before the first request nor, where uvicorn forgets its own timer, before the second."""
    bounds(monkeypatch, seconds=0.2)

    async def drip(stream: Stream) -> int:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 400:
                stream[1].write(b"X")
                await stream[1].drain()
                await asyncio.sleep(0.01)
                sent += 1
        return sent

    async def run() -> None:
        async with serving() as server:
            fresh, used = await server.open(b"GET / HTTP/1.1\r\nA: "), await server.open(ASK)
            assert await answered(used)
            assert max(await asyncio.gather(drip(fresh), drip(used))) < 400

    asyncio.run(run())


def test_a_slow_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds(monkeypatch, seconds=0.1)

    async def run() -> None:
        async with serving() as server:
            server.go.clear()
            stream = await server.open(ASK)
            await asyncio.sleep(0.4)
            server.go.set()
            assert await answered(stream)

    asyncio.run(run())


def test_of_too_many_the_longest_silent_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds(monkeypatch, most=3)

    async def run() -> None:
        async with serving() as server:
            server.go.clear()
            waiting = await server.open(ASK)
            await counted(server, 1)
            silent = [await server.open()]
            await counted(server, 2)
            silent.append(await server.open())
            await counted(server, 3)
            late = await server.open(ASK)
            assert await closed(silent[0])
            server.go.set()
            assert await answered(waiting)
            assert await answered(late)
            silent[1][1].write(ASK)
            assert await answered(silent[1])

    asyncio.run(run())


def test_where_all_are_being_answered_the_new_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds(monkeypatch, most=2)

    async def run() -> None:
        async with serving() as server:
            server.go.clear()
            busy = [await server.open(ASK), await server.open(ASK)]
            await counted(server, 2)
            await until(lambda: not any(c.silent for c in server.state.connections))  # type: ignore[union-attr]
            assert await closed(await server.open())
            server.go.set()
            assert all([await answered(stream) for stream in busy])

    asyncio.run(run())


def test_many_leaked_connections_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds(monkeypatch, most=20)

    async def run(kind: Any) -> int:
        async with serving(kind) as server:
            for _ in range(60):
                await server.open()
            assert await answered(await server.open(ASK))
            return len(server.state.connections)

    assert asyncio.run(run(Connection)) <= 21
    assert asyncio.run(run("h11")) == 61  # negative control: without it all of them are held


def test_answers_follow_each_other_on_one_connection() -> None:
    async def run() -> None:
        async with serving() as server:
            reader, writer = await server.open(ASK * 5)  # pipelined
            data = b""
            while data.count(b"ok") < 5:
                data += await asyncio.wait_for(reader.read(1000), 20)
            writer.write(ASK)
            assert await answered((reader, writer))

    asyncio.run(run())


def _queued(kind: type[socket.socket], many: int, seconds: float) -> int:
    """Return how many connections an asyncio server's socket takes while its loop is busy; it asks for a queue of 1."""

    async def run() -> int:
        with kind() as listener, contextlib.ExitStack() as clients:
            listener.bind(("127.0.0.1", 0))
            listening = await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=listener, backlog=1)
            through = 0
            with contextlib.suppress(TimeoutError):
                while through < many:
                    clients.enter_context(socket.create_connection(listener.getsockname(), timeout=seconds))
                    through += 1
            listening.close()
            return through

    return asyncio.run(run())


def test_the_queue_stays_as_long_as_it_is() -> None:
    """An event loop takes few connections in a row; those behind them must not have to try again a second later."""
    assert _queued(Listener, 100, 60.0) == 100
    assert _queued(socket.socket, 100, 0.2) < 10  # negative control


def test_more_leaked_connections_than_the_process_may_have_files() -> None:
    """A real edgeseal-serve with the 1,024 files that services get; a thousand and more connections say nothing."""
    pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
    from tests.unit import runtime_world as world

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2048:
        pytest.skip("needs 2,048 open files")
    with world.repository() as models, contextlib.ExitStack() as leaked:
        world.publish(models, "m", 1, 1.0)
        models.switch("m", 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        leaked.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with world.serving(models) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
            host, _, port = server.address.rpartition(":")
            for _ in range(1100):
                leaked.enter_context(socket.create_connection((host, int(port)), timeout=60))
            client = http.client.HTTPConnection(server.address, timeout=60)
            client.request("GET", "/v2/models/m/ready")
            assert client.getresponse().status == 200
            client.close()
            assert "Too many open files" not in server.said()

"""The running service on its own: too many devices, a handler that fails, a client that vanishes, failing timers."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.fleet_world import World

from edgeseal_host.fleet import bodies, service
from edgeseal_host.fleet.service import MAX_WAITING, Service
from edgeseal_host.fleet.x1_http import X1

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Message


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    with World.make(tmp_path).data.open() as fleet:
        found = Service(fleet)
        found.start()
        yield found
        found.stop()


def post(running: Service, messages: list[Message], *, length: bytes | None = None) -> list[Message]:
    """Send messages of one request to the X1 application; returns its answer."""
    sent: list[Message] = []
    waiting = iter(messages)

    async def receive() -> Message:
        try:
            return next(waiting)
        except StopIteration:
            await asyncio.sleep(3600)
            raise

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"content-length", length)]
    asyncio.run(X1(running)({"type": "http", "headers": headers}, receive, send))
    return sent


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_message_in_pieces_is_one_message(running: Service) -> None:
    sent = post(running, [body(b"\x01", more=True), body(b"\x01", more=True), body(b"")])
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == b"\x00\x00"


def test_too_many_waiting_devices_are_told_to_come_back(running: Service) -> None:
    running._waiting = MAX_WAITING
    sent = post(running, [body(b"x")])
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"60") in sent[0]["headers"]
    running._waiting = 0
    assert post(running, [body(b"x")])[0]["status"] == 200


def test_failing_exchange_is_503_and_not_counted_as_waiting(running: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> bytes:
        raise RuntimeError("broken")

    monkeypatch.setattr("edgeseal_host.fleet.exchanges.open_request", failing)
    assert post(running, [body(b"x")])[0]["status"] == 503
    assert running._waiting == 0
    assert b'outcome="failed"} 1.0' in running.metrics.text()


def test_client_that_vanishes_gets_nothing(running: Service) -> None:
    assert post(running, [body(b"x", more=True), {"type": "http.disconnect"}]) == []


def test_silent_client_is_let_go(running: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseal_host.fleet.x1_http.SILENCE_SECONDS", 0.05)
    assert bodies.SILENCE_SECONDS > 1
    assert post(running, [body(b"x", more=True)])[0]["status"] == 408


@pytest.mark.parametrize("length", [b"16385", b"-1", b"1e3", b"", b"9" * 40])
def test_bad_length_is_refused_before_the_body(running: Service, length: bytes) -> None:
    assert post(running, [], length=length)[0]["status"] == 413


def test_timer_goes_on_after_a_failure(running: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    enough = threading.Event()

    def failing() -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()
        raise OSError("disk")

    monkeypatch.setattr(service, "RING_SECONDS", 0.001)
    monkeypatch.setattr(running, "_refresh_if_changed", failing)

    async def run() -> None:
        task = asyncio.create_task(running.tick())
        assert await asyncio.to_thread(enough.wait, 30)
        task.cancel()

    asyncio.run(run())

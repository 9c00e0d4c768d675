"""A copy is made after the reply has left, and only of what was answered: the application without a network."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("starlette", reason="pip install 'edgeseal[serve]'")

from tests.unit.onnx_models import linear

from edgeseal.runtime.app import Server
from edgeseal.runtime.models import Models

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.runtime.shadow_copies import Copy

pytestmark = pytest.mark.unit
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()


class Slow:
    """In the place of shadow_copies.Copies: a copy that never comes to an end."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.sent = sent
        self.offered: list[Copy] = []
        self.sent_before: list[str] = []

    def wants(self, model: str) -> bool:
        return model == "m"

    async def offer(self, copy: Copy) -> None:
        self.offered.append(copy)
        self.sent_before = [message["type"] for message in self.sent]
        await asyncio.Event().wait()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    linear(tmp_path / "model.onnx", bias=1.0)
    return Server(Models.load([("m", 1, tmp_path)], threads=1, failed={}))


async def post(server: Server, path: str, body: bytes) -> tuple[list[dict[str, Any]], Slow]:
    """Ask the application; return what it has sent and the copies, once it has sent all or does no more."""
    sent: list[dict[str, Any]] = []
    slow = Slow(sent)
    server.copies = slow  # type: ignore[assignment]
    complete = asyncio.Event()
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            complete.set()

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}
    task = asyncio.create_task(server.app()(scope, receive, send))
    async with asyncio.timeout(20):
        await complete.wait()
        await asyncio.wait([task], timeout=0.05)
    task.cancel()
    return sent, slow


def test_a_copy_that_never_ends_holds_no_reply_up(server: Server) -> None:
    sent, slow = asyncio.run(post(server, "/v2/models/m/infer", BODY))
    assert slow.sent_before == ["http.response.start", "http.response.body"]
    (copy,) = slow.offered
    assert bytes(copy.request) == BODY
    assert copy.answer == sent[1]["body"]
    assert json.loads(copy.answer)["outputs"][0]["data"] == [2, 3, 4, 5]
    assert copy.seconds > 0
    assert server.counters.total()["m"][1].requests == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/models/m/infer", b"{", 400),
        ("/v2/models/m/infer", b'{"inputs": []}', 400),
        ("/v2/models/other/infer", BODY, 404),
        ("/v2/models/m/versions/9/infer", BODY, 404),
    ],
)
def test_what_was_not_answered_is_not_copied(server: Server, path: str, body: bytes, status: int) -> None:
    sent, slow = asyncio.run(post(server, path, body))
    assert sent[0]["status"] == status
    assert slow.offered == []

"""One request for each model through the whole application, before the first caller comes.

Engines are warmed on their own (warm); this is for the way to them: Python compiles, specialises and allocates on first
use, and the first caller after a switch would wait for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from edgeseal.runtime.warm import zeros

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Scope

    from edgeseal.runtime.models import Loaded

SECONDS: Final = 2.0  # of one model: a slow one profits least, and what zeros never end must not hold up the others
ROUNDS: Final = 4  # CPython 3.11 specialises a function's code after a few calls
_MAX_VALUES: Final = 2**16  # of a request: JSON of more takes longer than what is saved


async def rehearse(app: ASGIApp, models: Iterable[Loaded]) -> None:
    """Ask `app` for an inference of zeros by each model, as often as it answers; whatever comes of it is no verdict."""
    for loaded in models:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                await _rehearse(app, loaded)


async def _rehearse(app: ASGIApp, loaded: Loaded) -> None:
    body = _request(loaded)
    for _ in range(ROUNDS if body else 0):
        if await _ask(app, f"/v2/models/{loaded.model}/infer", body) != HTTPStatus.OK:
            return  # zeros are not what it wants


def _request(loaded: Loaded) -> bytes:
    """Return a request for zeros, empty if it would be large."""
    from edgeseal.runtime import oip

    inputs = zeros(loaded.engine)
    if inputs is None or sum(value.size for value in inputs.values()) > _MAX_VALUES:
        return b""
    tensors = [
        {
            "name": s.name,
            "datatype": s.datatype,
            "shape": list(inputs[s.name].shape),
            "data": oip.to_json(s.datatype, inputs[s.name], s.name),
        }
        for s in loaded.engine.inputs
    ]
    return json.dumps({"inputs": tensors}).encode()


async def _ask(app: ASGIApp, path: str, body: bytes) -> int:
    """Call an application as its server would (ASGI 3.0, HTTP connection scope); return the status."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
    }
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    status = 0

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status

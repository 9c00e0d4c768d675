"""POST /x1 as a bare ASGI application: the one route that every device uses, without the cost of a web framework."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from edgeseal.errors import TemporaryError
from edgeseal_host.fleet.bodies import SILENCE_SECONDS

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from edgeseal_host.fleet.service import Service

MAX_X1: Final = 16_384  # session.md §12
_BASE: Final = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
_OCTETS: Final = (b"content-type", b"application/octet-stream")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
logger = logging.getLogger("edgeseal.fleet")


class _DisconnectedError(Exception):
    """Nobody is there to answer."""


class X1:
    """Reads one message, answers one."""

    def __init__(self, service: Service) -> None:
        """Answer through a running service."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every status but 200 tells the device to try again later."""
        try:
            m1 = await _body(scope, receive)
        except _DisconnectedError:
            return
        except TimeoutError:
            await _answer(send, 408, b"nothing came\n", _TEXT, [(b"connection", b"close")])
            return
        if m1 is None:
            await _answer(send, 413, b"at most 16384 bytes\n", _TEXT, [(b"connection", b"close")])
            return
        try:
            answer = await self._service.exchange(m1)
        except TemporaryError:
            self._service.metrics.exchanges.labels("overload").inc()
            await _answer(send, 503, b"try again later\n", _TEXT, [(b"retry-after", b"60")])
        except Exception:  # session.md §7: whatever it was, it was rolled back; the device tries again
            logger.exception("x1 failed")
            self._service.metrics.exchanges.labels("failed").inc()
            await _answer(send, 503, b"try again later\n", _TEXT, [(b"retry-after", b"30")])
        else:
            await _answer(send, 200, answer, _OCTETS, [])


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the body; None as soon as it is clear that it is too long."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if not length.isdigit() or len(length) > 5 or int(length) > MAX_X1:  # noqa: PLR2004 - digits of 16384
        return None
    body, more = b"", True
    while more:
        async with asyncio.timeout(SILENCE_SECONDS):
            message = await receive()
        if message["type"] != "http.request":
            raise _DisconnectedError
        body += message.get("body", b"")
        if len(body) > MAX_X1:
            return None
        more = message.get("more_body", False)
    return body


async def _answer(
    send: Send, status: int, body: bytes, kind: tuple[bytes, bytes], more: list[tuple[bytes, bytes]]
) -> None:
    headers = [*_BASE, kind, (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

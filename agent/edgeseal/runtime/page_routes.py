"""The routes of the person's page: the page, its style sheet, its icon; nothing else is ever asked for."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from edgeseal.runtime import page, page_style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from edgeseal.runtime.counters import Counters
    from edgeseal.runtime.models import Models

_AS_TYPED: Final = {"X-Content-Type-Options": "nosniff"}
_HEADERS: Final = {
    "Content-Security-Policy": page.CSP,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    **_AS_TYPED,
}


class Source(Protocol):
    """What the page shows; `app.Server` has it."""

    models: Models
    counters: Counters
    status: Mapping[str, Any]

    def notes(self, model: str) -> Mapping[str, Any]:
        """Return what the agent left beside a model."""


def routes(source: Source) -> list[Route]:
    """Return the routes over one worker."""

    async def shown(request: Request) -> Response:
        loaded = source.models.all()
        names = {m.model for m in loaded} | set(source.status)
        notes = await asyncio.to_thread(lambda: {name: source.notes(name) for name in names})
        text = page.render(
            loaded,
            source.counters.total(),
            source.status,
            notes,
            host=socket.gethostname(),
            hold="hold" in request.query_params,
        )
        return HTMLResponse(text, headers=_HEADERS)

    async def style(_request: Request) -> Response:
        return Response(page_style.STYLE, media_type="text/css", headers=_AS_TYPED)

    async def icon(_request: Request) -> Response:
        return Response(page_style.ICON, media_type="image/svg+xml", headers=_AS_TYPED)

    return [Route("/", shown), Route("/style.css", style), Route("/icon.svg", icon)]

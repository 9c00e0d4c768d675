"""The fleet server's HTTP side: routes, limits, authorisation, and errors as JSON.

POST /x1 (x1_http.py) · GET /metadata/… /targets/… /tables/… /chunks/… · /api/v1/… · GET /healthz · GET /metrics
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sqlite3
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeseal.errors import EdgesealError, NotAuthorisedError, UsageError
from edgeseal_host.fleet import bodies, metrics, operations, static
from edgeseal_host.fleet.enrol_http import Enrolment
from edgeseal_host.fleet.logs import event
from edgeseal_host.fleet.wire import (
    KINDS,
    LENGTH_HEADER,
    MAX_JSON,
    MAX_MISSING_JSON,
    MAX_OBJECT,
    MAX_SMALL_JSON,
    OFFSET_HEADER,
    Kind,
    status_of,
)
from edgeseal_host.fleet.x1_http import X1
from edgeseal_host.repository.verify import Publication

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edgeseal_host.fleet.objects import Incoming
    from edgeseal_host.fleet.service import Service

_BUFFER: Final = 2**20  # upload bytes gathered before they go to a worker thread
_NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
logger = logging.getLogger("edgeseal.fleet")


def make_app(service: Service) -> ASGIApp:
    """Return the application; its lifespan starts and stops the service."""
    return _Logged(_starlette(service), service)


def _starlette(service: Service) -> Starlette:
    part = _Routes(service)
    api = "/api/v1"
    routes = [
        Route("/x1", X1(service), methods=["POST"]),  # reached by other methods only: _Logged answers POST
        Route("/healthz", part.healthz, methods=["GET"]),
        Route("/metrics", part.metrics, methods=["GET"]),
        Route(f"{api}/public", part.public, methods=["GET"]),
        Route(f"{api}/missing", part.missing, methods=["POST"]),
        Route(f"{api}/uploads/{{kind}}/{{sha256}}", part.upload_state, methods=["HEAD"]),
        Route(f"{api}/uploads/{{kind}}/{{sha256}}", part.upload, methods=["PATCH"]),
        Route(f"{api}/metadata", part.publish, methods=["POST"]),
        Route(f"{api}/devices", part.devices, methods=["GET"]),
        Route(f"{api}/devices", Enrolment(service, part.authorise).post, methods=["POST"]),
        Route(f"{api}/devices/{{name}}", part.device, methods=["GET"]),
        Route(f"{api}/devices/{{name}}", part.forget, methods=["DELETE"]),
        Route(f"{api}/devices/{{name}}/revoke", part.revoke, methods=["POST"]),
        Route(f"{api}/assignments", part.assignments, methods=["GET"]),
        Route(f"{api}/assignments", part.assign, methods=["POST"]),
        Route(f"{api}/assignments/withdraw", part.withdraw, methods=["POST"]),
        Route(f"{api}/tickets", part.ticket, methods=["POST"]),
        *(
            Route(f"/{top}/{{rest:path}}", part.static, methods=["GET", "HEAD"])
            for top in ("metadata", "targets", *KINDS)
        ),
    ]
    handlers: dict[Any, Any] = {EdgesealError: _edgeseal_error, HTTPException: _http_error, OSError: _os_error}
    handlers |= {sa.exc.DBAPIError: _database_error, sqlite3.Error: _database_error, Exception: _bug}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=_lifespan(service))


def _lifespan(service: Service) -> Any:  # noqa: ANN401 - starlette's own name for it is private
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        service.start()
        ticker = asyncio.create_task(service.tick())
        try:
            yield
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
            service.stop()

    return lifespan


class _Routes:
    """One method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._fleet = service.fleet

    # Devices -------------------------------------------------------------------------------------------------------

    async def static(self, request: Request) -> Response:
        # The path as it came, undecoded: names that are served need no escapes, so "%2e%2e" is simply unknown.
        name = request.scope["raw_path"].decode("latin-1").partition("?")[0].removeprefix("/")
        base = self._fleet.objects.directory
        return await self._service.in_thread(static.respond, base, name, method=request.method, headers=request.headers)

    # Monitoring ----------------------------------------------------------------------------------------------------

    async def healthz(self, _request: Request) -> Response:
        healthy, body = await self._service.in_thread(operations.health, self._fleet, now=self._service.now())
        return JSONResponse(body, 200 if healthy else 503, _NO_STORE)

    async def metrics(self, _request: Request) -> Response:
        return Response(self._service.metrics.text(), 200, _NO_STORE, metrics.CONTENT_TYPE)

    # Publishers ----------------------------------------------------------------------------------------------------

    async def public(self, _request: Request) -> Response:
        public = await self._service.in_thread(self._fleet.data.public)
        return JSONResponse(public.to_json(), headers=_NO_STORE)

    async def missing(self, request: Request) -> Response:
        await self.authorise(request, "publish")
        body = bodies.parse(await bodies.read(request, MAX_MISSING_JSON), bodies.Missing)
        return _json(await self._service.in_thread(self._absent, body))

    async def upload_state(self, request: Request) -> Response:
        await self.authorise(request, "publish")
        kind, sha256 = _object_named(request)
        stored = self._fleet.objects.length(kind, sha256)
        offset = self._fleet.objects.partial(kind, sha256) if stored is None else stored
        headers = {**_NO_STORE, OFFSET_HEADER: str(offset)}
        if stored is not None:
            headers[LENGTH_HEADER] = str(stored)
        return Response(status_code=200, headers=headers)

    async def upload(self, request: Request) -> Response:
        await self.authorise(request, "publish")
        kind, sha256 = _object_named(request)
        offset, length = _number(request, OFFSET_HEADER), _number(request, LENGTH_HEADER)
        if self._fleet.objects.length(kind, sha256) is not None:
            async for _ in request.stream():
                pass  # answer after the body: a client that is still writing would see a reset, not the answer
            return _json({"stored": True})
        receive = self._fleet.objects.receive
        incoming = await self._service.in_thread(receive, kind, sha256, offset=offset, length=length)
        with incoming:
            await self._receive(request, incoming)
            stored = await self._service.in_thread(incoming.finish)
        return _json({"stored": stored}, 201 if stored else 202)

    async def publish(self, request: Request) -> Response:
        token = await self.authorise(request, "publish")
        data = await bodies.read(request, MAX_JSON)
        result = await self._service.in_thread(self._publish, data)
        self._service.metrics.publications.inc()
        event(logger, "published", token=token, changed=result["changed"], versions=result["versions"])
        return _json(result)

    # Operators -----------------------------------------------------------------------------------------------------

    async def devices(self, request: Request) -> Response:
        await self.authorise(request, "operate")
        return _json({"devices": await self._service.in_thread(operations.devices, self._fleet)})

    async def device(self, request: Request) -> Response:
        await self.authorise(request, "operate")
        name, now = request.path_params["name"], self._service.now()
        return _json(await self._service.in_thread(operations.device_details, self._fleet, name, now=now))

    async def revoke(self, request: Request) -> Response:
        token = await self.authorise(request, "operate")
        body = bodies.parse(await bodies.read(request, MAX_SMALL_JSON), bodies.Revoke)
        name = request.path_params["name"]
        await self._service.in_thread(self._fleet.registry.revoke, name, body.reason)
        event(logger, "device revoked", token=token, device=name)
        return _json({"device": name, "revoked": True, "reason": body.reason})

    async def forget(self, request: Request) -> Response:
        token = await self.authorise(request, "admin")
        name = request.path_params["name"]
        await self._service.in_thread(self._fleet.registry.forget, name)
        event(logger, "device forgotten", token=token, device=name)
        return _json({"device": name, "forgotten": True})

    async def assignments(self, request: Request) -> Response:
        await self.authorise(request, "operate")
        return _json({"assignments": await self._service.in_thread(operations.assignments, self._fleet)})

    async def assign(self, request: Request) -> Response:
        token = await self.authorise(request, "operate")
        body = bodies.parse(await bodies.read(request, MAX_SMALL_JSON), bodies.Assign)
        result = await self._service.in_thread(operations.assign, self._fleet, body, now=self._service.now())
        event(logger, "assigned", token=token, **result)
        return _json(result)

    async def withdraw(self, request: Request) -> Response:
        token = await self.authorise(request, "operate")
        body = bodies.parse(await bodies.read(request, MAX_SMALL_JSON), bodies.Withdraw)
        result = await self._service.in_thread(operations.withdraw, self._fleet, body)
        event(logger, "assignment withdrawn", token=token, **result)
        return _json(result)

    async def ticket(self, request: Request) -> Response:
        token = await self.authorise(request, "operate")
        body = bodies.parse(await bodies.read(request, MAX_SMALL_JSON), bodies.Ticket)
        ticket = await self._service.in_thread(operations.ticket, self._fleet, body, now=self._service.now())
        event(logger, "ticket made", token=token, device=body.device, model=body.model, release=body.release)
        return _json({"ticket": base64.b64encode(ticket).decode()})

    # Shared --------------------------------------------------------------------------------------------------------

    async def authorise(self, request: Request, scope: str) -> str:
        """Return the id of a token that is good for `scope`."""
        kind, _, presented = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not presented:
            raise NotAuthorisedError("this request needs a token", hint="give --token FILE or set EDGESEAL_TOKEN_FILE")
        return await self._service.in_thread(self._fleet.tokens.authorise, presented.strip(), scope)

    def _absent(self, body: bodies.Missing) -> dict[str, Any]:
        """Which objects are not here, and where uploads of them stopped."""
        objects, kind = self._fleet.objects, body.kind
        absent = [name for name in body.names if objects.length(kind, bytes.fromhex(name)) is None]
        offsets = {name: objects.partial(kind, bytes.fromhex(name)) for name in absent}
        return {"missing": absent, "partial": {name: offset for name, offset in offsets.items() if offset}}

    async def _receive(self, request: Request, incoming: Incoming) -> None:
        """Write the body as it comes; what arrived before a connection breaks stays."""
        buffer = bytearray()
        try:
            async for piece in bodies.pieces(request):
                buffer += piece
                self._service.metrics.uploaded.inc(len(piece))
                if len(buffer) >= _BUFFER:
                    await self._service.in_thread(incoming.write, bytes(buffer))
                    buffer.clear()
        except OSError:
            async for _ in bodies.pieces(request):
                pass  # answer after the body: a client that is still writing would see a reset, not the answer
            raise
        finally:
            await self._service.in_thread(incoming.write, bytes(buffer))

    def _publish(self, data: bytes) -> dict[str, Any]:
        body = bodies.parse_object(data)
        return self._fleet.publisher.publish(Publication.from_json(body), bodies.envelopes_of(body))


def _object_named(request: Request) -> tuple[Kind, bytes]:
    kind, text = request.path_params["kind"], request.path_params["sha256"]
    if kind not in MAX_OBJECT or len(text) != 64 or text.strip("0123456789abcdef"):  # noqa: PLR2004 - SHA-256 in hex
        raise UsageError("uploads are named chunks/<sha256> or tables/<sha256>, in lower-case hex")
    return kind, bytes.fromhex(text)


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:  # noqa: PLR2004 - below 2**63
        raise UsageError(f"header {header} must be a number of bytes")
    return int(text)


def _json(body: object, status: int = 200) -> Response:
    return JSONResponse(body, status, _NO_STORE)


async def _edgeseal_error(request: Request, error: EdgesealError) -> Response:
    status = status_of(error)
    if isinstance(error, bodies.TooLargeError):
        status = 413
    elif isinstance(error, NotAuthorisedError) and "authorization" not in request.headers:
        status = 401
    headers = {**_NO_STORE, "WWW-Authenticate": "Bearer"} if status == 401 else _NO_STORE  # noqa: PLR2004
    body = error.as_dict()
    if isinstance(error, bodies.TooLargeError):
        body["error"] = "UsageError"
    event(logger, "refused", path=request.url.path, status=status, error=body["error"])
    return JSONResponse(body, status, headers)


async def _http_error(_request: Request, error: HTTPException) -> Response:
    body = UsageError(f"HTTP {error.status_code}: {error.detail}").as_dict()
    return JSONResponse(body, error.status_code, {**_NO_STORE, **(error.headers or {})})


async def _os_error(request: Request, error: OSError) -> Response:
    from edgeseal_host.fleet.operations import disk_error

    logger.error("disk", exc_info=error)
    return await _edgeseal_error(request, disk_error(error))


async def _database_error(request: Request, error: Exception) -> Response:
    logger.error("database", exc_info=error)
    return await _edgeseal_error(request, operations.database_error(error))


async def _bug(_request: Request, _error: Exception) -> Response:
    body = EdgesealError("the fleet server failed", hint="its log says where").as_dict()
    return JSONResponse(body, 500, _NO_STORE)


class _Logged:
    """Logs each API request and counts every request; the outermost layer, so that nothing goes unseen."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._x1 = app, service, X1(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            app = self._x1 if scope["path"] == "/x1" and scope["method"] == "POST" else self._app
            await app(scope, receive, watched)
        except ClientDisconnect:
            status = 499
        except Exception:  # a bug; starlette has sent the 500 and raises it for us to log
            logger.exception("request failed")
        finally:
            self._count(scope, status, time.perf_counter() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        part = scope["path"].split("/", 2)[1]
        known = (
            part if part in {"x1", "api", "metadata", "targets", "tables", "chunks", "healthz", "metrics"} else "other"
        )
        self._service.metrics.requests.labels(known, f"{status // 100}xx").inc()
        if known in {"api", "other"}:
            event(
                logger,
                "request",
                method=scope["method"],
                path=scope["path"][:256],
                status=status,
                ms=round(seconds * 1000, 1),
            )

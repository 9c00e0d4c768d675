"""The Open Inference Protocol v2 over what one worker has loaded: routes, bounds, errors.

Bodies, requests waiting and the time of each are bounded, so that one client cannot take the device from the others.
Once it drains, every answer asks the client to close its connection: the next one meets the worker that took over.

Not here: the process around it (worker) and which releases it serves (supervisor).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from edgeseal import __version__
from edgeseal.runtime.bounds import Bounds
from edgeseal.runtime.counters import Counters
from edgeseal.runtime.engine import Stop
from edgeseal.runtime.shadow_copies import Copy
from edgeseal.runtime.shadow_text import metrics as shadow_metrics

try:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from edgeseal.runtime import page_routes
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'serve': pip install 'edgeseal[serve,onnx]'") from e

try:
    from edgeseal.runtime.answer import Answer, RefusedRequestError, answer
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'onnx': pip install 'edgeseal[serve,onnx]'") from e

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edgeseal.runtime.models import Loaded, Models
    from edgeseal.runtime.shadow_copies import Copies

_EXTENSIONS: Final = ["binary_tensor_data", "model_repository"]
_HEADER: Final = "inference-header-content-length"
_METRICS: Final = "text/plain; version=0.0.4"
_MAX_DOCUMENT: Final = 65_536  # of requests that ask for no inference


class Server:
    """The routes over `Models`."""

    def __init__(
        self,
        models: Models,
        bounds: Bounds | None = None,
        *,
        notes: Callable[[str], Mapping[str, Any]] = lambda _: {},
    ) -> None:
        """Let requests beyond `bounds.concurrency` wait for their turn; send away those beyond `bounds.waiting`.

        `notes` returns what the agent left beside a model.
        """
        self.models = models
        self.counters = Counters()
        self.copies: Copies | None = None  # of answered requests, for a release in the shadow
        self.draining = False
        self.status: Mapping[str, Any] = {}  # the supervisor's, by model: what one worker cannot know
        self.notes = notes
        self._bounds = bounds or Bounds()
        self._workers = ThreadPoolExecutor(self._bounds.concurrency, thread_name_prefix="infer")
        self._inside = 0  # requests being read, waiting or running
        self._held = 0  # bytes of their bodies
        self._running: set[Stop] = set()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/v2", self.metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
            *page_routes.routes(self),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(prefix, self.model_metadata),
                Route(f"{prefix}/ready", self.model_ready),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=[Middleware(_Closing, self)],
            exception_handlers={HTTPException: _not_here, RefusedRequestError: _refused},
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for stop in list(self._running):  # uvicorn has waited for them as long as it may
                stop.now()
            self._workers.shutdown(wait=False, cancel_futures=True)

    # About the server and its models -------------------------------------------------------------------------------

    async def metadata(self, _request: Request) -> Response:
        """Server metadata."""
        return JSONResponse({"name": "edgeseal-serve", "version": __version__, "extensions": _EXTENSIONS})

    async def index(self, request: Request) -> Response:
        """Model repository extension: what is here, what is coming and what does not load; `ready`: the first only."""
        only_ready = (await self._document(request)).get("ready") is True
        rows = {(m.model, str(m.release)): {"state": "READY"} for m in self.models.all()}
        if not only_ready:
            rows = self._not_ready() | rows
        named = [{"name": model, "version": version, **row} for (model, version), row in sorted(rows.items())]
        return JSONResponse(named)

    def _not_ready(self) -> dict[tuple[str, str], dict[str, str]]:
        """Return state and reason by model and version; "" where the supervisor has not said yet which it is."""
        rows = {}
        for model, reason in self.models.failed.items():
            if model not in self.models.loaded and not self.status.get(model, {}).get("failed"):
                rows[model, ""] = {"state": "UNAVAILABLE", "reason": reason}
        for model, about in self.status.items():
            if failed := about.get("failed"):
                rows[model, str(failed["release"])] = {"state": "UNAVAILABLE", "reason": failed["reason"]}
            if candidate := about.get("candidate"):
                rows[model, str(candidate)] = {"state": "LOADING"}
        return rows

    async def load(self, request: Request) -> Response:
        """Model repository extension: true already for what serves; nothing else can be loaded by a client."""
        if (await self._document(request)).get("parameters"):
            return _error(400, "a model serves as it was published; files or another configuration are not taken here")
        try:
            self._model(request)
        except LookupError as e:
            return _error(400, f"{e}; edgeseal-agent decides which releases serve")
        return Response(status_code=200)

    async def unload(self, _request: Request) -> Response:
        """Model repository extension: never by a client."""
        return _error(400, "edgeseal-agent decides which releases serve: edgeseal-agent rollback, or assign another")

    async def _document(self, request: Request) -> dict[str, Any]:
        """Return a small JSON object, {} without a body. Raises RefusedRequestError."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._bounds.seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > _MAX_DOCUMENT:
                        raise RefusedRequestError(413, f"the request is larger than {_MAX_DOCUMENT} bytes")
        except TimeoutError:
            raise RefusedRequestError(408, f"the request did not arrive within {self._bounds.seconds:g} s") from None
        try:
            found = json.loads(body or b"{}")
        except (ValueError, RecursionError) as e:
            raise RefusedRequestError(400, f"the request is not JSON: {e}") from None
        if not isinstance(found, dict):
            raise RefusedRequestError(400, "the request must be a JSON object")
        return found

    async def live(self, _request: Request) -> Response:
        """Answer that the process answers."""
        return Response(status_code=200)

    async def ready(self, _request: Request) -> Response:
        """Answer whether every model in the repository is served."""
        return Response(status_code=200 if self.models.ready() else 503)

    async def metrics(self, _request: Request) -> Response:
        """Answer counters in Prometheus' text format."""
        text = self.counters.text((m.model, m.release) for m in self.models.all())
        return PlainTextResponse(text + shadow_metrics(self.status), media_type=_METRICS)

    async def model_ready(self, request: Request) -> Response:
        """Answer whether one model is served."""
        try:
            self._model(request)
        except LookupError as e:
            return _error(404, str(e))
        return Response(status_code=200)

    async def model_metadata(self, request: Request) -> Response:
        """Name, versions, inputs and outputs of one model."""
        try:
            loaded = self._model(request)
        except LookupError as e:
            return _error(404, str(e))
        sides = {
            side: [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in signatures]
            for side, signatures in (("inputs", loaded.engine.inputs), ("outputs", loaded.engine.outputs))
        }
        about = {"name": loaded.model, "versions": [str(loaded.release)], "platform": loaded.engine.platform}
        return JSONResponse({**about, **sides})

    def _model(self, request: Request) -> Loaded:
        return self.models.get(request.path_params["model"], request.path_params.get("version"))

    # Inference -----------------------------------------------------------------------------------------------------

    async def infer(self, request: Request) -> Response:
        """Run one inference."""
        started = time.monotonic()
        try:
            loaded = self._model(request)
        except LookupError as e:
            return _error(404, str(e))
        nan = False
        try:
            response, nan = await self._infer(request, loaded, started + self._bounds.seconds)
        except RefusedRequestError as e:
            response, nan = _error(e.status, str(e)), e.nan
        except ClientDisconnect:
            response = _error(400, "the client went away")  # nobody reads it; the counters do
        spent = time.monotonic() - started
        self.counters.add(loaded.model, loaded.release, response.status_code, spent, nan=nan)
        return response

    async def _infer(self, request: Request, loaded: Loaded, deadline: float) -> tuple[Response, bool]:
        """Return the response, and whether the model answered values that are not numbers."""
        if self._inside >= self._bounds.concurrency + self._bounds.waiting:
            raise RefusedRequestError(503, f"{self._inside} requests are being served or waiting; try again later")
        self._inside += 1
        body = bytearray()
        try:
            header_length = _header_length(request)
            self._check_declared(request)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._read(request, body)
            except TimeoutError:
                raise RefusedRequestError(
                    408, f"the request did not arrive within {self._bounds.seconds:g} s"
                ) from None
            found = await self._turn(loaded, body, header_length, deadline)
        finally:
            self._inside -= 1
            self._held -= len(body)
        copied = self._copy(loaded, Copy(body, header_length, found.data, found.head, found.seconds))
        if found.head is None:
            return Response(found.data, media_type="application/json", background=copied), found.nan
        headers = {_HEADER: str(found.head)}
        response = Response(found.data, media_type="application/octet-stream", headers=headers, background=copied)
        return response, found.nan

    def _copy(self, loaded: Loaded, copy: Copy) -> BackgroundTask | None:
        """Return what is to be done with a copy once the reply has left, if anybody wants one."""
        if self.copies is None or not self.copies.wants(loaded.model):
            return None
        return BackgroundTask(self.copies.offer, copy)

    def _check_declared(self, request: Request) -> None:
        """Send away before reading what is too large by its own word; who asked with Expect then sends nothing."""
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._bounds.body:
            raise RefusedRequestError(413, f"the request is larger than {self._bounds.body} bytes")

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read into `body`, never more than the limits: Content-Length is only what the client says, if it does."""
        async for piece in request.stream():
            body += piece
            self._held += len(piece)
            if len(body) > self._bounds.body:
                raise RefusedRequestError(413, f"the request is larger than {self._bounds.body} bytes")
            if self._held > self._bounds.bodies:
                raise RefusedRequestError(503, "all requests together are too large at the moment; try again later")

    async def _turn(self, loaded: Loaded, body: bytearray, header_length: int | None, deadline: float) -> Answer:
        """Answer in a worker thread, so that a large JSON body does not stop the others either."""
        stop = Stop()
        self._running.add(stop)
        work = self._workers.submit(answer, loaded, bytes(body), header_length, stop)
        work.add_done_callback(functools.partial(_let_go, self._running, stop))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            raise RefusedRequestError(504, f"no answer within {self._bounds.seconds:g} s") from None
        finally:
            stop.now()  # after a timeout, or if the server ends; of no effect on what has ended


class _Closing:
    """While the worker drains, tells each client that asks to close its connection after the answer."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._server.draining:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, closing if scope["type"] == "http" else send)


def _let_go(running: set[Stop], stop: Stop, _work: Future[Any]) -> None:
    running.discard(stop)


def _header_length(request: Request) -> int | None:
    """Length of the JSON part. Raises RefusedRequestError, also for a body that is compressed."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedRequestError(
            415, "compressed requests are not taken: on this device they cost more than they save"
        )
    text = request.headers.get(_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:  # noqa: PLR2004 - far beyond any body
        raise RefusedRequestError(400, "Inference-Header-Content-Length must be a number")
    return int(text)


def _error(status: int, message: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else None  # noqa: PLR2004 - HTTP
    return JSONResponse({"error": message}, status_code=status, headers=headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedRequestError)  # noqa: S101 - registered for it alone
    return _error(error.status, str(error))


async def _not_here(request: Request, error: Exception) -> Response:
    """Answer what no route takes as the protocol wants errors: an object with `error`."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    if error.status_code == 405:  # noqa: PLR2004 - HTTP
        message = f"{request.method} is not for {request.url.path[:80]}"
    else:
        message = f"there is no {request.url.path[:80]}; /v2 says what this server offers"
    return JSONResponse({"error": message}, status_code=error.status_code, headers=error.headers)

"""The Open Inference Protocol v2 over what one worker has loaded: routes, bounds, errors.

Bodies, requests waiting and the time of each are bounded, so that one client cannot take the device from the others.
Once it drains, every answer asks the client to close its connection: the next one meets the worker that took over.

Not here: the process around it (worker) and which releases it serves (supervisor).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal import __version__
from edgeseal.errors import FormatError
from edgeseal.runtime.bounds import Bounds
from edgeseal.runtime.counters import Counters
from edgeseal.runtime.engine import Stop
from edgeseal.runtime.shadow_copies import Copy
from edgeseal.runtime.shadow_text import metrics as shadow_metrics

try:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from edgeseal.runtime import page_routes
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'serve': pip install 'edgeseal[serve,onnx]'") from e

try:
    import numpy as np

    from edgeseal.runtime import oip
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'onnx': pip install 'edgeseal[serve,onnx]'") from e

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edgeseal.runtime.engine import Signature
    from edgeseal.runtime.models import Loaded, Models
    from edgeseal.runtime.shadow_copies import Copies

_EXTENSIONS: Final = ["binary_tensor_data", "model_repository"]
_HEADER: Final = "inference-header-content-length"


class _RefusedError(Exception):
    """A request that is not answered with a result; carries the status."""

    def __init__(self, status: int, message: str, *, nan: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.nan = nan


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
        return Starlette(routes=routes, lifespan=self._lifespan, middleware=[Middleware(_Closing, self)])

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

    async def index(self, _request: Request) -> Response:
        """Model repository extension: what is here and whether it is ready."""
        ready = [{"name": m.model, "version": str(m.release), "state": "READY"} for m in self.models.all()]
        failed = [
            {"name": model, "state": "UNAVAILABLE", "reason": reason}
            for model, reason in self.models.failed.items()
            if model not in self.models.loaded
        ]
        return JSONResponse([*ready, *failed])

    async def load(self, request: Request) -> Response:
        """Model repository extension: true already for what serves; nothing else can be loaded by a client."""
        try:
            self._model(request)
        except LookupError as e:
            return _error(400, f"{e}; edgeseal-agent decides which releases serve")
        return Response(status_code=200)

    async def unload(self, _request: Request) -> Response:
        """Model repository extension: never by a client."""
        return _error(400, "edgeseal-agent decides which releases serve: edgeseal-agent rollback, or assign another")

    async def live(self, _request: Request) -> Response:
        """Answer that the process answers."""
        return Response(status_code=200)

    async def ready(self, _request: Request) -> Response:
        """Answer whether every model in the repository is served."""
        return Response(status_code=200 if self.models.ready() else 503)

    async def metrics(self, _request: Request) -> Response:
        """Answer counters in Prometheus' text format."""
        text = self.counters.text((m.model, m.release) for m in self.models.all())
        return PlainTextResponse(text + shadow_metrics(self.status))

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
        except _RefusedError as e:
            response, nan = _error(e.status, str(e)), e.nan
        except ClientDisconnect:
            response = _error(400, "the client went away")  # nobody reads it; the counters do
        spent = time.monotonic() - started
        self.counters.add(loaded.model, loaded.release, response.status_code, spent, nan=nan)
        return response

    async def _infer(self, request: Request, loaded: Loaded, deadline: float) -> tuple[Response, bool]:
        """Return the response, and whether the model answered values that are not numbers."""
        if self._inside >= self._bounds.concurrency + self._bounds.waiting:
            raise _RefusedError(503, f"{self._inside} requests are being served or waiting; try again later")
        self._inside += 1
        body = bytearray()
        try:
            header_length = _header_length(request)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._read(request, body)
            except TimeoutError:
                raise _RefusedError(408, f"the request did not arrive within {self._bounds.seconds:g} s") from None
            answer = await self._turn(loaded, body, header_length, deadline)
        finally:
            self._inside -= 1
            self._held -= len(body)
        copied = self._copy(loaded, Copy(body, header_length, answer.data, answer.head, answer.seconds))
        if answer.head is None:
            return Response(answer.data, media_type="application/json", background=copied), answer.nan
        headers = {_HEADER: str(answer.head)}
        response = Response(answer.data, media_type="application/octet-stream", headers=headers, background=copied)
        return response, answer.nan

    def _copy(self, loaded: Loaded, copy: Copy) -> BackgroundTask | None:
        """Return what is to be done with a copy once the reply has left, if anybody wants one."""
        if self.copies is None or not self.copies.wants(loaded.model):
            return None
        return BackgroundTask(self.copies.offer, copy)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read into `body`, never more than the limits: Content-Length is only what the client says."""
        async for piece in request.stream():
            body += piece
            self._held += len(piece)
            if len(body) > self._bounds.body:
                raise _RefusedError(413, f"the request is larger than {self._bounds.body} bytes")
            if self._held > self._bounds.bodies:
                raise _RefusedError(503, "all requests together are too large at the moment; try again later")

    async def _turn(self, loaded: Loaded, body: bytearray, header_length: int | None, deadline: float) -> _Answer:
        """Answer in a worker thread, so that a large JSON body does not stop the others either."""
        stop = Stop()
        self._running.add(stop)
        work = self._workers.submit(_answer, loaded, bytes(body), header_length, stop)
        work.add_done_callback(functools.partial(_let_go, self._running, stop))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            raise _RefusedError(504, f"no answer within {self._bounds.seconds:g} s") from None
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


@dataclass(frozen=True, slots=True)
class _Answer:
    """Body and JSON length of a response; `nan`: the model's values were not all numbers; `seconds`: it took to run."""

    data: bytes
    head: int | None
    nan: bool
    seconds: float


def _answer(loaded: Loaded, body: bytes, header_length: int | None, stop: Stop) -> _Answer:
    """Return the answer to one body. Raises _RefusedError, TimeoutError."""
    nan = False
    try:
        request = oip.parse_request(body, header_length)
        started = time.monotonic()
        outputs = _run(loaded, request, stop)
        seconds = time.monotonic() - started
        nan = any(_has_nan(value) for _, value in outputs.values())
        data, head = oip.build_response(loaded.model, str(loaded.release), outputs, request)
    except FormatError as e:
        raise _RefusedError(400, str(e), nan=nan) from None
    except MemoryError:
        raise _RefusedError(503, "not enough memory for this request") from None
    return _Answer(data, head, nan, seconds)


def _has_nan(value: Any) -> bool:  # noqa: ANN401 - an array
    return value.dtype.kind == "f" and bool(np.isnan(value).any())


def _run(loaded: Loaded, request: oip.Request, stop: Stop) -> Mapping[str, tuple[str, Any]]:
    """Check the tensors against the model's signature, run it, and say what each output is."""
    declared = {s.name: s for s in loaded.engine.inputs}
    for name, (datatype, value) in request.inputs.items():
        _check_input(name, datatype, value.shape, declared)
    if absent := [n for n in declared if n not in request.inputs]:
        raise FormatError(f"input {absent[0]!r} is missing; the model needs {', '.join(declared)}")
    known = {s.name: s.datatype for s in loaded.engine.outputs}
    if unknown := [n for n in request.outputs if n not in known]:
        raise FormatError(f"there is no output {unknown[0]!r}; the model has {', '.join(known)}")
    wanted = request.outputs or list(known)
    found = _infer({n: v for n, (_, v) in request.inputs.items()}, wanted, loaded, stop)
    return {name: (known[name], found[name]) for name in wanted}


def _infer(inputs: Mapping[str, Any], wanted: Sequence[str], loaded: Loaded, stop: Stop) -> Mapping[str, Any]:
    """Run the model on inputs that are all it declares.

    What the engine refuses of them is then the model's fault, not the caller's: 500, which the watch after a switch
    counts. Raises _RefusedError, MemoryError, TimeoutError.
    """
    try:
        return loaded.engine.infer(inputs, wanted, stop)
    except FormatError as e:
        raise _RefusedError(500, f"{loaded.model} release {loaded.release}: {e}") from None


def _check_input(name: str, datatype: str, shape: Sequence[int], declared: Mapping[str, Signature]) -> None:
    if name not in declared:
        raise FormatError(f"there is no input {name!r}; the model has {', '.join(declared)}")
    wanted = declared[name]
    if datatype != wanted.datatype:
        raise FormatError(f"input {name!r} is {datatype}; the model needs {wanted.datatype}")
    fits = len(shape) == len(wanted.shape) and all(w in {-1, d} for d, w in zip(shape, wanted.shape, strict=True))
    if not fits:
        raise FormatError(f"input {name!r} has shape {list(shape)}; the model needs {list(wanted.shape)}")


def _header_length(request: Request) -> int | None:
    """Length of the JSON part. Raises _RefusedError, also for a body that is compressed."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _RefusedError(415, "compressed requests are not taken: on this device they cost more than they save")
    text = request.headers.get(_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:  # noqa: PLR2004 - far beyond any body
        raise _RefusedError(400, "Inference-Header-Content-Length must be a number")
    return int(text)


def _error(status: int, message: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else None  # noqa: PLR2004 - HTTP
    return JSONResponse({"error": message}, status_code=status, headers=headers)

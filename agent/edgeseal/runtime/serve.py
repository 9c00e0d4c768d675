"""`edgeseal-serve`: the Open Inference Protocol v2 over loopback or a UNIX socket, for what `current` points at.

A request uses the model that was current when it came; see `models` for the switch. Bodies, requests waiting and the
time of each are bounded, so that one client cannot take the device from the others.

Not here: which release is current (the agent decides), running models by process (a later floor of the same contract).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeseal import __version__
from edgeseal.durable import write_atomic
from edgeseal.errors import EdgesealError, FormatError, UsageError
from edgeseal.runtime.engine import Stop
from edgeseal.runtime.listen import listen
from edgeseal.runtime.models import Models

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'serve': pip install 'edgeseal[serve,onnx]'") from e

try:
    from edgeseal.runtime import oip
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'onnx': pip install 'edgeseal[serve,onnx]'") from e

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping, Sequence

    from starlette.requests import Request

    from edgeseal.runtime.engine import Signature
    from edgeseal.runtime.models import Loaded

_WATCH_SECONDS: Final = 0.2
_DRAIN_SECONDS: Final = 20
_HEADER: Final = "inference-header-content-length"
_MIB: Final = 2**20

logger = logging.getLogger("edgeseal.serve")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What requests may take: bytes of one body and of all together, inferences at once, requests waiting, seconds."""

    body: int = 64 * _MIB
    bodies: int = 256 * _MIB
    concurrency: int = 2
    waiting: int = 64
    seconds: float = 60.0


class _RefusedError(Exception):
    """A request that is not answered with a result; carries the status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Counters:
    """Numbers for /metrics."""

    def __init__(self) -> None:
        """Start from zero."""
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int, int], int] = {}
        self._seconds: dict[tuple[str, int], float] = {}

    def add(self, model: str, release: int, status: int, seconds: float) -> None:
        """Count one answered request."""
        with self._lock:
            key = (model, release, status)
            self._requests[key] = self._requests.get(key, 0) + 1
            self._seconds[model, release] = self._seconds.get((model, release), 0.0) + seconds

    def text(self, models: Models) -> str:
        """Return Prometheus' text format."""
        with self._lock:
            requests, seconds = sorted(self._requests.items()), sorted(self._seconds.items())
        lines = ["# TYPE edgeseal_serve_requests_total counter"]
        for (model, release, status), n in requests:
            labels = f'model="{model}",release="{release}",status="{status}"'
            lines.append(f"edgeseal_serve_requests_total{{{labels}}} {n}")
        lines.append("# TYPE edgeseal_serve_seconds_total counter")
        for (model, release), spent in seconds:
            lines.append(f'edgeseal_serve_seconds_total{{model="{model}",release="{release}"}} {spent:.6f}')
        lines.append("# TYPE edgeseal_serve_release gauge")
        lines += [f'edgeseal_serve_release{{model="{m.model}"}} {m.release}' for m in models.all()]
        return "\n".join(lines) + "\n"


class Server:
    """The routes over `Models`."""

    def __init__(self, models: Models, bounds: Bounds | None = None) -> None:
        """Let requests beyond `bounds.concurrency` wait for their turn; send away those beyond `bounds.waiting`."""
        self.models = models
        self.counters = Counters()
        self._bounds = bounds or Bounds()
        self._workers = ThreadPoolExecutor(self._bounds.concurrency, thread_name_prefix="infer")
        self._inside = 0  # requests being read, waiting or running
        self._held = 0  # bytes of their bodies
        self._running: set[Stop] = set()

    def app(self) -> Starlette:
        """Return the ASGI application; while it lives it follows the repository."""
        routes = [
            Route("/v2", self.metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/metrics", self.metrics),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(prefix, self.model_metadata),
                Route(f"{prefix}/ready", self.model_ready),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(self.models.refresh)
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for stop in list(self._running):  # uvicorn has waited for them as long as it may
                stop.now()
            self._workers.shutdown(wait=False, cancel_futures=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await asyncio.to_thread(self.models.refresh)
            except Exception:  # whatever it is, what is loaded goes on
                logger.exception("the model repository cannot be followed; it is tried again")

    # About the server and its models -------------------------------------------------------------------------------

    async def metadata(self, _request: Request) -> Response:
        """Server metadata."""
        return JSONResponse({"name": "edgeseal-serve", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, _request: Request) -> Response:
        """Answer that the process answers."""
        return Response(status_code=200)

    async def ready(self, _request: Request) -> Response:
        """Answer whether every model in the repository is served."""
        return Response(status_code=200 if self.models.ready() else 503)

    async def metrics(self, _request: Request) -> Response:
        """Answer counters in Prometheus' text format."""
        return PlainTextResponse(self.counters.text(self.models))

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
        try:
            response = await self._infer(request, loaded, started + self._bounds.seconds)
        except _RefusedError as e:
            response = _error(e.status, str(e))
        except ClientDisconnect:
            response = _error(400, "the client went away")  # nobody reads it; the counters do
        self.counters.add(loaded.model, loaded.release, response.status_code, time.monotonic() - started)
        return response

    async def _infer(self, request: Request, loaded: Loaded, deadline: float) -> Response:
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
            data, head = await self._turn(loaded, body, header_length, deadline)
        finally:
            self._inside -= 1
            self._held -= len(body)
        if head is None:
            return Response(data, media_type="application/json")
        return Response(data, media_type="application/octet-stream", headers={_HEADER: str(head)})

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read into `body`, never more than the limits: Content-Length is only what the client says."""
        async for piece in request.stream():
            body += piece
            self._held += len(piece)
            if len(body) > self._bounds.body:
                raise _RefusedError(413, f"the request is larger than {self._bounds.body} bytes")
            if self._held > self._bounds.bodies:
                raise _RefusedError(503, "all requests together are too large at the moment; try again later")

    async def _turn(
        self, loaded: Loaded, body: bytearray, header_length: int | None, deadline: float
    ) -> tuple[bytes, int | None]:
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


def _let_go(running: set[Stop], stop: Stop, _work: Future[Any]) -> None:
    running.discard(stop)


def _answer(loaded: Loaded, body: bytes, header_length: int | None, stop: Stop) -> tuple[bytes, int | None]:
    """Return body and JSON length of the response. Raises _RefusedError, TimeoutError."""
    try:
        request = oip.parse_request(body, header_length)
        outputs = _run(loaded, request, stop)
        return oip.build_response(loaded.model, str(loaded.release), outputs, request)
    except FormatError as e:
        raise _RefusedError(400, str(e)) from None
    except MemoryError:
        raise _RefusedError(503, "not enough memory for this request") from None


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
    found = loaded.engine.infer({n: v for n, (_, v) in request.inputs.items()}, wanted, stop)
    return {name: (known[name], found[name]) for name in wanted}


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


# Command -------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edgeseal-serve`; the exit codes are those of edgeseal.errors."""
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        bounds = _bounds(arguments)
        listener, url = listen(arguments.listen)
        models = Models(arguments.models, threads=arguments.threads)
        asyncio.run(_serve(Server(models, bounds).app(), listener, url, arguments.ready_file))
    except EdgesealError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    return 0


async def _serve(app: Starlette, listener: socket.socket, url: str, ready_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; then answer what has begun, and tidy up."""
    # uvicorn sends itself the signal again once it has ended in order: that must not kill us before we have tidied up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_DRAIN_SECONDS
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn offers no event for it
        await asyncio.sleep(0.02)
    try:
        if server.started:
            logger.info("answers at %s", url)
            await asyncio.to_thread(_announce, ready_file, url)
        await task
    finally:
        await asyncio.to_thread(_withdraw, ready_file, url)
    if not server.started:
        raise EdgesealError("the server did not start; the lines above say why")


def _announce(ready_file: Path | None, url: str) -> None:
    if ready_file is not None:
        write_atomic(ready_file, url.encode(), mode=0o644)


def _withdraw(ready_file: Path | None, url: str) -> None:
    """Leave nothing behind that says somebody answers."""
    with contextlib.suppress(OSError):
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        if url.startswith("unix:"):
            os.unlink(url.removeprefix("unix:"))  # noqa: PTH108 - as it was bound


def _bounds(arguments: argparse.Namespace) -> Bounds:
    """Return what the command line allows. Raises UsageError for numbers that mean nothing."""
    for name in ("concurrency", "max_body_mb", "timeout"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    if arguments.threads < 0:
        raise UsageError(f"--threads must be 0 (one per core) or more, not {arguments.threads}")
    body = arguments.max_body_mb * _MIB
    return Bounds(body=body, bodies=4 * body, concurrency=arguments.concurrency, seconds=arguments.timeout)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgeseal-serve", description="Serve the models that edgeseal-agent installs."
    )
    parser.add_argument("--models", type=Path, default=Path("/run/edgeseal/models"), help="model repository")
    parser.add_argument("--listen", default="127.0.0.1:8000", help="127.0.0.1:PORT or unix:PATH (port 0: any)")
    parser.add_argument("--ready-file", type=Path, help="write the address here once it answers")
    parser.add_argument("--threads", type=int, default=0, help="threads of one inference (0: one per core)")
    parser.add_argument("--concurrency", type=int, default=2, help="inferences at once")
    parser.add_argument("--max-body-mb", type=int, default=64, help="largest request in MiB (all together: four times)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one request, waiting included")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""`edgeseal-serve`: the Open Inference Protocol v2 over loopback or a UNIX socket, for what `current` points at.

A request uses the model that was current when it came: on a switch the new one is loaded first, then takes over, and
the old one goes when its last request has been answered. A release that does not load leaves the old one serving.

Not here: which release is current (the agent decides), running models by process (a later floor of the same contract).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeseal import __version__
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, UsageError
from edgeseal.runtime import engine
from edgeseal.runtime.repository import ModelRepository

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'serve': pip install 'edgeseal[serve,onnx]'") from e

from edgeseal.runtime import oip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

MAX_BODY: Final = 64 * 2**20
_WATCH_SECONDS: Final = 0.2
_HEADER: Final = "inference-header-content-length"

logger = logging.getLogger("edgeseal.serve")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One release, ready to answer."""

    model: str
    release: int
    engine: engine.Engine
    since: float


class Models:
    """What is served: for each model the release that `current` names, loaded."""

    def __init__(self, root: Path, *, threads: int) -> None:
        """Nothing is loaded before `refresh`."""
        self._repository = ModelRepository(root, allow_disk=True)
        self._threads = threads
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Load what has become current, then forget what it replaced."""
        with self._lock:
            names = self._repository.models()
            for model in names:
                self._follow(model)
            for gone in set(self._loaded) - set(names):
                logger.info("%s is no longer in the repository", gone)
                del self._loaded[gone]

    def _follow(self, model: str) -> None:
        release = self._repository.current(model)
        serving = self._loaded.get(model)
        if release is None or (serving and serving.release == release):
            return
        if self._failed.get(model, (None, ""))[0] == release:
            return
        try:
            loaded = engine.load(self._repository.path(model, release), threads=self._threads)
        except (EdgesealError, ImportError, OSError) as e:
            self._failed[model] = (release, str(e))
            logger.error("%s release %d does not load, %s: %s", model, release, _goes_on(serving), e)  # noqa: TRY400 - no bug of ours
            return
        self._failed.pop(model, None)
        self._loaded[model] = Loaded(model, release, loaded, time.time())
        logger.info("%s release %d serves", model, release)

    def get(self, model: str, version: str | None = None) -> Loaded:
        """Return a model that is ready.

        Raises LookupError saying why it is not there.
        """
        found = self._loaded.get(model)
        if found is None:
            _, why = self._failed.get(model, (0, ""))
            raise LookupError(f"model {model!r} is not served" + (f": {why}" if why else ""))
        if version is not None and version != str(found.release):
            raise LookupError(f"model {model!r} is served as version {found.release}, not {version!r}")
        return found

    def all(self) -> list[Loaded]:
        """Return everything that is ready."""
        return list(self._loaded.values())

    def failures(self) -> dict[str, tuple[int, str]]:
        """Return the releases that are current and do not load, with the reason."""
        return dict(self._failed)


def _goes_on(serving: Loaded | None) -> str:
    return f"release {serving.release} goes on" if serving else "nothing serves this model"


class Counters:
    """Numbers for /metrics."""

    def __init__(self) -> None:
        """Start from zero."""
        self._lock = threading.Lock()
        self.requests: dict[tuple[str, int, int], int] = {}
        self.seconds: dict[tuple[str, int], float] = {}

    def add(self, model: str, release: int, status: int, seconds: float) -> None:
        """Count one answered request."""
        with self._lock:
            key = (model, release, status)
            self.requests[key] = self.requests.get(key, 0) + 1
            self.seconds[model, release] = self.seconds.get((model, release), 0.0) + seconds

    def text(self, models: Models) -> str:
        """Return Prometheus' text format."""
        lines = ["# TYPE edgeseal_serve_requests_total counter"]
        for (model, release, status), n in sorted(self.requests.items()):
            labels = f'model="{model}",release="{release}",status="{status}"'
            lines.append(f"edgeseal_serve_requests_total{{{labels}}} {n}")
        lines.append("# TYPE edgeseal_serve_seconds_total counter")
        for (model, release), seconds in sorted(self.seconds.items()):
            lines.append(f'edgeseal_serve_seconds_total{{model="{model}",release="{release}"}} {seconds:.6f}')
        lines.append("# TYPE edgeseal_serve_release gauge")
        lines += [f'edgeseal_serve_release{{model="{m.model}"}} {m.release}' for m in models.all()]
        return "\n".join(lines) + "\n"


class Server:
    """The routes over `Models`."""

    def __init__(self, models: Models, *, concurrency: int) -> None:
        """`concurrency`: inferences at once; more wait for their turn."""
        self.models = models
        self.counters = Counters()
        self._turn = asyncio.Semaphore(concurrency)

    def app(self) -> Starlette:
        """Return the ASGI application; while it lives it follows the repository."""
        versions = "/v2/models/{model}/versions/{version}"
        routes = [
            Route("/v2", self.metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/metrics", self.metrics),
        ]
        for prefix in ("/v2/models/{model}", versions):
            routes += [
                Route(prefix, self.model_metadata),
                Route(f"{prefix}/ready", self.model_ready),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(self.models.refresh)
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await run_in_threadpool(self.models.refresh)

    async def metadata(self, _request: Request) -> Response:
        """Server metadata."""
        return JSONResponse({"name": "edgeseal-serve", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, _request: Request) -> Response:
        """Answer that the process answers."""
        return Response(status_code=200)

    async def ready(self, _request: Request) -> Response:
        """Answer whether every model in the repository is served."""
        return Response(status_code=200 if self.models.all() and not self.models.failures() else 503)

    async def metrics(self, _request: Request) -> Response:
        """Answer counters in Prometheus' text format."""
        return PlainTextResponse(self.counters.text(self.models))

    async def model_ready(self, request: Request) -> Response:
        """Answer whether one model is served."""
        try:
            self._model(request)
        except LookupError:
            return Response(status_code=404)
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

    async def infer(self, request: Request) -> Response:
        """Run one inference."""
        started = time.monotonic()
        try:
            loaded = self._model(request)
        except LookupError as e:
            return _error(404, str(e))
        response = await self._infer(request, loaded)
        self.counters.add(loaded.model, loaded.release, response.status_code, time.monotonic() - started)
        return response

    async def _infer(self, request: Request, loaded: Loaded) -> Response:
        try:
            body = await _body(request)
            parsed = oip.parse_request(body, _header_length(request))
            async with self._turn:
                outputs = await run_in_threadpool(_run, loaded, parsed)
            data, head = oip.build_response(loaded.model, str(loaded.release), outputs, parsed)
        except _TooLargeError as e:
            return _error(413, str(e))
        except FormatError as e:
            return _error(400, str(e))
        if head is None:
            return Response(data, media_type="application/json")
        return Response(data, media_type="application/octet-stream", headers={_HEADER: str(head)})

    def _model(self, request: Request) -> Loaded:
        return self.models.get(request.path_params["model"], request.path_params.get("version"))


class _TooLargeError(Exception):
    pass


async def _body(request: Request) -> bytes:
    """Read the body, never more than the limit: Content-Length is only what the client says."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise _TooLargeError(f"the request is larger than {MAX_BODY} bytes")
    return bytes(body)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:  # noqa: PLR2004 - far beyond any body
        raise FormatError("Inference-Header-Content-Length must be a number")
    return int(text)


def _run(loaded: Loaded, request: oip.Request) -> dict[str, tuple[str, Any]]:
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
    found = loaded.engine.infer({n: v for n, (_, v) in request.inputs.items()}, wanted)
    return {name: (known[name], found[name]) for name in wanted}


def _check_input(name: str, datatype: str, shape: Sequence[int], declared: dict[str, engine.Signature]) -> None:
    if name not in declared:
        raise FormatError(f"there is no input {name!r}; the model has {', '.join(declared)}")
    wanted = declared[name]
    if datatype != wanted.datatype:
        raise FormatError(f"input {name!r} is {datatype}; the model needs {wanted.datatype}")
    fits = len(shape) == len(wanted.shape) and all(w in {-1, d} for d, w in zip(shape, wanted.shape, strict=True))
    if not fits:
        raise FormatError(f"input {name!r} has shape {list(shape)}; the model needs {list(wanted.shape)}")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)


# Command -------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edgeseal-serve`; the exit codes are those of edgeseal.errors."""
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        listener, url = _listen(arguments.listen)
        models = Models(arguments.models, threads=arguments.threads)
        server = Server(models, concurrency=arguments.concurrency)
        asyncio.run(_serve(server.app(), listener, url, arguments.ready_file))
    except EdgesealError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    return 0


async def _serve(app: Starlette, listener: socket.socket, url: str, ready_file: Path | None) -> None:
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn offers no event for it
        await asyncio.sleep(0.02)
    if server.started:
        logger.info("answers at %s", url)
        if ready_file is not None:
            await run_in_threadpool(ready_file.write_text, url)
    await task


def _listen(address: str) -> tuple[socket.socket, str]:
    """Bind a UNIX socket or a loopback address; anything else would put the model on the network.

    Raises UsageError, IncompatibleError if the address is taken.
    """
    kind, _, path = address.partition(":")
    try:
        if kind == "unix" and path:
            with contextlib.suppress(FileNotFoundError):
                if Path(path).is_socket():
                    Path(path).unlink()
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            os.chmod(path, 0o660)  # noqa: PTH101 - the group of the socket's directory decides
            return listener, address
        host, _, port = address.rpartition(":")
        if host not in {"127.0.0.1", "localhost", "[::1]"} or not port.isdecimal():
            raise UsageError(
                f"cannot listen on {address!r}",
                hint="expected 127.0.0.1:PORT, [::1]:PORT or unix:PATH; it is not for a network",
            )
        family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]").replace("localhost", "127.0.0.1"), int(port)))
    except OSError as e:
        raise IncompatibleError(
            f"cannot listen on {address}: {e.strerror}", hint="is another edgeseal-serve running?"
        ) from e
    return listener, f"http://{host}:{listener.getsockname()[1]}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgeseal-serve", description="Serve the models that edgeseal-agent installs."
    )
    parser.add_argument("--models", type=Path, default=Path("/run/edgeseal/models"), help="model repository")
    parser.add_argument("--listen", default="127.0.0.1:8000", help="127.0.0.1:PORT or unix:PATH (port 0: any)")
    parser.add_argument("--ready-file", type=Path, help="write the address here once it answers")
    parser.add_argument("--threads", type=int, default=0, help="threads of one inference (0: one per core)")
    parser.add_argument("--concurrency", type=int, default=2, help="inferences at once")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())

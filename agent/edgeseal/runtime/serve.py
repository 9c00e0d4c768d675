"""`edgeseal-serve`: the Open Inference Protocol v2 over loopback or a UNIX socket, for what `current` points at.

    supervisor   this process: holds the socket, follows the repository, starts workers
    worker       one process per set of releases: app (routes and bounds) over models (loaded engines)

Not here: which release is current (the agent decides).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgeseal import __version__
from edgeseal.durable import write_atomic
from edgeseal.errors import EdgesealError, UsageError
from edgeseal.runtime.bounds import MIB, Bounds
from edgeseal.runtime.listen import BACKLOG, listen, passed
from edgeseal.runtime.repository import ModelRepository
from edgeseal.runtime.supervisor import Settings, Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXTRAS = {"uvicorn": "serve", "starlette": "serve", "numpy": "onnx"}
_ENGINES = ("onnxruntime", "ai_edge_litert")

logger = logging.getLogger("edgeseal.serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edgeseal-serve`; the exit codes are those of edgeseal.errors."""
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        settings = _settings(arguments)
        _check_extras()
        given = passed()
        listener, url = given or listen(arguments.listen)
    except EdgesealError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    if not given:
        listener.listen(BACKLOG)
    repository = ModelRepository(arguments.models, allow_disk=True)
    supervisor = Supervisor(listener, repository, settings, announce=lambda: _announce(arguments.ready_file, url))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    try:
        supervisor.run()
    finally:
        _withdraw(arguments.ready_file, "" if given else url)
    return 0


def _check_extras() -> None:
    """Say what is missing here, not in the log of a worker."""
    for module, extra in _EXTRAS.items():
        if find_spec(module) is None:
            raise UsageError(f"edgeseal-serve needs the extra {extra!r}", hint="pip install 'edgeseal[serve,onnx]'")
    if not any(map(find_spec, _ENGINES)):
        raise UsageError(
            "edgeseal-serve needs the extra 'onnx' or 'litert'", hint="pip install 'edgeseal[serve,onnx,litert]'"
        )


def _announce(ready_file: Path | None, url: str) -> None:
    logger.info("answers at %s", url)
    if ready_file is not None:
        write_atomic(ready_file, url.encode(), mode=0o644)


def _withdraw(ready_file: Path | None, url: str) -> None:
    """Leave nothing behind that says somebody answers."""
    with contextlib.suppress(OSError):
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        if url.startswith("unix:"):
            os.unlink(url.removeprefix("unix:"))  # noqa: PTH108 - as it was bound


def _settings(arguments: argparse.Namespace) -> Settings:
    """Return what the command line asks for. Raises UsageError for numbers that mean nothing."""
    for name in ("concurrency", "max_body_mb", "timeout", "idle"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    if arguments.threads < 0:
        raise UsageError(f"--threads must be 0 (one per core) or more, not {arguments.threads}")
    body = arguments.max_body_mb * MIB
    bounds = Bounds(body=body, bodies=4 * body, concurrency=arguments.concurrency, seconds=arguments.timeout)
    return Settings(bounds, arguments.threads, arguments.switch, arguments.idle, arguments.status_file)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgeseal-serve", description="Serve the models that edgeseal-agent installs."
    )
    parser.add_argument("--models", type=Path, default=Path("/run/edgeseal/models"), help="model repository")
    parser.add_argument("--listen", default="127.0.0.1:8000", help="127.0.0.1:PORT or unix:PATH (port 0: any)")
    parser.add_argument("--ready-file", type=Path, help="write the address here once it answers")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="most threads of one inference, whatever a release asks for (0: one per core)",
    )
    parser.add_argument("--concurrency", type=int, default=2, help="inferences at once")
    parser.add_argument("--max-body-mb", type=int, default=64, help="largest request in MiB (all together: four times)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for one request, waiting included")
    parser.add_argument("--status-file", type=Path, help="say here, in JSON, what serves and how it does")
    parser.add_argument(
        "--switch",
        choices=("auto", "hand-over", "stop-then-load", "load-on-demand"),
        default="auto",
        help="how a release replaces another (auto: hand-over if memory holds both)",
    )
    parser.add_argument(
        "--idle", type=float, default=300, help="load-on-demand: seconds of silence before models leave"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Run a fleet server: one process, one uvicorn.

SIGTERM or SIGINT stop it after running requests have ended; SIGHUP has it read its TLS certificate again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from typing import TYPE_CHECKING, Final

from edgeseal.durable import write_atomic
from edgeseal.errors import EdgesealError, RefusedError, UsageError
from edgeseal.session import selftest
from edgeseal_host.fleet import logs, preflight
from edgeseal_host.fleet.service import Service

try:
    import uvicorn

    from edgeseal_host.fleet.app import make_app
except ImportError as e:
    raise ImportError("the fleet server needs the extra 'server': pip install 'edgeseal[server]'") from e

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal_host.fleet.data import DataDirectory, Fleet
    from edgeseal_host.fleet.tls import TlsFiles

GRACE_SECONDS: Final = 10  # running requests may end; then the process does
KEEP_ALIVE_SECONDS: Final = 15
BACKLOG: Final = 2048
_HINTS: Final = {
    errno.EADDRINUSE: "is another server running there? --listen HOST:0 picks a free port",
    errno.EADDRNOTAVAIL: "this machine does not have that address; 0.0.0.0 or [::] listens on all it has",
    errno.EACCES: "ports below 1024 are for root: choose a higher one, and put a proxy in front of it",
}
logger = logging.getLogger("edgeseal.fleet")


def serve(data: DataDirectory, *, listen: str, ready_file: Path | None, tls: TlsFiles | None = None) -> None:
    """Serve until told to stop; `ready_file` gets the base address once requests are answered.

    Raises UsageError for a bad or busy address or TLS files that cannot be used, TemporaryError if another process
    serves this directory or its disk is full, NotAuthorisedError for wrong owners or modes, RefusedError for a registry
    that came from a backup.
    """
    logs.configure()
    if tls is not None:
        tls.check()
    with preflight.alone(data), data.open() as fleet, _socket(listen) as listener:
        selftest.run()
        preflight.check_space(data)
        _check_not_restored(fleet)
        data.announce()
        config = uvicorn.Config(
            make_app(Service(fleet)),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )
        server = _Server(config, ready_file=ready_file, base=_base(listener, secure=tls is not None), tls=tls)
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises the signal again when it has stopped; a clean stop shall end with exit code 0.
            signal.signal(number, lambda *_: None)
        try:
            server.run(sockets=[listener])
        finally:
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)
        if not server.started:
            raise EdgesealError("the fleet server could not start", hint="its log above says why")
    logs.event(logger, "stopped")


def _check_not_restored(fleet: Fleet) -> None:
    """Refuse to hand out older metadata than before, and to accept requests that were recorded since the backup."""
    if fleet.publisher.is_behind():
        raise RefusedError(
            "the registry is older than what was published from here: it came from a backup",
            hint=f"edgeseal fleet restored --data {fleet.data.path} puts that right, then serve again",
        )


class _Server(uvicorn.Server):
    """Says when it is ready, and reads its certificate again when asked to."""

    def __init__(self, config: uvicorn.Config, *, ready_file: Path | None, base: str, tls: TlsFiles | None) -> None:
        super().__init__(config)
        self._ready_file, self._base, self._tls = ready_file, base, tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._read_certificate)
        self._read_certificate()
        await super().startup(sockets)
        if self.started:
            logs.event(logger, "serving", address=self._base)
            if self._ready_file is not None:
                write_atomic(self._ready_file, f"{self._base}\n".encode(), mode=0o644)

    def _read_certificate(self) -> None:
        if self._tls is None or self.config.ssl is None:
            return  # a proxy does that
        try:
            ends = self._tls.check()
            self._tls.load(self.config.ssl)
        except (UsageError, OSError, ValueError) as e:
            logs.event(logger, "certificate refused; the former stays", level=logging.ERROR, reason=str(e))
        else:
            logs.event(logger, "certificate loaded", not_after=ends.isoformat())


def _socket(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65_535:  # noqa: PLR2004 - ports are 16 bits
        raise UsageError(
            f"--listen {listen!r} is not an address", hint="HOST:PORT, for instance 127.0.0.1:8443; port 0 picks one"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise UsageError(f"cannot listen on {listen}: {e.strerror or e}", hint=_HINTS.get(e.errno or 0)) from e
    return listener


def _base(listener: socket.socket, *, secure: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"http{'s' * secure}://{f'[{host}]' if ':' in host else host}:{port}"

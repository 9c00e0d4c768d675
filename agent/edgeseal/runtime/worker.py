"""One worker of edgeseal-serve: `python -m edgeseal.runtime.worker`, started by the supervisor and by nobody else.

It inherits the listening socket and a control socket (one JSON object per message, SOCK_SEQPACKET):

    supervisor -> worker   {"listener", "root", "releases": [[model, release, directory]], "failed", "threads",
                            "bounds"}               first
                           {"accept": history}     take requests; history: what workers before it counted
                           {"history": history}    one of them has ended
                           {"status": models}      what the page says beyond this worker
                           {"shadow": order}       send copies of answered requests to the descriptor that comes along;
                                                   null: no more
                           {"drain": true}         take no new connection, answer what comes on the others, end
                           {"end": true}           answer what has begun, end
    worker -> supervisor   {"loaded": [model], "failed": {model: reason}}
                           {"accepting": true}
                           {"counted": tallies, "idle": seconds, "copies": [order, counts] or null}
                                                   while it serves, once a second; and at its end

It ends when the supervisor does: a control socket that is shut means `end`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from edgeseal.runtime.app import Server
from edgeseal.runtime.background import come_back, leave
from edgeseal.runtime.bounds import Bounds
from edgeseal.runtime.counters import tallies
from edgeseal.runtime.models import Models
from edgeseal.runtime.rehearsal import rehearse
from edgeseal.runtime.repository import ModelRepository
from edgeseal.runtime.shadow_copies import Copies, Counts

try:
    import uvicorn

    from edgeseal.runtime.connection import AT_A_TIME, Connection, Listener
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("edgeseal-serve needs the extra 'serve': pip install 'edgeseal[serve,onnx]'") from e

MAX_MESSAGE: Final = 2**18
DRAIN_SECONDS: Final = 20  # for answers under way
LINGER_SECONDS: Final = 10.0  # for connections that are open and silent: most clients' next request comes sooner
_TELL_SECONDS: Final = 1.0
_TICK: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1

logger = logging.getLogger("edgeseal.serve")


class Worker:
    """The process: loads, says so, serves, drains."""

    def __init__(self, control: socket.socket, order: dict[str, Any]) -> None:
        """`order` is the supervisor's first message."""
        self._control = control
        self._listener = Listener(fileno=order["listener"])
        releases = [(model, release, Path(directory)) for model, release, directory in order["releases"]]
        self._models = Models.load(releases, threads=order["threads"], failed=order["failed"])
        repository = ModelRepository(Path(order["root"]), allow_disk=True)
        self._server = Server(self._models, Bounds(**order["bounds"]), notes=repository.notes)
        self._app = self._server.app()
        config = uvicorn.Config(
            self._app,
            http=Connection,
            ws="none",
            backlog=AT_A_TIME,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        self._uvicorn = uvicorn.Server(config)
        self._last = time.monotonic()  # of the last change of the counters
        self._told: Any = None
        self._tell_at = 0.0
        self._passed: list[int] = []  # descriptors that came with the last message

    async def run(self) -> None:
        """Serve from the word to accept until the word to drain, or a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        self._control.settimeout(0)
        await self._rehearse()
        failed = {m: r for m, r in self._models.failed.items() if m not in self._models.loaded}
        self._say({"loaded": sorted(self._models.loaded), "failed": failed})
        serving: asyncio.Task[None] | None = None
        while serving is None or not serving.done():
            word = await self._word(max(0.0, self._tell_at - time.monotonic()) if serving else None)
            if serving is not None and time.monotonic() >= self._tell_at:  # however often somebody else speaks
                self._tell()
            if word is None:
                continue
            self._take(word)
            if "accept" in word and serving is None:
                come_back()
                serving = asyncio.create_task(self._serve())
                serving.add_done_callback(lambda _: self._control.shutdown(socket.SHUT_RD))
            if "drain" in word or "end" in word:
                if serving is None:
                    return
                if "drain" in word:
                    await self._drain()
                self._end()
                await serving
        self._tell()

    def _take(self, word: dict[str, Any]) -> None:
        """Take what others know or want, in a word that changes nothing of who serves."""
        if "accept" in word or "history" in word:
            self._server.counters.history = tallies(word.get("accept", word.get("history")))
        self._server.status = word.get("status", self._server.status)
        if "shadow" in word:
            self._shadow(word["shadow"])

    async def _rehearse(self) -> None:
        """Go the callers' way once before they do, and count nothing of it."""
        await rehearse(self._app, self._models.all())
        self._server.counters.own.clear()
        gc.collect()
        gc.freeze()  # what is loaded stays: a full collection over all of it would be a pause for callers

    async def _serve(self) -> None:
        task = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]))
        while not self._uvicorn.started and not task.done():  # noqa: ASYNC110 - uvicorn offers no event for it
            await asyncio.sleep(_TICK)
        if self._uvicorn.started:
            self._say({"accepting": True})
        await task

    async def _drain(self) -> None:
        """Leave new connections to the worker that took over; let the open ones go as they are used or fall silent."""
        self._stop_accepting()
        ends = time.monotonic() + LINGER_SECONDS
        state = self._uvicorn.server_state
        while state.connections and time.monotonic() < ends and not self._uvicorn.should_exit:  # noqa: ASYNC110 - as above
            await asyncio.sleep(_TICK)

    def _end(self) -> None:
        self._stop_accepting()
        self._uvicorn.should_exit = True

    def _stop_accepting(self) -> None:
        """Leave what waits in the socket's queue to others.

        Not by closing it: asyncio drops a connection that it has accepted and not yet handed over when its server is
        closed in between (base_events.Server._attach). uvicorn closes it some ticks later.
        """
        self._server.draining = True
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    async def _word(self, seconds: float | None) -> dict[str, Any] | None:
        """Return the supervisor's next message, None if none comes in time; a supervisor that is gone says end."""
        try:
            async with asyncio.timeout(seconds):
                await self._readable()
            data, self._passed, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            data = b""
        return json.loads(data) if data else {"end": True}

    async def _readable(self) -> None:
        """Wait for a message; asyncio has no call that takes the descriptor along."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._control, came.set)
        try:
            await came.wait()
        finally:
            loop.remove_reader(self._control)

    def _shadow(self, order: dict[str, Any] | None) -> None:
        """Begin or end copying answered requests; an order that goes on elsewhere keeps its counts."""
        before, self._server.copies = self._server.copies, None
        if before is not None:
            before.close()
        for descriptor in self._passed[:1]:
            end = socket.socket(fileno=descriptor)
            if order is None:
                end.close()
                continue
            counts = before.counts if before is not None and before.order == order["order"] else Counts()
            self._server.copies = Copies(end, **order, counts=counts)
            self._tell()  # from now on

    def _tell(self) -> None:
        counted = self._server.counters.snapshot()
        if counted != self._told:
            self._last, self._told = time.monotonic(), counted
        self._tell_at = time.monotonic() + _TELL_SECONDS
        copies = self._server.copies
        copied = None if copies is None else [copies.order, msgspec.to_builtins(copies.counts)]
        self._say({"counted": counted, "idle": time.monotonic() - self._last, "copies": copied})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the next word will say so
            self._control.send(json.dumps(message).encode())


def main() -> NoReturn:
    """Do what the supervisor says on the socket that is standard input."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    control = socket.socket(fileno=os.dup(0))
    order = json.loads(control.recv(MAX_MESSAGE))
    asyncio.run(Worker(control, order).run())
    leave()
    logging.shutdown()
    os._exit(0)  # the kernel takes all memory at once; freeing it object by object would be time of those who serve


if __name__ == "__main__":
    main()

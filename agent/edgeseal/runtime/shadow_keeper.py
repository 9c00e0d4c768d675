"""The supervisor's part of shadow mode: starts the process for the order that lies in the repository, and ends it.

One order at a time: memory is what a device is short of. The process has a lower priority than workers that serve and
is the first that the kernel ends when memory runs out; whatever becomes of it changes nothing for them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeseal.errors import FormatError
from edgeseal.runtime.background import ENVIRONMENT, give_way
from edgeseal.runtime.follow import Release, stamp
from edgeseal.runtime.repository import memory_available
from edgeseal.runtime.serve_status import ShadowState, ShadowStatus
from edgeseal.runtime.shadow import Order
from edgeseal.runtime.shadow_copies import Counts
from edgeseal.runtime.shadow_figures import Figures

if TYPE_CHECKING:
    from edgeseal.runtime.repository import ModelRepository
    from edgeseal.runtime.serving_child import Child

MAX_MESSAGE: Final = 2**18
MAX_CRASHES: Final = 5
LOAD_SECONDS: Final = 300.0  # as a worker that is to serve
GRACE_SECONDS: Final = 60.0  # beyond what was ordered: an agent that was killed takes nothing back
RESERVE_BYTES: Final = 64 * 2**20  # of the memory that is free, for everybody else
LEAST_MIB: Final = 32  # for the inferences of a release; with less it is not tried
_REASON: Final = 400  # characters
_AGAIN_SECONDS: Final = 1.0
LOADING, RUNNING = 5, 15  # nice(2): a tenth and a thirtieth of what a worker that serves gets where all are busy
_LEAST: Final = 19
_AT_ONCE: Final = 16  # messages read in one step
_FIRST_TO_GO: Final = "1000"  # proc_pid_oom_score_adj(5)

logger = logging.getLogger("edgeseal.serve")


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of the process in the shadow (shadow_worker)."""

    loaded: bool = False
    failed: str = ""
    skipped: str = ""
    figures: Figures | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process in the shadow gets: threads of one inference, seconds for one, bytes before any model.

    `reason`: why there can be none at all, empty if there can.
    """

    threads: int
    seconds: float
    process_bytes: int
    reason: str = ""


@dataclass(eq=False)
class _Process:
    """A process in the shadow; `serving` is the worker whose requests it gets."""

    popen: subprocess.Popen[bytes]
    control: socket.socket
    started: float = field(default_factory=time.monotonic)
    loaded: bool = False
    serving: Child | None = None
    figures: Figures = field(default_factory=Figures)


@dataclass(eq=False)
class _Session:
    """One order, from its begin to its end."""

    release: Release
    order: Order
    started: float = field(default_factory=time.monotonic)
    state: ShadowState = "loading"
    reason: str = ""
    crashes: int = 0
    memory_mb: int = 0  # what it may use beside its own files: what was ordered, or what is free
    not_before: float = 0.0
    before: Figures = field(default_factory=Figures)  # of processes that have ended
    counts: dict[int, Counts] = field(default_factory=dict)  # by process id of the worker that served
    process: _Process | None = None


class Keeper:
    """Keeps at most one process in the shadow."""

    def __init__(self, repository: ModelRepository, resources: Resources) -> None:
        """Nothing is started before `step`."""
        self._repository = repository
        self._resources = resources
        self._session: _Session | None = None
        self._ended: list[_Process] = []

    def step(self, serving: Child | None) -> None:
        """Do what is to be done now; `serving` is the worker that takes requests, if one does. Never blocks."""
        found = ordered(self._repository)
        session = self._session
        if session is not None and (found is None or (found[0], found[1].id) != (session.release, session.order.id)):
            self.end()
            session = None
        if session is None and found is not None:
            session = self._session = _Session(*found)
        if session is not None and session.state not in {"skipped", "failed"}:
            self._go_on(session, serving)
        self._reap()

    def end(self) -> None:
        """End the process, if there is one, and forget the order."""
        if self._session is not None and self._session.process is not None:
            self._leave(self._session)
        self._session = None

    def close(self) -> None:
        """End, and wait until nothing is left."""
        self.end()
        for process in self._ended:
            process.popen.wait()
        self._ended.clear()

    def status(self, model: str) -> ShadowStatus | None:
        """Return what is to be said of a model."""
        session = self._session
        if session is None or session.release.model != model:
            return None
        counts = Counts()
        for one in session.counts.values():
            counts = counts.plus(one)
        figures = session.before if session.process is None else session.before.merged(session.process.figures)
        return ShadowStatus(
            release=session.release.number,
            id=session.order.id,
            state=session.state,
            reason=session.reason,
            seen=counts.seen,
            copied=counts.copied,
            dropped=counts.dropped,
            crashes=session.crashes,
            figures=figures,
        )

    # One order -----------------------------------------------------------------------------------------------------

    def _go_on(self, session: _Session, serving: Child | None) -> None:
        now = time.monotonic()
        if now > session.started + LOAD_SECONDS + session.order.seconds + GRACE_SECONDS:
            self._stop(session, "skipped", "nobody has asked for what it found")
        elif session.process is None:
            if now >= session.not_before and self._may_start(session, serving):
                self._start(session)
        else:
            self._read(session, session.process)
        process = session.process
        if process is None:
            return
        if process.popen.poll() is not None:
            self._crashed(session, process)
        elif not process.loaded and now > process.started + LOAD_SECONDS:
            process.popen.kill()
        elif process.loaded:
            self._pair(session, process, serving)
        self._count(session, serving)

    def _may_start(self, session: _Session, serving: Child | None) -> bool:
        """Whether the order can be followed on this device now; says once why not."""
        if serving is None or session.release.model not in serving.releases:
            session.state = "waiting"
            return False
        need = self._resources.process_bytes + session.release.size() + RESERVE_BYTES
        free = memory_available()
        session.memory_mb = min(session.order.memory_mb, (free - need) // 2**20)
        if self._resources.reason:
            self._stop(session, "skipped", self._resources.reason)
        elif session.memory_mb < min(LEAST_MIB, session.order.memory_mb):
            mib = f"another process needs {need // 2**20 + LEAST_MIB} MiB or more, {free // 2**20} MiB are free"
            self._stop(session, "skipped", f"memory does not hold both releases: {mib}")
        return session.state != "skipped"

    def _start(self, session: _Session) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", "edgeseal.runtime.shadow_worker"]
        try:
            with theirs:
                popen = subprocess.Popen(
                    words, stdin=theirs.fileno(), start_new_session=True, env=os.environ | ENVIRONMENT
                )
        except OSError as e:
            ours.close()
            self._stop(session, "skipped", f"its process cannot be started: {e.strerror}")
            return
        give_way(popen.pid, LOADING)
        with contextlib.suppress(OSError):
            Path(f"/proc/{popen.pid}/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
        ours.settimeout(0)
        release = session.release
        said = {
            "model": release.model,
            "release": release.number,
            "directory": str(release.directory),
            "threads": self._resources.threads,
            "seconds": self._resources.seconds,
            "memory_mb": session.memory_mb,
            "parent": os.getpid(),
            "order": msgspec.to_builtins(session.order),
        }
        with contextlib.suppress(OSError):  # gone already: noticed by its end
            ours.send(json.dumps(said).encode())
        session.state, session.process = "loading", _Process(popen, ours)
        logger.info("%s release %d is tried on copies of live requests", release.model, release.number)

    def _read(self, session: _Session, process: _Process) -> None:
        """Take what the process has said; one that talks without end or sense holds nobody up."""
        for _ in range(_AT_ONCE):
            try:
                data = process.control.recv(MAX_MESSAGE)
            except OSError:  # nothing there, or nobody
                return
            if not data:
                return
            try:
                said = msgspec.json.decode(data, type=Said)
            except msgspec.MsgspecError:
                self._stop(session, "failed", "its process says what no release says")
                return
            if said.figures is not None:
                process.figures = said.figures
            if said.loaded:
                process.loaded = True
                give_way(process.popen.pid, RUNNING)
            if said.failed or said.skipped:
                self._stop(session, "failed" if said.failed else "skipped", (said.failed or said.skipped)[:_REASON])
                return

    def _pair(self, session: _Session, process: _Process, serving: Child | None) -> None:
        """Let the worker that serves send its copies to the process; another one after a crash or a switch."""
        if serving is process.serving or serving is None or not serving.accepting:
            return
        now = serving.releases.get(session.release.model)
        if now is None or now == session.release:
            return
        if process.serving is not None:
            process.serving.say({"shadow": None})
        to, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with to, source:
            about = {"order": session.order.id, "model": session.release.model, "fraction": session.order.fraction}
            if _pass(process.control, {"copies": True}, to) and _pass(serving.control, {"shadow": about}, source):
                process.serving = serving

    def _count(self, session: _Session, serving: Child | None) -> None:
        """Keep what the worker that serves has counted for this order."""
        if serving is not None and serving.copied is not None:
            order, counts = serving.copied
            if order == session.order.id:
                session.counts[serving.process.pid] = msgspec.convert(counts, Counts)
                if session.process is not None and session.process.serving is serving:
                    session.state = "running"

    # Ends ----------------------------------------------------------------------------------------------------------

    def _crashed(self, session: _Session, process: _Process) -> None:
        self._read(session, process)
        if session.process is None:
            return  # it said why
        code = process.popen.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        session.crashes += 1
        session.not_before = time.monotonic() + _AGAIN_SECONDS
        session.reason = f"its process ended ({how})"
        self._leave(session)
        logger.warning("%s release %d in the shadow: %s", session.release.model, session.release.number, session.reason)
        if session.crashes >= MAX_CRASHES:
            session.state = "failed"

    def _stop(self, session: _Session, state: ShadowState, reason: str) -> None:
        session.state, session.reason = state, reason
        logger.warning("%s release %d in the shadow: %s", session.release.model, session.release.number, reason)
        self._leave(session)

    def _leave(self, session: _Session) -> None:
        """End the process and keep its figures."""
        process, session.process = session.process, None
        if process is None:
            return
        if process.serving is not None:
            process.serving.say({"shadow": None})
        process.popen.kill()
        process.control.close()
        session.before = session.before.merged(process.figures)
        self._ended.append(process)

    def _reap(self) -> None:
        self._ended = [process for process in self._ended if process.popen.poll() is None]


def ordered(repository: ModelRepository) -> tuple[Release, Order] | None:
    """Return what is to be tried, None if there is no order that can be read for a release that is there."""
    for model in repository.models():
        if (found := repository.shadowed(model)) is None:
            continue
        number, data = found
        directory = repository.path(model, number)
        with contextlib.suppress(FormatError, FileNotFoundError):
            return Release(model, number, directory, stamp(directory)), Order.from_bytes(data)
    return None


def _pass(control: socket.socket, message: dict[str, Any], end: socket.socket) -> bool:
    """Send a message and a descriptor; return whether it was taken."""
    try:
        socket.send_fds(control, [json.dumps(message).encode()], [end.fileno()])
    except OSError:
        return False
    return True

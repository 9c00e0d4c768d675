"""The process that stays: holds the listening socket, follows the repository, starts one worker per set of releases.

A switch is a new worker: it loads and warms the new set, takes requests, and only then the old one drains. Memory goes
back with the process. A set that does not load, or a worker that crashes, changes nothing for the one that serves.

hand-over        both in memory for a moment; no request waits
stop-then-load   the old one ends first, where memory does not hold both; connections wait in the socket's queue
load-on-demand   loaded at the first connection, gone after a silence; for devices that do many things

No engine and no web server is imported here.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from edgeseal.runtime import serve_status, serving_child
from edgeseal.runtime.apart import Apart, answers_are_short
from edgeseal.runtime.counters import Tallies, Tally, merge, tallies
from edgeseal.runtime.engine_settings import most_threads
from edgeseal.runtime.follow import Release, wanted
from edgeseal.runtime.repository import memory_available
from edgeseal.runtime.serve_report import Reporter, plain, release_status
from edgeseal.runtime.serving_child import MAX_MESSAGE, Child, how_it_ended
from edgeseal.runtime.shadow_keeper import Keeper, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgeseal.runtime.bounds import Bounds
    from edgeseal.runtime.repository import ModelRepository

LOAD_SECONDS: Final = 300.0
WORKER_BYTES: Final = 96 * 2**20  # interpreter, engine and web server before any model, measured
_KEPT: Final = 16  # releases of a model whose counts are kept
_LOOK_SECONDS: Final = 0.2
_BACKOFF: Final = (0.1, 10.0)  # seconds before a crashed worker is started again: first, most

logger = logging.getLogger("edgeseal.serve")
Switch = Literal["auto", "hand-over", "stop-then-load", "load-on-demand"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. `idle_seconds`: how long load-on-demand keeps a silent worker."""

    bounds: Bounds
    threads: int = 0
    switch: Switch = "auto"
    idle_seconds: float = 300.0
    status_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A release that is current and does not load."""

    release: Release
    reason: str
    at: int

    def status(self) -> serve_status.FailedStatus:
        """Return what the status file says of it."""
        return serve_status.FailedStatus(self.release.number, self.reason[:400], self.at)


class Supervisor:
    """One listening socket, one repository, at most one worker that takes requests and one that is to follow it."""

    def __init__(
        self,
        listener: socket.socket,
        repository: ModelRepository,
        settings: Settings,
        *,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        """`announce` is called once, when requests are taken for the first time."""
        self._listener = listener
        self._repository = repository
        self._settings = settings
        self._announce: Callable[[], None] | None = announce
        self._serving: Child | None = None
        self._coming: Child | None = None
        self._leaving: list[Child] = []
        self._apart = Apart()
        self._good: dict[str, Release] = {}  # what served last: what a model goes back to when its next one fails
        self._since: dict[str, int] = {}
        self._failed: dict[str, Failure] = {}
        self._shadow = Keeper(repository, _resources(settings))
        self._history: Tallies = {}
        self._backoff = 0.0
        self._not_before = 0.0
        self._asked = settings.switch != "load-on-demand"  # whether somebody wants an answer
        self._mode: serve_status.Switch = "hand-over" if settings.switch == "auto" else settings.switch
        self._stopping = False
        self._reporter = Reporter(settings.status_file)
        self._selector = selectors.DefaultSelector()
        self._listening = False

    # The loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`, then until the last worker has ended."""
        wake, alarm = socket.socketpair()
        for end in (wake, alarm):
            end.settimeout(0)
        signal.set_wakeup_fd(alarm.fileno())
        self._selector.register(wake, selectors.EVENT_READ, wake)
        while not self._stopping or self._children():
            self._step()
        self._shadow.close()
        self._report()
        self._selector.close()

    def stop(self) -> None:
        """End in order; may be called from a signal handler."""
        self._stopping = True

    def _step(self) -> None:
        self._watch_listener()
        for key, _ in self._selector.select(_LOOK_SECONDS):
            if isinstance(key.data, Child):
                self._read(key.data)
            elif key.data == "listener":
                self._asked = True
            else:
                key.data.recv(4096)
        if self._stopping:
            self._shadow.end()
            self._end_all()
        else:
            self._follow()
            self._shadow.step(self._serving)
        self._reap()
        self._keep_apart()
        self._report()

    def _children(self) -> list[Child]:
        return [c for c in (self._serving, self._coming, *self._leaving) if c is not None]

    def _watch_listener(self) -> None:
        """Look for a first connection while nobody takes it."""
        wanted_now = not self._asked and self._serving is None and self._coming is None and not self._stopping
        if wanted_now and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ, "listener")
        elif self._listening and not wanted_now:
            self._selector.unregister(self._listener)
        self._listening = wanted_now

    # Following the repository --------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Start a worker for what should be served, unless that is what serves or is coming already."""
        target = self._target()
        if self._coming is not None:
            if self._coming.releases != target and not self._coming.loaded:
                self._discard_coming()  # what it loads is no longer wanted
            return
        if self._serving is not None and self._serving.releases == target:
            return
        if not self._asked or time.monotonic() < self._not_before:
            return
        if self._serving is not None and self._must_stop_first(target):
            self._retire_serving()
        if self._leaving and self._serving is None and self._mode != "hand-over":
            return  # its memory is not free yet
        self._coming = serving_child.start(
            self._listener,
            self._repository.root,
            target,
            failed={m: f.reason for m, f in self._failed.items()},
            threads=most_threads(self._settings.threads),
            bounds=self._settings.bounds,
            background=self._serving is not None,
        )
        self._selector.register(self._coming.control, selectors.EVENT_READ, self._coming)

    def _keep_apart(self) -> None:
        """Give a worker that loads a core of its own where callers of the other one would feel it there."""
        if self._coming is None:
            self._apart.only(None)
            return
        counted = merge(self._history, *(c.counted for c in self._children()))
        served = (tally for model in self._good for tally in counted.get(model, {}).values())
        self._apart.only(self._serving if answers_are_short(served) else None)

    def _target(self) -> dict[str, Release]:
        """Return what to serve: what is current, and instead of what failed here the one before, if it is there."""
        target = wanted(self._repository, self._good)
        for model, failure in list(self._failed.items()):
            if model not in target or target[model].stamp != failure.release.stamp:
                del self._failed[model]  # another release, or the same mended: it gets its chance
                continue
            before = self._before(failure.release)
            if before is not None:
                target[model] = before
            else:
                del target[model]
        return target

    def _before(self, release: Release) -> Release | None:
        """Return the release that served before this one and can go on, None if there is none."""
        before = self._good.get(release.model)
        if before is None or before.stamp == release.stamp or not self._can_go_on(before):
            return None
        return before

    def _can_go_on(self, release: Release) -> bool:
        """Whether a release can serve: its files are there, or a worker has it in memory."""
        return release.is_there() or (
            self._serving is not None and self._serving.releases.get(release.model) == release
        )

    def _must_stop_first(self, target: Mapping[str, Release]) -> bool:
        if self._settings.switch == "auto":
            need = WORKER_BYTES + sum(r.size() for r in target.values())
            fits = need <= memory_available()
            mode: serve_status.Switch = "hand-over" if fits else "stop-then-load"
            if mode != self._mode:
                logger.info("switches by %s from now on: a second worker needs about %d MiB", mode, need // 2**20)
            self._mode = mode
        return self._mode != "hand-over"

    # Workers -------------------------------------------------------------------------------------------------------

    def _read(self, child: Child) -> None:
        try:
            data = child.control.recv(MAX_MESSAGE)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(child.control)
            return
        message = json.loads(data)
        if "counted" in message:
            child.counted, child.copied = tallies(message["counted"]), message["copies"]
            if child is self._serving and message["idle"] > self._settings.idle_seconds:
                self._fall_asleep()
        elif "loaded" in message:
            self._take_loaded(child, message["failed"])
        elif "accepting" in message:
            self._take_over(child)

    def _take_loaded(self, child: Child, failed: Mapping[str, str]) -> None:
        """Let a worker take requests unless something that served until now would be worse off."""
        for model in failed:
            if model in child.releases:
                self._note_failure(child.releases[model], failed[model])
        if child is not self._coming:
            return
        if any(m in child.releases and m in self._good and self._can_go_on(self._good[m]) for m in failed):
            self._discard_coming()
            return
        child.releases = {m: r for m, r in child.releases.items() if m not in failed}
        child.loaded = True
        child.say({"accept": plain(self._history)})

    def _note_failure(self, release: Release, reason: str) -> None:
        now = wanted(self._repository, self._good).get(release.model)
        if now is None or now.stamp != release.stamp:
            return  # taken back while it was being read: no fault of the release
        before = self._before(release)
        after = f"release {before.number} goes on" if before else "nothing serves this model"
        logger.error("%s release %d does not load, %s: %s", release.model, release.number, after, reason)
        self._failed[release.model] = Failure(release, reason, int(time.time()))

    def _take_over(self, child: Child) -> None:
        child.accepting = True
        if child is not self._coming:
            return
        self._coming = None
        if self._serving is not None:
            self._retire_serving()
        for model, release in child.releases.items():
            if self._good.get(model) != release:
                logger.info("%s release %d serves", model, release.number)
                self._since[model] = int(time.time())
        for gone in self._good.keys() - child.releases.keys():
            logger.info("%s is no longer in the repository", gone)
        self._serving, self._good = child, dict(child.releases)
        if self._announce is not None:
            announce, self._announce = self._announce, None
            announce()

    def _retire_serving(self, *, at_once: bool = False) -> None:
        assert self._serving is not None  # noqa: S101 - asked by every caller
        self._serving.drain(at_once=at_once)
        self._leaving.append(self._serving)
        self._serving = None

    def _discard_coming(self) -> None:
        assert self._coming is not None  # noqa: S101 - asked by every caller
        self._coming.process.kill()
        self._coming.ending = time.monotonic()
        self._leaving.append(self._coming)
        self._coming = None

    def _fall_asleep(self) -> None:
        if self._settings.switch == "load-on-demand":
            logger.info(
                "no request for %.0f s: the models leave memory until the next one", self._settings.idle_seconds
            )
            self._retire_serving()
            self._asked = False

    def _end_all(self) -> None:
        if self._coming is not None:
            self._discard_coming()
        if self._serving is not None:
            self._retire_serving(at_once=True)

    # Ends ----------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        now = time.monotonic()
        for child in self._children():
            late = bool(child.ending and now > child.ending)
            if not child.loaded and now > child.started + LOAD_SECONDS:
                late = True
            if late and child.process.poll() is None:
                child.process.kill()
            if child.process.poll() is not None:
                self._buried(child)

    def _buried(self, child: Child) -> None:
        """Take a worker out of the books: what it counted stays, what it did not expect is noted."""
        while child.control in self._selector_map():
            self._read(child)
        child.control.close()
        self._history = _newest(merge(self._history, child.counted))
        if child in self._leaving:
            self._leaving.remove(child)
        else:
            self._crashed(child)
        if self._serving is not None:
            self._serving.say({"history": plain(self._history)})

    def _selector_map(self) -> set[object]:
        return {key.fileobj for key in self._selector.get_map().values()}

    def _crashed(self, child: Child) -> None:
        how = how_it_ended(child.process.returncode)
        first, most = _BACKOFF
        self._backoff = min(max(first, self._backoff * 2), most) if time.monotonic() - child.started < most else first
        self._not_before = time.monotonic() + self._backoff
        if child.loaded:
            self._count_crash(child)
        if child is self._coming:
            self._coming = None
            when = "as soon as it took requests" if child.loaded else "while it loaded"
            for release in (r for m, r in child.releases.items() if self._good.get(m) != r):
                if self._before(release):  # else it is tried again: what kills a worker may be over, and nothing serves
                    self._note_failure(release, f"the worker ended {when} ({how})")
            logger.error("a worker ended %s (%s); the next one in %.1f s", when, how, self._backoff)
            return
        self._serving = None
        logger.error("the worker ended (%s); it is started again in %.1f s", how, self._backoff)

    def _count_crash(self, child: Child) -> None:
        """Count it against all that were loaded: nobody knows which one it was."""
        for model, release in child.releases.items():
            self._history.setdefault(model, {}).setdefault(release.number, Tally()).crashes += 1

    # Status --------------------------------------------------------------------------------------------------------

    def status(self) -> serve_status.ServeStatus:
        """Return what the status file says."""
        total = merge(self._history, *(c.counted for c in self._children()))
        serving = self._serving.releases if self._serving else {}
        coming = self._coming.releases if self._coming else {}
        models = {}
        for model in sorted({*serving, *coming, *self._failed, *self._good}):
            failure = self._failed.get(model)
            now, then = serving.get(model), coming.get(model)
            models[model] = serve_status.ModelStatus(
                serving=now.number if now else None,
                since=self._since.get(model, 0) if now else 0,
                candidate=then.number if then and then != now else None,
                failed=failure.status() if failure else None,
                mode=self._mode,
                releases={str(n): release_status(tally) for n, tally in total.get(model, {}).items()},
                shadow=self._shadow.status(model),
            )
        return serve_status.ServeStatus(pid=os.getpid(), boot=serve_status.boot_id(), models=models)

    def _report(self) -> None:
        self._reporter.tell(self.status(), self._serving)


def _newest(history: Tallies) -> Tallies:
    """Forget old releases: a device that runs for years has many, and each message carries all that is kept."""
    return {m: {n: t for n, t in r.items() if n in sorted(r)[-_KEPT:]} for m, r in history.items()}


def _resources(settings: Settings) -> Resources:
    """Return what a release in the shadow gets: one core fewer than there are; nothing where memory holds one only."""
    cores = most_threads()
    alone = settings.switch in {"stop-then-load", "load-on-demand"}
    reason = f"edgeseal-serve runs with --switch {settings.switch}: one release in memory at a time" if alone else ""
    threads = min(most_threads(settings.threads), max(1, cores - 1))
    return Resources(threads, settings.bounds.seconds, WORKER_BYTES, reason)

"""Runs a new release on copies of live requests: `python -m edgeseal.runtime.shadow_worker`, started by the keeper.

Standard input is a control socket (one JSON object per message, SOCK_SEQPACKET):

    keeper -> worker   {"model", "release", "directory", "threads", "seconds", "memory_mb", "parent", "order"}    first
                       {"copies": true}     take copies from the descriptor that comes along, and no more from another
    worker -> keeper   {"loaded": true} or {"failed": reason} or {"skipped": reason}    at any time
                       {"figures": figures}     when they have changed, twice a second at most

It has the low priority that the keeper gives it, no network, no file to write, limited memory, and dies with its
parent. An inference that takes far longer than the old release's is ended and counts as not answered.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeseal.errors import EdgesealError, FormatError, IncompatibleError
from edgeseal.runtime import confine, shadow_copies
from edgeseal.runtime.engine import Stop
from edgeseal.runtime.shadow import Order
from edgeseal.runtime.shadow_figures import Difference, Figures, difference

if TYPE_CHECKING:
    from edgeseal.runtime.models import Loaded
    from edgeseal.runtime.shadow_copies import Copy

MAX_MESSAGE: Final = 2**18
TIMES_AS_LONG: Final = 20.0  # an inference of the new release may take, in processor time of one thread
LEAST_SECONDS: Final = 0.5  # and this in any case
STOP_SECONDS: Final = 10.0  # of processor time for one that was told to end: then the process does
_TELL_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
_LOAD_SECONDS: Final = 600
_ENDLESS: Final = 70  # exit code


@dataclass(frozen=True, slots=True)
class Limits:
    """Threads of one inference, seconds that one may take at all, MiB beside the release's own files."""

    threads: int
    seconds: float
    memory_mb: int


class _NoTimeError(Exception):
    """An inference that this device had no time for: no fault of the release."""


class ShadowWorker:
    """The process: loads, says so, compares until nobody is there to tell."""

    def __init__(self, control: socket.socket, order: Order, loaded: Loaded, limits: Limits) -> None:
        """Nothing is taken before `run`."""
        self._control = control
        self._order = order
        self._limits = limits
        self._loaded = loaded
        self._figures = Figures()
        self._told: tuple[float, Any] = (0.0, None)
        self._copies: socket.socket | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def run(self) -> None:
        """Compare until the keeper has gone."""
        while self._step():
            self._tell()

    def _step(self) -> bool:
        ready = {key.fileobj for key, _ in self._selector.select(_TELL_SECONDS)}
        if self._control in ready:
            return self._word()  # first: the copies may be another's from now on
        if self._copies is not None and self._copies in ready:
            self._take_copy(self._copies)
        return True

    def _word(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        if not data:
            return False
        self._leave()
        for descriptor in descriptors:
            self._copies = socket.socket(fileno=descriptor)
            self._copies.settimeout(None)
            self._selector.register(self._copies, selectors.EVENT_READ)
        return True

    def _leave(self) -> None:
        """Take no more copies from where they came until now."""
        if self._copies is not None:
            self._selector.unregister(self._copies)
            self._copies.close()
            self._copies = None

    def _take_copy(self, copies: socket.socket) -> None:
        try:
            copy = shadow_copies.receive(copies)
        except (OSError, FormatError):
            copy = None
        if copy is None:
            self._leave()
            return
        self._try(copy)
        shadow_copies.done(copies)

    # One copy ------------------------------------------------------------------------------------------------------

    def _try(self, copy: Copy) -> None:
        """Run one copy in a thread, so that one without an end can be ended."""
        stop = Stop()
        work = self._pool.submit(self._compare, copy, stop)
        try:
            found, seconds = self._finish(work, stop, copy.seconds)
        except _NoTimeError:
            return
        except MemoryError:
            self._no_memory()
        except Exception as e:  # noqa: BLE001 - an engine may raise anything
            self._figures.add_error(str(e) or type(e).__name__)
        else:
            differs = any(d.beyond(self._order.compare, self._order.tolerance) for d in found.values())
            self._figures.add(found, differs=differs, ratio=seconds / copy.seconds if copy.seconds else 1.0)

    def _no_memory(self) -> None:
        """Count an inference that did not fit, unless it was this device's memory that did not."""
        least = self._limits.memory_mb
        if least >= self._order.memory_mb:
            self._figures.add_error(f"it needs more than {least} MiB beside its own files")
            return
        self._tell(at_once=True)
        say(self._control, {"skipped": f"a request needs more than the {least} MiB that are free beside both releases"})
        sys.exit(0)

    def _finish(
        self, work: Future[tuple[dict[str, Difference], float]], stop: Stop, old_seconds: float
    ) -> tuple[dict[str, Difference], float]:
        """Wait for the comparison within its bounds; processor time, because others go before this process."""
        allowed = max(LEAST_SECONDS, TIMES_AS_LONG * old_seconds) * self._limits.threads
        ends, spent = time.monotonic() + self._limits.seconds, time.process_time()
        used = 0.0
        while not wait([work], _LOOK_SECONDS).done:
            used = time.process_time() - spent
            if used > allowed or time.monotonic() > ends:
                stop.now()
            if used > allowed + STOP_SECONDS:
                self._figures.add_error("an inference took far too long and did not end when it was told to")
                self._tell(at_once=True)
                os._exit(_ENDLESS)  # a thread in an engine cannot be ended otherwise
        try:
            return work.result()
        except TimeoutError:
            if used <= allowed:
                raise _NoTimeError from None
            raise TimeoutError(
                f"an inference was ended: it took more than {TIMES_AS_LONG:.0f} times as long as the old release's "
                f"{old_seconds * 1000:.3g} ms"
            ) from None

    def _compare(self, copy: Copy, stop: Stop) -> tuple[dict[str, Difference], float]:
        """Return the differences by output, and the seconds that the inference took. Raises what the engine raises."""
        from edgeseal.runtime import oip

        request = oip.parse_request(copy.request, copy.request_json)  # type: ignore[arg-type]
        expected = oip.parse_response(copy.answer, copy.answer_json)
        started = time.monotonic()
        got = self._loaded.engine.infer({n: v for n, (_, v) in request.inputs.items()}, list(expected), stop)
        seconds = time.monotonic() - started
        return {name: difference(got[name], value) for name, (_, value) in expected.items()}, seconds

    # Words ---------------------------------------------------------------------------------------------------------

    def _tell(self, *, at_once: bool = False) -> None:
        """Send the figures if there are others than last time."""
        at, before = self._told
        now = time.monotonic()
        if not at_once and now - at < _TELL_SECONDS:
            return
        figures = msgspec.to_builtins(self._figures)
        if figures != before:
            say(self._control, {"figures": figures})
        self._told = (now, figures)


def say(control: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; a keeper that has gone ends this process anyway."""
    try:
        control.send(json.dumps(message).encode())
    except OSError:
        sys.exit(1)


def main() -> int:
    """Do what the keeper says on the socket that is standard input."""
    control = socket.socket(fileno=os.dup(0))
    said = json.loads(control.recv(MAX_MESSAGE))
    order = msgspec.convert(said["order"], Order)
    # Processor time: more than there is in that time, on all cores.
    confine.limits((order.seconds + _LOAD_SECONDS) * (os.cpu_count() or 1), said["parent"])
    confine.network()
    try:
        loaded = _load(said)
    except (EdgesealError, ImportError) as e:
        say(control, {"failed": str(e)})
        return 1
    say(control, {"loaded": True})
    limits = Limits(said["threads"], said["seconds"], said["memory_mb"])
    ShadowWorker(control, order, loaded, limits).run()
    return 0


def _load(said: dict[str, Any]) -> Loaded:
    """Return the release, loaded within its memory. Raises EdgesealError or ImportError saying why it does not load."""
    from edgeseal.runtime.models import Models
    from edgeseal.runtime.probe_worker import limit_memory

    directory = Path(said["directory"])
    limit_memory(directory, said["memory_mb"], said["threads"])
    confine.files([directory])
    models = Models.load([(said["model"], said["release"], directory)], threads=said["threads"], failed={})
    if said["model"] not in models.loaded:
        raise IncompatibleError(models.failed.get(said["model"], "no reason given"))
    return models.loaded[said["model"]]


if __name__ == "__main__":
    sys.exit(main())

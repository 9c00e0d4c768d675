"""The loop of a run: all ports at once in one thread, ports that come and go, the scanner, the screen.

A journal entry is flushed while the other lines wait: their kernels hold 4 KB each, a third of a second at 115,200
baud, and an entry takes a few milliseconds.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final, Protocol

from edgeseal_host.station.cable import Cable
from edgeseal_host.station.lane import OVER, Lane, Phase
from edgeseal_host.station.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgeseal_host.station.cable import Problem
    from edgeseal_host.station.lane import View
    from edgeseal_host.station.scanner import Scanner
    from edgeseal_host.station.work import Work

LOOK_EVERY: Final = 0.5  # seconds between two looks for ports
TICK: Final = 0.1  # seconds; a screen that is older looks dead


class Audience(Protocol):
    """Whoever is told what happens."""

    def changed(self, view: View) -> None:
        """Take in that a port has another phase, step or device."""

    def tick(self, views: Sequence[View], tally: Tally, now: float) -> None:
        """Take in how everything is, ten times a second."""

    def said(self, text: str) -> None:
        """Take in what has nothing to do with one port."""


class Hall:
    """All ports of a run."""

    def __init__(
        self,
        work: Work,
        find: Callable[[], Sequence[str]],
        *,
        baud: int,
        audience: Audience,
        scanner: Scanner | None = None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`find` says which ports there are; `idle` is called in every round and must not block."""
        self._work = work
        self._find = find
        self._baud = baud
        self._audience = audience
        self._scanner = scanner
        self._idle = idle
        self._places: dict[str, tuple[Lane, Cable]] = {}
        self._seen: dict[str, tuple[object, ...]] = {}
        self._told: dict[str, Problem] = {}  # why a port cannot be opened
        self._stopping = False
        self.tally = Tally(work.clock())

    def stop(self) -> None:
        """End after this round; safe in a signal handler."""
        self._stopping = True

    def run(self) -> Tally:
        """Serve until stopped, or with `once` until every port has a verdict."""
        try:
            self._rounds()
        finally:
            for _, cable in self._places.values():
                cable.close()
        self._audience.tick(self.views(), self.tally, self._work.clock())
        return self.tally

    def _rounds(self) -> None:
        look_at = tick_at = 0.0
        while not self._over():
            now = self._work.clock()
            if now >= look_at:
                look_at = now + LOOK_EVERY
                self._look()
            self._serve()
            self._idle()
            self._tell_changes()
            if now >= tick_at:
                tick_at = now + TICK
                self._audience.tick(self.views(), self.tally, now)

    def _over(self) -> bool:
        lanes = [lane for lane, _ in self._places.values()]
        finished = self._work.once and bool(lanes) and all(lane.phase in OVER for lane in lanes)
        return self._stopping or finished

    def views(self) -> list[View]:
        """Return what is to be shown of every port, in the order they were found."""
        return [lane.view() for lane, _ in self._places.values()]

    # Ports -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        there = list(self._find())
        for path in there:
            if path not in self._places:
                self._places[path] = Lane(path, self._work), Cable(path, self._baud)
        for path, (lane, cable) in self._places.items():
            if path not in there:
                cable.close()
                lane.unplugged()
            elif not cable.is_open:
                self._open(lane, cable)

    def _open(self, lane: Lane, cable: Cable) -> None:
        """Open a port, or say why not the second time: a new one belongs to root until udev has looked at it."""
        before = cable.problem
        if cable.open():
            self._told.pop(cable.path, None)
            lane.plugged()
        elif cable.problem is not None and cable.problem == before:
            lane.blocked(cable.problem)
            if lane.phase is Phase.ABSENT and self._told.get(cable.path) != cable.problem:
                self._told[cable.path] = cable.problem
                self._audience.said(f"{cable.path}: {cable.problem.reason}; {cable.problem.remedy}")

    # One round ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        for lane, cable in self._open_places():
            cable.write(lane.outgoing())
            self._check(lane, cable)
        places = self._open_places()
        reads: list[Cable | Scanner] = [cable for _, cable in places]
        if self._scanner is not None and self._scanner.is_open:
            reads.append(self._scanner)
        writes = [cable for _, cable in places if cable.waiting]
        waits = [lane.wait() for lane, cable in places if not cable.waiting]
        ready, _, _ = select.select(reads, writes, [], min([TICK, *waits]))
        for lane, cable in places:
            if cable in ready and (data := cable.read()):
                lane.feed(data)
            self._check(lane, cable)
        if self._scanner is not None and self._scanner in ready:
            self._scan()

    def _open_places(self) -> list[tuple[Lane, Cable]]:
        return [(lane, cable) for lane, cable in self._places.values() if cable.is_open]

    def _check(self, lane: Lane, cable: Cable) -> None:
        """Tell the lane at once if its cable turned out to be gone."""
        if not cable.is_open:
            lane.unplugged()

    def _scan(self) -> None:
        assert self._scanner is not None  # noqa: S101 - the caller has checked
        for text in self._scanner.read():
            failed = [lane for lane, _ in self._places.values() if lane.phase is Phase.FAILED]
            if not text:
                for lane in failed:
                    lane.retry()
                if failed:
                    self._audience.said("trying again what failed")
                continue
            self._work.scanned.add(text.casefold())
            for lane in failed:
                if lane.serial.casefold() == text.casefold():
                    lane.retry()
            self._audience.said(f"scanned {text}")
        complaint = self._scanner.complaint()
        if complaint and (self._scanner.is_open or self._work.scan):
            self._audience.said(complaint)

    def _tell_changes(self) -> None:
        for lane, _ in self._places.values():
            view = lane.view()
            seen = (view.phase, view.step, view.serial, view.code, view.reason)
            if self._seen.get(lane.port) == seen:
                continue
            self._seen[lane.port] = seen
            if view.phase in OVER:
                self.tally.note(view)
            self._audience.changed(view)

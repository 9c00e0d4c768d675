"""The manufacturing line: devices an hour by baud rate and number of ports, and a dialogue's time against its bytes'.

The station's own run with its journal on disk; devices and lines, as slow as real ones, are another process. A device's
time is from the moment it was found to its lock in the journal; the floor is what the bytes of both directions, one
after the other, take on the line. Nobody plugs anything in: handling comes on top.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal_host.station import chain
from edgeseal_host.station.lane import Phase
from edgeseal_host.station.rehearsal import rehearsal
from edgeseal_host.station.run import Run
from edgeseal_host.station.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgeseal_host.station.lane import View
    from edgeseal_host.station.tally import Tally

BAUDS: Final = (115_200, 921_600)
PORTS: Final = (1, 4, 16)
ROUNDS: Final = 3  # the best of them: another program can only make it slower
BITS: Final = 10  # of a byte on the line: start, 8 data, stop


@dataclass(frozen=True)
class Measured:
    """One run. Seconds a device, medians of all ports; bytes of both directions."""

    per_hour: float
    seconds: float
    size: int

    def ratio(self, baud: int) -> float:
        """Time against that of the bytes alone."""
        return self.seconds / (self.size * BITS / baud)


class _Seconds:
    """Keeps how long each device took."""

    def __init__(self) -> None:
        self.passed: list[float] = []

    def changed(self, view: View) -> None:
        """Take in an end."""
        if view.phase is Phase.PASSED:
            self.passed.append(view.seconds)
        elif view.phase is Phase.FAILED:
            raise RuntimeError(f"{view.serial}: {view.reason}")

    def tick(self, views: Sequence[View], tally: Tally, now: float) -> None:
        """Nothing."""

    def said(self, text: str) -> None:
        """Nothing."""


def measure() -> dict[str, object]:
    """Return devices an hour and ratios for each baud rate and number of ports."""
    results: dict[str, object] = {}
    for baud in BAUDS:
        for ports in PORTS:
            best = max((_run(ports, baud) for _ in range(ROUNDS)), key=lambda m: m.per_hour)
            name = f"{baud}_baud_{ports}_ports"
            results[f"{name}_devices_per_hour"] = round(best.per_hour)
            results[f"{name}_ratio_to_bytes"] = round(best.ratio(baud), 3)
            results[f"{name}_bytes"] = best.size
    return results


def _run(count: int, baud: int) -> Measured:
    with tempfile.TemporaryDirectory(prefix="edgeseal-bench-") as place, _far_end(count, baud) as far_end:
        assert far_end.stdin is not None
        assert far_end.stdout is not None
        ports = json.loads(far_end.stdout.readline())
        kept = _Seconds()
        with rehearsal(keep=Path(place) / "station") as made, made.directory.journal() as journal:
            public, key = made.directory.public(), made.directory.keys.mldsa65(made.key, None)
            order = made.batch.order(station=public.name, pin=public.pin, now=int(time.time()))
            work = Work(order, journal, made.batch.naming, "bench", rate=baud / BITS, once=True)
            sign = lambda head: key.sign(head, chain.CONTEXT)  # noqa: E731 - as short as it is
            outcome = Run(work, lambda: ports, baud=baud, audience=kept, sign=sign)()
            per_hour = outcome.tally.per_hour(work.clock())
        far_end.stdin.write("\n")
        far_end.stdin.flush()
        sizes = json.loads(far_end.stdout.readline())
    return Measured(per_hour, statistics.median(kept.passed), int(statistics.median(sizes)))


@contextmanager
def _far_end(count: int, baud: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.line_far_end", str(count), str(baud)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=_root(), env=os.environ) as process:
        try:
            yield process
        finally:
            process.kill()


def _root() -> Path:
    return Path(__file__).parents[2]

"""A station's run over one port, to be killed at any system call; see `injected`.

    python -m tests.sim.station_once PLACE PORT [--forgetful | --unflushed] --errors FILE

PLACE is a station_world. A forgetful station does not write down what it grants, one that does not flush loses it with
the power: the negative controls.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.sim.forking import serve

from edgeseal_host.keys import KeyDirectory
from edgeseal_host.station import batch as batches
from edgeseal_host.station import chain
from edgeseal_host.station.book import PortBook
from edgeseal_host.station.directory import StationDirectory
from edgeseal_host.station.journal import Journal
from edgeseal_host.station.reports import PlainReport
from edgeseal_host.station.run import Run
from edgeseal_host.station.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Read what does not change, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("port")
    parser.add_argument("--forgetful", action="store_true")
    parser.add_argument("--unflushed", action="store_true")
    parser.add_argument("--errors", required=True)
    arguments = parser.parse_args()
    if arguments.forgetful:
        PortBook.granted = _forget  # type: ignore[assignment, method-assign]
    if arguments.unflushed:
        Journal._set_up = _unflushed(Journal._set_up)  # type: ignore[assignment, method-assign]
    serve(_step(arguments.place, arguments.port), arguments.errors)


def _forget(*_: Any) -> None:
    pass


def _unflushed(set_up: Callable[[Journal], None]) -> Callable[[Journal], None]:
    def changed(journal: Journal) -> None:
        set_up(journal)
        journal._connection.execute("PRAGMA synchronous=OFF")

    return changed


def _step(place: Path, port: str) -> Callable[[], int]:
    directory = StationDirectory(place / "station", KeyDirectory(place / "keys"))
    key = directory.keys.mldsa65("line-1", (place / "passphrase").read_bytes().strip())
    public = directory.public()
    batch = batches.load(place / "batch.toml")
    order = batch.order(station=public.name, pin=public.pin, now=int(time.time()))

    def step() -> int:
        with directory.journal() as journal:
            work = Work(order, journal, batch.naming, "anna", rate=200_000, patience=20, once=True)
            run = Run(
                work,
                lambda: [port],
                baud=115_200,
                audience=PlainReport(print),
                sign=lambda head: key.sign(head, chain.CONTEXT),
            )
            return run().exit_code

    return step


if __name__ == "__main__":
    main()

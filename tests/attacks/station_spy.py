"""Runs `edgeseal` as it is, and writes every secret a station makes to a file of its own: which no canary may find.

    python station_spy.py FILE FAULT edgeseal's arguments ...

FAULT: none, kill (SIGKILL when an offer was made, before it is kept), abort (the same with SIGABRT, which dumps core),
crash (a bug once a device has confirmed), or
leak-log, leak-journal, leak-crash: the same station with a careless line in it, for negative controls.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from edgeseal.provisioning.offer import make_offer
from edgeseal_host.station.book import PortBook
from edgeseal_host.station.journal import Journal
from edgeseal_host.station.reports import PlainReport

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN: list[bytes] = []


def spy(file: Path, fault: str) -> None:
    """Note what `make_offer` draws: PSK and k_rng."""

    def noting(*what: Any, random: Callable[[int], bytes]) -> Any:
        def noted(length: int) -> bytes:
            drawn = random(length)
            KNOWN.append(drawn)
            with file.open("a") as out:
                out.write(f"{drawn.hex()}\n")
            return drawn

        made = make_offer(*what, random=noted)
        if fault in {"kill", "abort"}:
            print(f"core files of {resource.getrlimit(resource.RLIMIT_CORE)[0]} bytes", flush=True)  # noqa: T201
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGABRT)
        return made

    mock.patch("edgeseal.provisioning.station.make_offer", noting).start()


def inject(fault: str) -> None:
    """Put a bug or a careless line into the station."""
    append, changed = Journal.append, PlainReport.changed

    def crash(*_: object) -> None:
        raise RuntimeError(f"a bug{KNOWN[0].hex() if fault == 'leak-crash' else ''}")

    def keep(self: Journal, kind: str, *, detail: dict[str, Any] | None = None, **values: Any) -> Any:
        seen = {"debug": KNOWN[0][4:20].hex()} if KNOWN else {}
        return append(self, kind, detail={**(detail or {}), **seen}, **values)

    def say(self: PlainReport, view: Any) -> None:
        changed(self, view)
        if KNOWN:
            self.said(f"debug: {KNOWN[0]!r}")

    if fault in {"crash", "leak-crash"}:
        mock.patch.object(PortBook, "provisioned", crash).start()
    elif fault == "leak-journal":
        mock.patch.object(Journal, "append", keep).start()
    elif fault == "leak-log":
        mock.patch.object(PlainReport, "changed", say).start()


if __name__ == "__main__":
    from edgeseal_host.cli import main

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))  # whoever started this may have forbidden core files already
    spy(Path(sys.argv[1]), sys.argv[2])
    inject(sys.argv[2])
    del sys.argv[1:3]
    main()

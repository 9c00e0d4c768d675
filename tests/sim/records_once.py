"""One action on carried records, in a child of a process that has imported everything: see `injected`.

ACTION is import (a carried file into a fleet server's directory, with a receipt) or acknowledge (that receipt at the
station). Errors that a command would report end with exit code 5; anything else is a traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.sim import forking

from edgeseal.durable import write_atomic
from edgeseal.errors import EdgesealError
from edgeseal_host.fleet import imports
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.station import receipts
from edgeseal_host.station.directory import StationDirectory

REPORTED = 5
NOW = 1_790_000_000


def act(action: str, world: Path) -> None:
    """Do what was asked for, or raise."""
    receipt = world / "receipt"
    if action == "import":
        with DataDirectory(world / "fleet").open() as fleet, (world / "stick").open("rb") as file:
            lines = list(imports.import_enrolments(fleet, file, now=NOW))
        write_atomic(receipt, receipts.write(line.digest for line in lines if line.digest))
    else:
        with StationDirectory(world / "station", KeyDirectory(world / "keys")).journal() as journal:
            receipts.acknowledge(journal, receipts.read(receipt.read_bytes()))


def step(action: str, world: str) -> int:
    """Act; exit code 5 for an error that is somebody's to handle."""
    try:
        act(action, Path(world))
    except (EdgesealError, OSError) as e:
        sys.stderr.write(f"reported: {type(e).__name__}: {e}\n")
        return REPORTED
    return 0


if __name__ == "__main__":
    action_, world_, option, errors = sys.argv[1:]
    assert option == "--errors"
    forking.serve(lambda: step(action_, world_), errors)

"""One action on a fleet's data directory, in a child of a process that has imported everything: see `injected`.

ACTION is publish (the publication in a file), rotate-data-key, rotate-online-keys, or rotate-wrap. Errors that a server
or a command would report end with exit code 5; anything else is a traceback.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tests.sim import forking

from edgeseal.errors import EdgesealError
from edgeseal_host.fleet import bodies
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.repository.verify import Publication

REPORTED = 5
NOW = 1_800_000_000


def act(action: str, data: DataDirectory, publication: dict[str, Any]) -> None:
    """Do what was asked for, or raise."""
    if action == "publish":
        with data.open() as fleet:
            fleet.publisher.recover()
            fleet.publisher.publish(Publication.from_json(publication), bodies.envelopes_of(publication))
    elif action == "rotate-data-key":
        data.rotate_data_key()
    elif action == "rotate-online-keys":
        data.rotate_online_keys()
    else:
        data.rotate("wrap", now=NOW)


def step(action: str, place: str, publication: dict[str, Any]) -> int:
    """Act; exit code 5 for an error that is somebody's to handle."""
    try:
        act(action, DataDirectory(Path(place)), publication)
    except (EdgesealError, OSError, sa.exc.SQLAlchemyError, sqlite3.Error) as e:
        sys.stderr.write(f"reported: {type(e).__name__}: {e}\n")
        return REPORTED
    return 0


if __name__ == "__main__":
    action_, place_, file, option, errors = sys.argv[1:]
    assert option == "--errors"
    body = json.loads(Path(file).read_text())
    forking.serve(lambda: step(action_, place_, body), errors)

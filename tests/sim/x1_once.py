"""One group of X1 exchanges against a fleet's data directory, in a child of a process that has imported everything.

Answers are printed in hex, one a line, as soon as the server would send them. MODE is `as built`, or one of two ways to
get it wrong: `unflushed` (commits without a flush) and `early` (answers before the commit).
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sim import forking

from edgeseal_host.fleet import exchanges, schema
from edgeseal_host.fleet.checkin import CheckIn
from edgeseal_host.fleet.registry import Group, SqlRegistry
from edgeseal_host.fleet.rings import KeyRing
from edgeseal_host.fleet.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_800_000_000


class EarlyRegistry(SqlRegistry):
    """Lets the answer out first."""

    @contextmanager
    def group(self) -> Iterator[Group]:
        """Leave the transaction open; `settle` commits it."""
        self._writer.execute("BEGIN IMMEDIATE")
        yield Group(self._writer, self._vault)

    def settle(self) -> None:
        """Commit, too late."""
        self._writer.execute("COMMIT")


def step(data: Path, requests: Path, mode: str) -> int:
    """Answer every request of a file, one in hex a line."""
    if mode == "unflushed":
        schema.SYNCHRONOUS = "OFF"  # type: ignore[misc]
    database = schema.open_database(data / "fleet.db")
    registry = (EarlyRegistry if mode == "early" else SqlRegistry)(database, Vault.load(data / "secrets/data.key"))
    answered = exchanges.answer_group(
        [bytes.fromhex(line) for line in requests.read_text().split()],
        ring=KeyRing.load(data / "secrets/session.ring").ring(),
        registry=registry,
        handler=CheckIn(clock=lambda: NOW),
        now=NOW,
        random=os.urandom,
    )
    for found in answered:
        if isinstance(found.answer, Exception):
            raise found.answer
        os.write(1, found.answer.hex().encode() + b"\n")
    if isinstance(registry, EarlyRegistry):
        registry.settle()
    database.close()
    return 0


if __name__ == "__main__":
    data_, requests_, mode_, option, errors = sys.argv[1:]
    assert option == "--errors"
    with suppress(BrokenPipeError):
        forking.serve(lambda: step(Path(data_), Path(requests_), mode_), errors)

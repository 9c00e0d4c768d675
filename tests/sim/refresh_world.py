"""A device that has release 1, a repository that has release 2, and what must hold whatever interrupts the refresh."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeseal.errors import EdgesealError
from edgeseal.trust import Trust
from edgeseal_host.testing.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000
MODEL = "bearing"
ONE, TWO = f"models/{MODEL}/1.cbor", f"models/{MODEL}/2.cbor"


class BrickedError(AssertionError):
    """The device ended with neither the old nor the new state, or forgot what it had accepted."""


@dataclass
class RefreshWorld:
    """`before` is the trust directory of a device that knows release 1 only; `old` and `new` are what is served."""

    repository: Repository
    before: Path
    root: Path
    old: dict[str, bytes]
    new: dict[str, bytes]
    rotated: bool

    @classmethod
    def make(cls, directory: Path, *, rotated: bool) -> RefreshWorld:
        """Publish release 1, let a device refresh, publish release 2; `rotated`: under a new timestamp key too."""
        repository = Repository([MODEL], now=NOW)
        repository.add_release(MODEL, 1, b"manifest one")
        repository.publish()
        root = directory / "provisioned.json"
        root.write_bytes(repository.root_bytes(1))
        old = repository.freeze()
        world = cls(repository, directory / "device" / "trust", root, old, {}, rotated)
        world.trust(world.before).refresh()
        repository.add_release(MODEL, 2, b"manifest two")
        if rotated:
            repository.rotate("timestamp")
        repository.publish()
        world.new = repository.freeze()
        return world

    def trust(self, directory: Path) -> Trust:
        """Start the agent's view of metadata on `directory`."""
        root = self.root.read_bytes()
        return Trust(directory, bootstrap=root, fetcher=self.repository, clock=lambda: NOW + 1.0)

    def copy(self, directory: Path) -> Path:
        """Return a fresh copy of the device before the refresh."""
        return shutil.copytree(self.before, directory, symlinks=True)

    def check(self, directory: Path, where: str) -> str:
        """Return which release is newest there, "one" or "two".

        Raises BrickedError unless it is one of them, the next refresh completes, and nobody can then go back.
        """
        state = self._newest(directory)
        if state == "two":
            self._refuses_yesterday(directory, where)
        # A root that takes a key away counts at once: until the next refresh nothing signed with it is installable.
        elif state == "none" and not (self.rotated and self.trust(directory).versions().get("root") == 2):
            raise BrickedError(f"{where}: neither release is installable")
        self.repository.files = self.new
        try:
            self.trust(directory).refresh()
        except EdgesealError as e:
            raise BrickedError(f"{where}: the next refresh fails: {e}") from e
        if self._newest(directory) != "two":
            raise BrickedError(f"{where}: the next refresh does not bring release 2")
        self._refuses_yesterday(directory, where)
        return state

    def _newest(self, directory: Path) -> str:
        trust = self.trust(directory)
        try:
            return "two" if trust.target(TWO) else "one" if trust.target(ONE) else "none"
        except EdgesealError:
            return "none"

    def _refuses_yesterday(self, directory: Path, where: str) -> None:
        """Replay a mirror's full copy of yesterday."""
        self.repository.files = self.old
        try:
            self.trust(directory).refresh()
        except EdgesealError:
            return
        finally:
            self.repository.files = self.new
        raise BrickedError(f"{where}: yesterday's state was accepted")

"""A repository without models and a client that has its first root only: for tests of the client workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from edgeseal.trust import Trust
from edgeseal_host.testing.repository import Repository, new_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOW = 1_800_000_000
DAY = 86_400
TOP = ("root", "timestamp", "snapshot", "targets")


class World:
    """A repository without models, and a client that has its first root only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.time: float = NOW
        self.repository = Repository(now=NOW, root_keys=1, threshold=1)
        self.root = self.repository.root_bytes(1)

    @property
    def client(self) -> Trust:
        return Trust(self.directory / "trust", bootstrap=self.root, fetcher=self.repository, clock=lambda: self.time)

    def refresh(self, *paths: str) -> None:
        result = self.client.refresh(models=(), paths=paths)
        for error in result.refused.values():
            raise error

    def asked(self) -> list[str]:
        names = [n.removeprefix("metadata/").removesuffix(".json") for n in self.repository.requests]
        self.repository.requests.clear()
        return names


def delegate(repository: Repository, edges: Sequence[tuple[str, str, Sequence[str], bool]]) -> None:
    """Make roles: by whom, name, paths, terminating. Published with snapshot and timestamp."""
    names = ["targets"]
    for delegator, name, paths, terminating in edges:
        signed = repository.metadata[delegator].signed
        if signed.delegations is None:
            signed.delegations = Delegations({}, {})
        if name not in repository.signers:
            repository.signers[name] = [new_key()]
            repository.metadata[name] = Metadata(Targets())
            names.append(name)
        key = repository.signers[name][0].public_key
        signed.delegations.keys[key.keyid] = key
        signed.delegations.roles[name] = DelegatedRole(name, [key.keyid], 1, terminating, list(paths))
    repository.publish(*names, "snapshot", "timestamp")

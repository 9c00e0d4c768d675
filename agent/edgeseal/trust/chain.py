"""Committed metadata, verified again from the root down each time somebody acts on it. No network, no writing.

Why again: a card tears and flips bits, time passes, and a root committed since may have taken keys away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edgeseal.errors import FormatError, IntegrityError, RefusedError, TemporaryError
from edgeseal.trust import rules
from edgeseal.trust.generations import COMPLETE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tuf.api.metadata import MetaFile, TargetFile

T = TypeVar("T", Root, Snapshot, Targets, Timestamp)
_MAX_ROLES = 32  # what tuf's client visits in one search
_HINT = "edgeseal-agent update fetches what is missing; what is installed keeps running"


@dataclass(frozen=True)
class Chain:
    """Verified metadata of one moment. Made by `load` only."""

    files: Mapping[str, bytes]
    root: Root
    snapshot: Snapshot
    targets: Targets
    now: float

    @classmethod
    def load(cls, files: Mapping[str, bytes], now: float) -> Chain:
        """Verify a generation (or the kept set of an interrupted one) under its newest root.

        Raises RefusedError, or TemporaryError if there is nothing yet.
        """
        if not files:
            raise TemporaryError("no metadata has been fetched yet", hint="run edgeseal-agent update")
        if any(name.startswith(COMPLETE) for name in files):
            kept = {n.removeprefix(COMPLETE): d for n, d in files.items() if n.startswith(COMPLETE)}
            files = {**kept, "root.json": files.get("root.json", b"")}
        root = _open(files, "root", Root, None, now)
        timestamp = _open(files, "timestamp", Timestamp, root, now)
        snapshot = _open(files, "snapshot", Snapshot, root, now, timestamp.snapshot_meta)
        targets = _open(files, "targets", Targets, root, now, snapshot.meta.get("targets.json"))
        return cls(files, root, snapshot, targets, now)

    def find(self, path: str) -> TargetFile | None:
        """Return what is listed under `path`, searching roles in TUF's order (pre-order, depth first).

        Raises RefusedError, or TemporaryError if a role on the way has not been fetched.
        """
        for role in self._search(path):
            if path in role.targets:
                return role.targets[path]
        return None

    def listed(self, directory: str, example: str) -> Iterator[tuple[str, TargetFile]]:
        """Yield every target below `directory`; the roles searched are those responsible for `example` in it."""
        seen: set[str] = set()
        for role in self._search(f"{directory}/{example}"):
            for path, target in role.targets.items():
                if path.startswith(directory + "/") and path not in seen:
                    seen.add(path)
                    yield path, target

    def _search(self, path: str) -> Iterator[Targets]:
        stack: list[tuple[str, Targets | None]] = [("targets", None)]
        visited: set[str] = set()
        while stack and len(visited) <= _MAX_ROLES:
            name, parent = stack.pop()
            if name in visited:
                continue
            visited.add(name)
            role = self.targets if parent is None else self._role(name, parent)
            yield role
            children = []
            for child, terminating in role.delegations.get_roles_for_target(path) if role.delegations else ():
                children.append((child, role))
                if terminating:
                    stack.clear()
                    break
            stack.extend(reversed(children))

    def _role(self, name: str, parent: Targets) -> Targets:
        if f"{quote(name, '')}.json" not in self.files:
            raise TemporaryError(f"the metadata of role {name} has not been fetched", hint=_HINT)
        return _open(self.files, name, Targets, parent, self.now, self.snapshot.meta.get(f"{name}.json"))


def _open(
    files: Mapping[str, bytes],
    role: str,
    kind: type[T],
    delegator: Root | Targets | None,
    now: float,
    meta: MetaFile | None = None,
) -> T:
    try:
        data = files[f"{quote(role, '')}.json"]
        metadata = Metadata[T].from_bytes(data)
        if type(metadata.signed) is not kind:
            raise FormatError(f"committed {role} holds {metadata.signed.type} metadata", hint=_HINT)
        # A root signs itself: enough against damage; its chain from the provisioned root was checked at refresh.
        by = delegator if delegator is not None else metadata.signed
        by.verify_delegate(role, metadata.signed_bytes, metadata.signatures)  # type: ignore[union-attr]
        if kind in {Snapshot, Targets}:
            _check_meta(role, data, metadata.signed.version, meta)
    except KeyError as e:
        raise RefusedError(f"committed metadata lacks {role}", hint=_HINT) from e
    except (RepositoryError, ValueError) as e:
        raise IntegrityError(f"committed metadata of role {role} does not verify: {e}", hint=_HINT) from e
    if metadata.signed.expires.timestamp() <= now:
        raise rules.expired(role, metadata.signed.version, metadata.signed.expires.timestamp(), now)
    return metadata.signed


def _check_meta(role: str, data: bytes, version: int, meta: MetaFile | None) -> None:
    """TUF §5.5.2, §5.5.4, §5.6.2, §5.6.4: the role above names version and hashes."""
    if meta is None:
        raise RefusedError(f"committed snapshot does not list {role}", hint=_HINT)
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as e:
        raise IntegrityError(f"committed metadata of role {role} is not what is listed: {e}", hint=_HINT) from e
    if version != meta.version:
        raise RefusedError(f"committed {role} is version {version}; listed is {meta.version}", hint=_HINT)

"""What is published, in the registry's rows and in the public files; and which of the two is newer.

The registry is always written first, so public files that are ahead of it mean that it came from a backup. What they
say is taken over only after it was verified like any publication. Not here: what may be published (publishing.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, T, Targets, Timestamp

from edgeseal.errors import IntegrityError
from edgeseal_host.fleet.objects import TIMESTAMP
from edgeseal_host.fleet.schema import metadata_file
from edgeseal_host.repository import metadata
from edgeseal_host.repository.verify import Publication, Published

if TYPE_CHECKING:
    from edgeseal_host.fleet.objects import ObjectDirectory
    from edgeseal_host.repository.verify import Verified


def load(connection: sa.Connection) -> Published | None:
    """Return what the registry has; None before a root is trusted."""
    latest: dict[str, bytes] = {}
    for row in connection.execute(sa.select(metadata_file).order_by(metadata_file.c.version)):
        latest[row.role] = row.data
    if "root" not in latest:
        return None
    top = {name: latest.pop(name, None) for name in ("targets", "snapshot", "timestamp")}
    root = latest.pop("root")
    return Published(root, top["targets"], latest, top["snapshot"], top["timestamp"])


def store(connection: sa.Connection, role: str, version: int, data: bytes) -> None:
    """Add one file; roots keep all their versions."""
    connection.execute(sa.insert(metadata_file).values(role=role, version=version, data=data))


def store_only(connection: sa.Connection, role: str, version: int, data: bytes) -> None:
    """Replace a role's file."""
    connection.execute(sa.delete(metadata_file).where(metadata_file.c.role == role))
    store(connection, role, version, data)


def store_state(connection: sa.Connection, state: Published) -> None:
    """Replace everything but the roots; a role that is delegated no more goes."""
    connection.execute(sa.delete(metadata_file).where(metadata_file.c.role != "root"))
    for role, data in {"targets": state.targets, **state.roles}.items():
        if data is not None:
            store(connection, role, version(data, Targets), data)
    if state.snapshot is not None and state.timestamp is not None:
        store(connection, "snapshot", version(state.snapshot, Snapshot), state.snapshot)
        store(connection, "timestamp", version(state.timestamp, Timestamp), state.timestamp)


def version(data: bytes, kind: type[T]) -> int:
    """Version number of metadata that was verified when it was stored."""
    return metadata.read(data, kind, what=f"{kind.type}.json").signed.version


@dataclass(frozen=True, slots=True)
class Served:
    """What the public files say beyond the registry: nothing verified yet."""

    publication: Publication
    snapshot: bytes
    timestamp: bytes

    def state(self, verified: Verified) -> Published:
        """Return the state, after its publication was verified.

        Raises IntegrityError unless the verified root's online keys signed snapshot and timestamp.
        """
        root, data = verified.root.signed, verified.data
        for role, signed in (("snapshot", self.snapshot), ("timestamp", self.timestamp)):
            parsed = Metadata.from_bytes(signed)
            if not root.get_verification_result(role, parsed.signed_bytes, parsed.signatures).verified:
                raise IntegrityError(f"{role}.json among the public files is not signed by the key that root names")
        roles = {name: data[name] for name in verified.roles}
        return Published(data["root"], data["targets"], roles, self.snapshot, self.timestamp)


def ahead(objects: ObjectDirectory, current: Published) -> Served | None:
    """Return what the public files have beyond the registry; None if they are not ahead of it.

    Raises IntegrityError or FormatError if they do not fit together, OSError.
    """
    if not objects.has_file(TIMESTAMP):
        return None
    timestamp = objects.read_file(TIMESTAMP)
    pointer = metadata.read(timestamp, Timestamp, what="timestamp.json").signed
    if current.timestamp is not None and pointer.version <= version(current.timestamp, Timestamp):
        return None
    snapshot = _pinned(objects, "snapshot", pointer.snapshot_meta)
    meta = metadata.read(snapshot, Snapshot, what="snapshot.json").signed.meta
    targets = _pinned(objects, "targets", meta["targets.json"])
    delegations = metadata.read(targets, Targets, what="targets.json").signed.delegations
    delegated = (delegations.roles if delegations else None) or {}
    roles = {role: _pinned(objects, role, meta[f"{role}.json"]) for role in delegated if f"{role}.json" in meta}
    return Served(Publication(_roots(objects, current), targets, roles), snapshot, timestamp)


def _roots(objects: ObjectDirectory, current: Published) -> tuple[bytes, ...]:
    found, number = [], version(current.root, Root) + 1
    while objects.has_file(name := metadata.metadata_file("root", number)):
        found.append(objects.read_file(name))
        number += 1
    return tuple(found)


def _pinned(objects: ObjectDirectory, role: str, meta: MetaFile) -> bytes:
    data = objects.read_file(metadata.metadata_file(role, meta.version))
    if (meta.hashes or {}).get("sha256") != hashlib.sha256(data).hexdigest():
        raise IntegrityError(
            f"{role} version {meta.version} among the public files is not the one that was signed",
            hint="restore the objects directory from backup too",
        )
    return data

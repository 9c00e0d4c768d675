"""What a fleet server has published, followed on disk as a device follows it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

from edgeseal_host.repository.metadata import target_file

if TYPE_CHECKING:
    from pathlib import Path


def assert_consistent(objects: Path) -> dict[str, int]:
    """Follow timestamp -> snapshot -> roles -> targets on disk as a device does; returns the roles' versions."""
    if not (objects / "metadata/timestamp.json").exists():
        return {}
    timestamp = Metadata[Timestamp].from_bytes((objects / "metadata/timestamp.json").read_bytes()).signed
    meta = timestamp.snapshot_meta
    data = (objects / f"metadata/{meta.version}.snapshot.json").read_bytes()
    meta.verify_length_and_hashes(data)
    snapshot = Metadata[Snapshot].from_bytes(data).signed
    for name, entry in snapshot.meta.items():
        data = (objects / f"metadata/{entry.version}.{name}").read_bytes()
        entry.verify_length_and_hashes(data)
        for path, target in Metadata[Targets].from_bytes(data).signed.targets.items():
            found = (objects / target_file(path, target.hashes["sha256"])).read_bytes()
            assert hashlib.sha256(found).hexdigest() == target.hashes["sha256"]
    return {name: entry.version for name, entry in snapshot.meta.items()}

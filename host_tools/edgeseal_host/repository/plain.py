"""A whole repository for a plain web server or a disk, with snapshot and timestamp signed by a local key.

    <repository>/online/snapshot.json, timestamp.json     the last ones signed here

Each directory written gets everything, and version numbers never go back from one directory to the next: a device may
see both. Not here: what a fleet server serves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Snapshot, T, Timestamp

from edgeseal.durable import write_atomic
from edgeseal_host.repository import metadata
from edgeseal_host.repository.online import sign_online
from edgeseal_host.repository.verify import Published

if TYPE_CHECKING:
    from pathlib import Path

    from securesystemslib.signer import Signer

    from edgeseal_host.repository.layout import RepositoryDirectory
    from edgeseal_host.repository.verify import Verified

ONLINE: Final = "online"


def write(repository: RepositoryDirectory, verified: Verified, out: Path, signer: Signer) -> None:
    """Write everything that is published after `verified` below `out`; the timestamp last, so that nothing dangles."""
    kept = repository.path / ONLINE
    places = (kept, out / "metadata")
    previous = replace(
        repository.published() or Published(verified.data["root"]),
        snapshot=_newest([p / "snapshot.json" for p in places], Snapshot),
        timestamp=_newest([p / "timestamp.json" for p in places], Timestamp),
    )
    state = sign_online(verified, previous, snapshot=signer, timestamp=signer, now=metadata.now_utc())
    assert state.snapshot is not None  # noqa: S101 - just signed
    assert state.timestamp is not None  # noqa: S101 - just signed
    _put(kept, {"snapshot.json": state.snapshot, "timestamp.json": state.timestamp})  # a number is never used twice
    version = metadata.read(state.snapshot, Snapshot, what="snapshot.json").signed.version
    files = _files(repository, verified)
    files |= {f"metadata/{version}.snapshot.json": state.snapshot, "metadata/snapshot.json": state.snapshot}
    _put(out, files | {"metadata/timestamp.json": state.timestamp})


def _files(repository: RepositoryDirectory, verified: Verified) -> dict[str, bytes]:
    """Relative path -> bytes of every root, every current role and every target that is listed."""
    roots = repository.roots() | dict(verified.new_roots) | {verified.root.signed.version: verified.data["root"]}
    files = {metadata.metadata_file("root", version): data for version, data in sorted(roots.items())}
    signed = {"targets": verified.targets.signed, **{name: role.signed for name, role in verified.roles.items()}}
    files |= {metadata.metadata_file(role, s.version): verified.data[role] for role, s in signed.items()}
    for path, target in verified.listed.items():
        name = metadata.target_file(path, target.hashes["sha256"])
        new = verified.new_files.get(path)
        files[name] = (repository.published_path / name).read_bytes() if new is None else new
    return files


def _newest(paths: list[Path], kind: type[T]) -> bytes | None:
    """Return the one of the highest version, None if there is none."""
    found = [p.read_bytes() for p in paths if p.is_file()]
    return max(found, key=lambda data: metadata.read(data, kind, what=f"{kind.type}.json").signed.version, default=None)


def _put(directory: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, data, mode=0o644)

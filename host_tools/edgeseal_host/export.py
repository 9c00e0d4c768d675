"""A release for a device without a network: metadata, manifest, table, chunks and a ticket on removable media.

    metadata/…  targets/…        as the fleet server serves them now      tables/…  chunks/…   from the bundle
    tickets/<kid_D>/<model>/<release>     the content key, sealed by the fleet server to one device

The layout is that of a static web server; `edgeseal-agent install` reads it as a directory or as a ustar archive.
"""

from __future__ import annotations

import shutil
import tarfile
from typing import TYPE_CHECKING, Final

import urllib3
from tuf.api.metadata import Snapshot, Timestamp

from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.errors import RefusedError, TemporaryError, UsageError
from edgeseal_host.bundle import BundleDirectory, fsync_file
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgeseal_host.repository.layout import RepositoryDirectory

MAX_FILE: Final = 8 * 2**20
_OK: Final = 200


def export(
    bundle_path: Path,
    repository: RepositoryDirectory,
    out: Path,
    *,
    url: str,
    ca_file: str | None,
    tickets: dict[str, bytes],
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write everything a device needs below `out`; `tickets` maps the device's kid (hex) to its ticket.

    Returns bytes written. Raises UsageError if `out` holds something else, TemporaryError if the server is gone.
    """
    bundle = BundleDirectory(bundle_path)
    manifest = bundle.manifest()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "metadata").is_dir())):
        raise UsageError(f"{out} holds something else", hint="name an empty or a new directory")
    written = 0
    for kind in ("tables", "chunks"):
        for path in bundle.objects(kind):
            place = out / kind / path.name[:2] / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            fsync_file(place)
            written += path.stat().st_size
            progress(path.stat().st_size)
    for kid, ticket in tickets.items():
        written += _put(out / "tickets" / kid / manifest.model / str(manifest.release), ticket)
    # Last, so that media pulled out too early show a device the former state, not a half one.
    for name, data in _signed(repository, url, ca_file):
        written += _put(out / name, data)
    for directory in (out, *(p for p in out.rglob("*") if p.is_dir())):
        fsync_directory(directory)
    return written


def pack(directory: Path, archive: Path) -> None:
    """Write a directory as a ustar archive, which is all that the agent reads."""
    with archive.open("wb") as f, tarfile.open(fileobj=f, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            info = tar.gettarinfo(path, str(path.relative_to(directory)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            with path.open("rb") as content:
                tar.addfile(info, content)
    fsync_file(archive)


def _signed(repository: RepositoryDirectory, url: str, ca_file: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield metadata and targets: timestamp and snapshot from the server, which signs them, the rest as published."""
    pools = urllib3.PoolManager(ca_certs=ca_file, retries=False, timeout=30.0)
    base = url.rstrip("/")
    timestamp = _get(pools, f"{base}/metadata/timestamp.json")
    version = metadata.read(timestamp, Timestamp, what="the server's timestamp.json").signed.snapshot_meta.version
    snapshot = _get(pools, f"{base}/metadata/{version}.snapshot.json")
    for path in sorted(repository.published_path.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(repository.published_path)), path.read_bytes()
    _check_same(repository, snapshot)
    yield f"metadata/{version}.snapshot.json", snapshot
    yield "metadata/timestamp.json", timestamp


def _check_same(repository: RepositoryDirectory, snapshot: bytes) -> None:
    """Raise RefusedError unless the server's snapshot lists what this directory has published."""
    meta = metadata.read(snapshot, Snapshot, what="the server's snapshot.json").signed.meta
    for name, entry in meta.items():
        role = name.removesuffix(".json")
        place = repository.published_path / metadata.metadata_file(role, entry.version)
        if not place.is_file():
            raise RefusedError(
                f"the server lists {role} version {entry.version}, which is not in {repository.path}",
                hint="somebody else has published: use their repository directory",
            )


def _get(pools: urllib3.PoolManager, url: str) -> bytes:
    try:
        response = pools.request("GET", url, redirect=False, preload_content=False)
        data = response.read(MAX_FILE + 1)
    except urllib3.exceptions.HTTPError as e:
        raise TemporaryError(f"{url} cannot be fetched: {type(e).__name__}") from e
    finally:
        pools.clear()
    if response.status != _OK or len(data) > MAX_FILE:
        raise TemporaryError(
            f"{url}: HTTP status {response.status}, {len(data)} bytes", hint="is this the fleet server's address?"
        )
    return bytes(data)


def _put(path: Path, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data, mode=0o644)
    return len(data)

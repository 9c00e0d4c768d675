"""A release for a device without a network: metadata, manifest, table, chunks and a ticket on removable media.

    metadata/…  targets/…        as the fleet server serves them now      tables/…  chunks/…   from the bundle
    tickets/<kid_D>/<model>/<release>     the content key, sealed by the fleet server to one device

The layout is that of a static web server; `edgeseal-agent install` reads it as a directory or as a ustar archive.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from typing import TYPE_CHECKING, Final

import urllib3

from edgeseal.errors import RefusedError, TemporaryError, UsageError
from edgeseal_host.bundle import BundleDirectory
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
    if out.exists() and any(out.iterdir()) and not (out / "metadata").is_dir():
        raise UsageError(f"{out} holds something else", hint="name an empty or a new directory")
    written = 0
    for name, data in _signed(repository, url, ca_file):
        written += _put(out / name, data)
    for kind in ("tables", "chunks"):
        for path in bundle.objects(kind):
            place = out / kind / path.name[:2] / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            written += path.stat().st_size
            progress(path.stat().st_size)
    for kid, ticket in tickets.items():
        written += _put(out / "tickets" / kid / manifest.model / str(manifest.release), ticket)
    return written


def pack(directory: Path, archive: Path) -> None:
    """Write a directory as a ustar archive, which is all that the agent reads."""
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            info = tar.gettarinfo(path, str(path.relative_to(directory)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            with path.open("rb") as f:
                tar.addfile(info, f)


def _signed(repository: RepositoryDirectory, url: str, ca_file: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield metadata and targets: timestamp and snapshot from the server, which signs them, the rest as published."""
    pools = urllib3.PoolManager(ca_certs=ca_file, retries=False, timeout=30.0)
    timestamp = _get(pools, f"{url.rstrip('/')}/metadata/timestamp.json")
    version = json.loads(timestamp)["signed"]["meta"]["snapshot.json"]["version"]
    snapshot = _get(pools, f"{url.rstrip('/')}/metadata/{version}.snapshot.json")
    for path in sorted(repository.published_path.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(repository.published_path)), path.read_bytes()
    _check_same(repository, snapshot)
    yield f"metadata/{version}.snapshot.json", snapshot
    yield "metadata/timestamp.json", timestamp


def _check_same(repository: RepositoryDirectory, snapshot: bytes) -> None:
    """Raise RefusedError unless the server's snapshot lists what this directory has published."""
    meta = json.loads(snapshot)["signed"]["meta"]
    for name, entry in meta.items():
        role = name.removesuffix(".json")
        place = repository.published_path / metadata.metadata_file(role, entry["version"])
        if not place.is_file():
            raise RefusedError(
                f"the server lists {role} version {entry['version']}, which is not in {repository.path}",
                hint="somebody else has published: use their repository directory",
            )


def _get(pools: urllib3.PoolManager, url: str) -> bytes:
    try:
        response = pools.request("GET", url, redirect=False)
    except urllib3.exceptions.HTTPError as e:
        raise TemporaryError(f"{url} cannot be fetched: {type(e).__name__}") from e
    if response.status != _OK or len(response.data) > MAX_FILE:
        raise TemporaryError(f"{url}: HTTP status {response.status}", hint="is this the fleet server's address?")
    return response.data


def _put(path: Path, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return len(data)

"""Dry runs of devices against a repository, before somebody is stuck in the field.

A fresh device, a device that stopped at each published root, one whose clock says 1970, and what expires within 30, 90
and 180 days. Devices are the real client (edgeseal.trust) on a temporary directory.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Metadata, Root, Targets

from edgeseal.errors import EdgesealError
from edgeseal.trust import Trust
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgeseal.trust.trust import Source
    from edgeseal_host.repository.layout import RepositoryDirectory

DAYS: Final = (30, 90, 180)
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Finding:
    """One check; `verdict` is ok, warning or failed."""

    check: str
    verdict: str
    detail: str


def examine(directory: RepositoryDirectory, source: Callable[[], Source] | None) -> list[Finding]:
    """Run every check; device dry runs need a `source` of metadata that has snapshot and timestamp."""
    findings = [*_roles(directory), *_files(directory)]
    if source is None:
        findings.append(Finding("devices", "warning", "not tried: give --to URL, where devices fetch from"))
        return findings
    roots = sorted(directory.roots().items())
    for version, root in roots:
        what = "a fresh device" if (version, root) == roots[0] else f"a device that stopped at root {version}"
        findings.append(_device(what, root, source(), time.time))
    if roots:
        findings.append(_device("a device whose clock says 1970", roots[0][1], source(), lambda: 0.0))
    return findings


def _device(what: str, root: bytes, source: Source, clock: Callable[[], float]) -> Finding:
    with tempfile.TemporaryDirectory(prefix="edgeseal-doctor-") as place:
        trust = Trust(Path(place) / "trust", bootstrap=root, fetcher=source, clock=clock)
        try:
            result = trust.refresh()
        except EdgesealError as e:
            return Finding(what, "failed", str(e))
    if result.refused:
        return Finding(what, "failed", "; ".join(f"{m}: {e}" for m, e in result.refused.items()))
    return Finding(what, "ok", ", ".join(f"{r} {v}" for r, v in sorted(result.versions.items())))


def _roles(directory: RepositoryDirectory) -> Iterator[Finding]:
    """Look at what expires, and at who can still sign."""
    published = directory.published()
    if published is None:
        yield Finding("published", "warning", "nothing yet: stage, sign, edgeseal repo publish")
        return
    now = metadata.now_utc().timestamp()
    for role, data in {"root": published.root, "targets": published.targets, **published.roles}.items():
        if data is None:
            continue
        signed = Metadata.from_bytes(data).signed
        left = (signed.expires.timestamp() - now) / _DAY
        soon = next((d for d in DAYS if left < d), None)
        verdict = "failed" if left <= 0 else "warning" if soon == DAYS[0] else "ok"
        when = "has expired" if left <= 0 else f"expires in {left:.0f} days" + (f" (within {soon})" if soon else "")
        yield Finding(
            f"{role} version {signed.version}",
            verdict,
            f"{when}; edgeseal repo stage DIR --renew {role}" if soon else when,
        )
        if isinstance(signed, Root):
            yield from _spare_keys(signed)


def _spare_keys(root: Root) -> Iterator[Finding]:
    role = root.roles["root"]
    if len(role.keyids) == role.threshold:
        yield Finding(
            "root keys", "warning", f"{role.threshold} of {len(role.keyids)}: one lost key ends the repository"
        )


def _files(directory: RepositoryDirectory) -> Iterator[Finding]:
    """Look for target files that are listed and not there."""
    published = directory.published()
    if published is None:
        return
    for role, data in {"targets": published.targets, **published.roles}.items():
        if data is None:
            continue
        for path, target in metadata.read(data, Targets, what=f"{role}.json").signed.targets.items():
            if not directory.has_file(path, target.hashes.get("sha256", "")):
                yield Finding(path, "failed", "is listed, but its file is not in this directory")

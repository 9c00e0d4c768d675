"""Snapshot and timestamp: what the fleet server signs, and nothing else.

An air-gapped repository directory signs them with a local key through the same functions. Not here: where keys come
from and when to sign again (`due` says whether).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgeseal.errors import NotAuthorisedError
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from securesystemslib.signer import Signer

    from edgeseal_host.repository.verify import Published, Verified

ISSUED_FIELD: Final = "x-edgeseal-issued"  # Unix seconds; a device without a clock learns the time from it


def sign_online(
    verified: Verified, previous: Published, *, snapshot: Signer, timestamp: Signer, now: datetime
) -> Published:
    """Return the state to publish: `verified` under a new snapshot and a new timestamp."""
    data = {role: bytes_ for role, bytes_ in verified.data.items() if role != "root"}
    snapshot_data = sign_snapshot(verified.root.signed, data, previous.snapshot, signer=snapshot, now=now)
    timestamp_data = sign_timestamp(verified.root.signed, snapshot_data, previous.timestamp, signer=timestamp, now=now)
    roles = {role: data[role] for role in verified.roles}
    return replace(
        previous,
        root=verified.data["root"],
        targets=data["targets"],
        roles=roles,
        snapshot=snapshot_data,
        timestamp=timestamp_data,
    )


def sign_snapshot(
    root: Root,
    roles: Mapping[str, bytes],
    previous: bytes | None,
    *,
    signer: Signer,
    now: datetime,
    lifetime: timedelta = metadata.LIFETIME["snapshot"],
) -> bytes:
    """Sign the list of versions: `roles` maps targets and every model role to its signed bytes.

    Hashes are listed too: whoever steals a publisher's key still needs the fleet server to get a model out.
    Raises NotAuthorisedError if root does not name this key.
    """
    _check_named(root, "snapshot", signer)
    old = metadata.read(previous, Snapshot, what="snapshot.json").signed if previous else None
    # Entries of roles that are delegated no more stay: a client refuses a snapshot that forgets one (TUF §5.5.5).
    meta = dict(old.meta) if old else {}
    meta |= {f"{role}.json": _meta_file(role, data) for role, data in roles.items()}
    signed = Snapshot(version=old.version + 1 if old else 1, expires=now + lifetime, meta=meta)
    return _signed(Metadata(signed), signer)


def sign_timestamp(
    root: Root,
    snapshot: bytes,
    previous: bytes | None,
    *,
    signer: Signer,
    now: datetime,
    lifetime: timedelta = metadata.LIFETIME["timestamp"],
) -> bytes:
    """Sign the pointer to `snapshot`, with the time of signing.

    Raises NotAuthorisedError if root does not name this key.
    """
    _check_named(root, "timestamp", signer)
    old = metadata.read(previous, Timestamp, what="timestamp.json").signed if previous else None
    version = metadata.read(snapshot, Snapshot, what="snapshot.json").signed.version
    meta = MetaFile(version=version, length=len(snapshot), hashes={"sha256": hashlib.sha256(snapshot).hexdigest()})
    signed = Timestamp(
        version=old.version + 1 if old else 1,
        expires=now + lifetime,
        snapshot_meta=meta,
        unrecognized_fields={ISSUED_FIELD: int(now.timestamp())},
    )
    return _signed(Metadata(signed), signer)


def due(data: bytes, role: Literal["snapshot", "timestamp"], *, now: datetime) -> bool:
    """Whether less than half of the lifetime is left, so that a server that is down for a while harms nobody."""
    if role == "snapshot":
        expires = metadata.read(data, Snapshot, what="snapshot.json").signed.expires
    else:
        expires = metadata.read(data, Timestamp, what="timestamp.json").signed.expires
    return expires - now < metadata.LIFETIME[role] / 2


def _check_named(root: Root, role: metadata.TopLevel, signer: Signer) -> None:
    if signer.public_key.keyid not in root.roles[role].keyids or root.roles[role].threshold != 1:
        raise NotAuthorisedError(
            f"root version {root.version} does not name this {role} key as the one that signs alone",
            hint="edgeseal repo stage DIR --fleet public.json, sign the new root, publish it",
        )


def _meta_file(role: str, data: bytes) -> MetaFile:
    version = metadata.read(data, Targets, what=f"{role}.json").signed.version
    return MetaFile(version=version, length=len(data), hashes={"sha256": hashlib.sha256(data).hexdigest()})


def _signed(unsigned: Metadata[Snapshot] | Metadata[Timestamp], signer: Signer) -> bytes:
    unsigned.sign(signer)
    return unsigned.to_bytes()

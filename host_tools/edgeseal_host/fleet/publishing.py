"""From signed metadata to what devices see: verify, sign snapshot and timestamp, put everything in place in order.

Nothing that devices can reach ever names a file that is not there, also after a kill at any point:
    1. target files, role metadata, snapshot   new names that nothing points to yet
    2. the database, one durable commit        from here on the publication has happened
    3. new roots, then timestamp.json          the pointer; `recover` redoes this step at the next start

Not here: who may publish (routes), the rules of metadata (edgeseal_host.repository.verify).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from tuf.api.metadata import Root, Snapshot, Timestamp

from edgeseal.contentkey import check_commitment, unwrap
from edgeseal.errors import FormatError, IntegrityError, NotAuthorisedError, RefusedError
from edgeseal.manifest import Manifest
from edgeseal.table import open_pinned
from edgeseal_host.fleet.objects import TIMESTAMP
from edgeseal_host.fleet.online_keys import ROLES, OnlineKeys
from edgeseal_host.fleet.schema import metadata_file, release
from edgeseal_host.fleet.served_state import ahead, load, store, store_only, store_state, version
from edgeseal_host.repository import metadata, online
from edgeseal_host.repository.verify import Published, Verified, trust_root, verify_publication

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import TargetFile

    from edgeseal.session.server import Ring
    from edgeseal_host.fleet.objects import ObjectDirectory
    from edgeseal_host.fleet.registry import SqlRegistry
    from edgeseal_host.fleet.vault import Vault
    from edgeseal_host.repository.verify import Publication

_MODELS: Final = "models/"


@dataclass(frozen=True, slots=True)
class _Release:
    """A listed release, everything about it checked; `ck` if the publisher sent it now."""

    model: str
    number: int
    path: str
    target: TargetFile
    hardware: str
    lowest: int
    ck: bytes | None


class Publisher:
    """Everything that changes what is published; one change at a time."""

    def __init__(
        self,
        registry: SqlRegistry,
        objects: ObjectDirectory,
        vault: Vault,
        *,
        keys: OnlineKeys,
        wrap_ring: Callable[[], Ring],
        clock: Callable[[], datetime] = metadata.now_utc,
    ) -> None:
        """`wrap_ring` is asked for each publication: the ring may have been rotated."""
        self._registry, self._objects, self._vault = registry, objects, vault
        self._keys = keys
        self._wrap_ring, self._clock = wrap_ring, clock
        self._lock = threading.Lock()

    def published(self) -> Published | None:
        """Return the current state; None before a root is trusted."""
        with self._registry.read() as connection:
            return load(connection)

    def trust(self, data: bytes) -> int:
        """Take the first root, whose origin the operator vouches for; returns its version.

        Raises RefusedError, NotAuthorisedError if it does not name this server's keys.
        """
        root = trust_root(data).signed
        self._signers(root)
        if root.is_expired(self._clock()):
            raise RefusedError(f"root version {root.version} expired on {root.expires:%Y-%m-%d}")
        with self._lock:
            current = self.published()
            if current is not None:
                if current.root == data:
                    return root.version
                raise RefusedError(
                    "this fleet server trusts a root already",
                    hint="publish the next root version: edgeseal repo publish; it must be signed by the old one",
                )
            with self._registry.durably() as connection:
                store(connection, "root", root.version, data)
            self._objects.write_file(metadata.metadata_file("root", root.version), data)
        return root.version

    def publish(self, publication: Publication, envelopes: Mapping[str, bytes]) -> dict[str, Any]:
        """Publish; returns {changed, versions, without_key}.

        Raises RefusedError and its kinds; nothing is visible then.
        """
        with self._lock:
            current = self.published()
            if current is None:
                raise NotAuthorisedError(
                    "this fleet server does not trust any root yet",
                    hint="on the server: edgeseal fleet trust --data DIR ROOT",
                )
            now = self._clock()
            verified = verify_publication(current, publication, now=now, has_file=self._has_target)
            signers = self._signers(verified.root.signed)
            releases = self._releases(verified, envelopes)
            state = current
            if verified.changed or current.timestamp is None:
                state = online.sign_online(verified, current, **signers, now=now)
            self._place(state, current, verified, releases)
            self._keys.settle(verified.root.signed)
            return self._summary(state, verified)

    def resign(self) -> list[str]:
        """Sign what has used up half of its lifetime again; returns the roles that were signed."""
        with self._lock:
            current = self.published()
            if current is None or current.snapshot is None or current.timestamp is None or current.targets is None:
                return []
            now = self._clock()
            old = online.due(current.snapshot, "snapshot", now=now)
            if not old and not online.due(current.timestamp, "timestamp", now=now):
                return []
            root = metadata.read(current.root, Root, what="root.json").signed
            signers, snapshot = self._signers(root), current.snapshot
            if old:
                roles = {"targets": current.targets, **current.roles}
                snapshot = online.sign_snapshot(root, roles, current.snapshot, signer=signers["snapshot"], now=now)
                self._objects.write_file(metadata.metadata_file("snapshot", version(snapshot, Snapshot)), snapshot)
            timestamp = online.sign_timestamp(root, snapshot, current.timestamp, signer=signers["timestamp"], now=now)
            with self._registry.durably() as connection:
                store_only(connection, "snapshot", version(snapshot, Snapshot), snapshot)
                store_only(connection, "timestamp", version(timestamp, Timestamp), timestamp)
            self._objects.write_file(TIMESTAMP, timestamp)
            return ["snapshot", "timestamp"] if old else ["timestamp"]

    def recover(self) -> None:
        """Redo step 3 of a publication that a kill cut short, and destroy signing keys that its root replaced."""
        with self._lock:
            with self._registry.read() as connection:
                rows = connection.execute(
                    sa.select(metadata_file).where(metadata_file.c.role.in_(["root", "timestamp"]))
                ).all()
            for row in sorted(rows, key=lambda row: row.role):  # roots before the timestamp
                name = metadata.metadata_file(row.role, row.version)
                if not self._objects.has_file(name) or self._objects.read_file(name) != row.data:
                    self._objects.write_file(name, row.data)
            roots = [row for row in rows if row.role == "root"]
            if roots:
                newest = max(roots, key=lambda row: row.version)
                self._keys.settle(metadata.read(newest.data, Root, what="root.json").signed)

    def is_behind(self) -> bool:
        """Whether more was published from here than the registry knows: it came from a backup."""
        current = self.published()
        return current is not None and ahead(self._objects, current) is not None

    def catch_up(self) -> dict[str, Any] | None:
        """Take over what was published from here after the registry's backup; None if there is nothing.

        Returns what `publish` does: content keys that came after the backup are missing. Raises RefusedError and its
        kinds if the public files do not stand up to the checks of a publication.
        """
        with self._lock:
            current = self.published()
            served = None if current is None else ahead(self._objects, current)
            if current is None or served is None:
                return None
            verified = verify_publication(current, served.publication, now=self._clock(), has_file=self._has_target)
            self._signers(verified.root.signed)
            state = served.state(verified)
            self._place(state, current, verified, self._releases(verified, {}))
            return self._summary(state, verified)

    # Checks --------------------------------------------------------------------------------------------------------

    def _signers(self, root: Root) -> dict[str, CryptoSigner]:
        """Return this server's key of either role.

        Raises NotAuthorisedError unless `root` names one of its own for both: else nothing could be published.
        """
        return {role: self._keys.signer(role, root) for role in ROLES}

    def _has_target(self, path: str, sha256: str) -> bool:
        return self._objects.has_file(metadata.target_file(path, sha256))

    def _releases(self, verified: Verified, envelopes: Mapping[str, bytes]) -> list[_Release]:
        """Check every listed release against its manifest, table, chunks and envelope, as far as they are new."""
        listed = {path: target for path, target in verified.listed.items() if path.startswith(_MODELS)}
        if unlisted := sorted(set(envelopes) - set(listed)):
            raise RefusedError(
                f"a content key was sent for {unlisted[0][:120]}, which no signed role lists",
                hint="stage and sign the release in the same publication, or before",
            )
        self._check_same_content(listed)
        return [
            self._release(path, target, verified.new_files.get(path), envelopes.get(path))
            for path, target in listed.items()
        ]

    def _check_same_content(self, listed: Mapping[str, TargetFile]) -> None:
        """One release number means one content for ever, also if it was withdrawn in between."""
        with self._registry.read() as connection:
            known = {r.path: r.sha256 for r in connection.execute(sa.select(release.c.path, release.c.sha256))}
        for path, target in listed.items():
            if path in known and known[path].hex() != target.hashes["sha256"]:
                raise RefusedError(
                    f"{path} was published before with other content", hint="publish it under the next release number"
                )

    def _release(self, path: str, target: TargetFile, sent: bytes | None, envelope: bytes | None) -> _Release:
        model, number = metadata.split_release_path(path)
        custom = (target.custom or {})["edgeseal"]
        ck = None
        if sent is not None or envelope is not None:
            data = (
                self._objects.read_file(metadata.target_file(path, target.hashes["sha256"])) if sent is None else sent
            )
            manifest = Manifest.from_bytes(data)
            if (manifest.model, manifest.release) != (model, number):
                raise RefusedError(
                    f"{path} holds the manifest of {manifest.model} release {manifest.release}",
                    hint="build the bundle with the model name and release number it is published under",
                )
            self._check_table(manifest)
            if envelope is not None:
                ck = self._content_key(manifest, envelope)
        return _Release(model, number, path, target, _hardware(custom, path), _lowest(custom, path), ck)

    def _check_table(self, manifest: Manifest) -> None:
        """Refuse a manifest whose table is not here: its SHA-256 was checked when it was uploaded."""
        have = self._objects.length("tables", manifest.table_sha256)
        if have != manifest.table_length:
            raise RefusedError(
                f"the table of {manifest.model} release {manifest.release} is not on the server: expected "
                f"{manifest.table_length} bytes, {'nothing is there' if have is None else f'{have} are there'}",
                hint="edgeseal bundle publish uploads table and chunks first",
            )

    def _content_key(self, manifest: Manifest, envelope: bytes) -> bytes:
        """Open the envelope, hold the key against the manifest, and see with it that every chunk is here."""
        ck = unwrap(self._wrap_ring(), envelope, model=manifest.model, release=manifest.release)
        check_commitment(ck, manifest.ck_commitment, manifest.model, manifest.release)
        table = open_pinned(self._objects.path("tables", manifest.table_sha256).read_bytes(), manifest, ck=ck)
        for name, length in table.chunks().items():
            if self._objects.length("chunks", name) != length:
                raise RefusedError(
                    f"chunk {name.hex()} of {manifest.model} release {manifest.release} is not on the server",
                    hint="edgeseal bundle publish uploads table and chunks first",
                )
        return ck

    # Changes -------------------------------------------------------------------------------------------------------

    def _place(self, state: Published, current: Published, verified: Verified, releases: list[_Release]) -> None:
        roots = {metadata.metadata_file("root", v): data for v, data in verified.new_roots.items()}
        for name, data in verified.files().items():
            if name not in roots:
                self._objects.write_file(name, data)
        if state.snapshot is not None and state.snapshot != current.snapshot:
            name = metadata.metadata_file("snapshot", version(state.snapshot, Snapshot))
            self._objects.write_file(name, state.snapshot)
        with self._registry.durably() as connection:
            for number, data in verified.new_roots.items():
                store(connection, "root", number, data)
            store_state(connection, state)
            self._store_releases(connection, releases)
        for name, data in roots.items():
            self._objects.write_file(name, data)
        if state.timestamp is not None and state.timestamp != current.timestamp:
            self._objects.write_file(TIMESTAMP, state.timestamp)

    def _store_releases(self, connection: sa.Connection, releases: list[_Release]) -> None:
        floors: dict[str, int] = {}
        for r in releases:
            floors[r.model] = max(floors.get(r.model, 0), r.lowest)
        known = {tuple(row) for row in connection.execute(sa.select(release.c.model, release.c.release))}
        connection.execute(sa.update(release).values(listed=False))
        for r in releases:
            values: dict[str, Any] = {"listed": True, "floor": floors[r.model], "hardware": r.hardware}
            if r.ck is not None:
                values["ck"] = self._vault.seal(b"content key", r.path.encode(), r.ck)
            if (r.model, r.number) in known:
                where = release.c.model == r.model, release.c.release == r.number
                connection.execute(sa.update(release).where(*where).values(**values))
            else:
                values |= {"model": r.model, "release": r.number, "path": r.path, "length": r.target.length}
                values["sha256"] = bytes.fromhex(r.target.hashes["sha256"])
                connection.execute(sa.insert(release).values(**values))

    def _summary(self, state: Published, verified: Verified) -> dict[str, Any]:
        with self._registry.read() as connection:
            query = sa.select(release.c.path).where(release.c.listed, release.c.ck.is_(None)).order_by(release.c.path)
            without = list(connection.execute(query).scalars())
        versions = {"root": verified.root.signed.version, "targets": verified.targets.signed.version}
        versions |= {name: role.signed.version for name, role in verified.roles.items()}
        if state.snapshot is not None and state.timestamp is not None:
            versions["snapshot"] = version(state.snapshot, Snapshot)
            versions["timestamp"] = version(state.timestamp, Timestamp)
        return {"changed": sorted(verified.changed), "versions": versions, "without_key": without}


def _hardware(custom: Mapping[str, object], path: str) -> str:
    names = custom.get("hw", [])
    if not isinstance(names, list) or not all(isinstance(n, str) and n.isprintable() for n in names):
        raise FormatError(f"target {path}: `hw` must be a list of hardware names")
    return "\n".join(names)


def _lowest(custom: Mapping[str, object], path: str) -> int:
    lowest = custom.get("min_rel", 0)
    if type(lowest) is not int or not 0 <= lowest < 2**63:
        raise IntegrityError(f"target {path}: `min_rel` must be a release number")
    return lowest

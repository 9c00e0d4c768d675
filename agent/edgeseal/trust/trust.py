"""`Trust`: the one thing the rest of the agent asks about metadata.

Refreshing is docs/spec/trust.md §5: lock, staged copy, tuf's client, our own rules, flush, rename, floors. Looking at
the committed state needs no network; versions, expiry and the time floor do not even import tuf.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from edgeseal.durable import fsync_directory, locked
from edgeseal.errors import EdgesealError, IntegrityError, RefusedError, TemporaryError
from edgeseal.trust import views
from edgeseal.trust.floors import Floor, Floors, Slots
from edgeseal.trust.generations import Generations, drop_complete, keep_complete, read_tree, storage_error
from edgeseal.trust.targets import TargetInfo, target_info
from edgeseal.trust.views import RoleState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from edgeseal.trust.chain import Chain
    from edgeseal.trust.rules import Algorithms

__all__ = ["RefreshResult", "RoleState", "Source", "TargetInfo", "Trust"]

_MAX_TARGET: Final = 16 * 2**20  # a manifest is some KiB; whatever is larger is not a target of ours
_ETAG: Final = "etag"


class Source(Protocol):
    """A tuf fetcher that also says where metadata and targets are: HttpFetcher, ArchiveFetcher, a simulator."""

    metadata_url: str
    targets_url: str

    def fetch(self, url: str) -> Iterator[bytes]:
        """Return the file in pieces."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the file, refusing more than `max_length` bytes."""


@dataclass(frozen=True)
class RefreshResult:
    """What a successful refresh did. `refused` maps models (or paths) to why their role was not accepted."""

    changed: bool
    versions: Mapping[str, int]
    refused: Mapping[str, EdgesealError] = field(default_factory=dict)


class Trust:
    """The metadata a device trusts, in one directory of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        bootstrap: bytes | None,
        fetcher: Source | None = None,
        clock: Callable[[], float] = time.time,
        not_before: int = 0,
        algorithms: Algorithms | None = None,
    ) -> None:
        """`bootstrap` is the provisioned root.json; None goes on from the committed root.

        `not_before` is what the time cannot be earlier than: image build or provisioning, in Unix seconds.
        `algorithms` None means ML-DSA only. Nothing is read or written before the first call.
        """
        self._directory = directory
        self._bootstrap = bootstrap
        self._fetcher = fetcher
        self._clock = clock
        self._not_before = not_before
        self._algorithms = algorithms
        self._generations = Generations(directory)
        self._slots = Slots(directory)

    # What is committed -------------------------------------------------------------------------------------------

    def roles(self) -> dict[str, RoleState]:
        """Return version and expiry of every role trusted, without importing tuf."""
        return views.roles(self._generations.read())

    def versions(self) -> dict[str, int]:
        """Return the version of every role trusted, without importing tuf."""
        return {role: state.version for role, state in self.roles().items()}

    def files(self) -> dict[str, bytes]:
        """Return the committed files, byte for byte, by name in the metadata directory."""
        return {name: data for name, data in self._generations.read().items() if "/" not in name}

    def target(self, path: str) -> TargetInfo | None:
        """Return what the committed metadata lists under `path`; None if nothing.

        Raises RefusedError (expired, damaged), or TemporaryError if it was never fetched.
        """
        found = self._chain().find(path)
        return None if found is None else target_info(path, found)

    def last_listed(self, path: str) -> TargetInfo | None:
        """Return what the committed metadata list under `path` even if they are past their end.

        Verified as ever but for the time: for telling the fleet about it, never for installing. Raises as `target`.
        """
        from edgeseal.trust.chain import Chain

        found = Chain.load(self._generations.read(), now=0).find(path)
        return None if found is None else target_info(path, found)

    def targets_for(self, model: str) -> list[TargetInfo]:
        """Return the listed (installable) releases of a model, oldest first.

        Raises as `target` does.
        """
        listed = self._chain().listed(f"models/{model}", "0.cbor")
        return sorted((i for p, t in listed if (i := target_info(p, t)).release), key=lambda i: i.release)

    def fetch_target(self, path: str) -> bytes:
        """Fetch a listed target and return its bytes, length and hash verified.

        Raises RefusedError or TemporaryError.
        """
        from edgeseal.trust.refresh import fetch

        chain = self._chain()
        found = chain.find(path)
        if found is None:
            raise RefusedError(
                f"{path} is not listed by the repository", hint="only listed releases may be installed; was it retired?"
            )
        info = target_info(path, found)
        if info.length > _MAX_TARGET:
            raise RefusedError(f"{path} is {info.length} bytes; a target may have {_MAX_TARGET} at most")
        source = self._source()
        name = info.name if chain.root.consistent_snapshot else path
        data = fetch(source, f"{source.targets_url}{name}", info.length)
        if not info.matches(data):
            raise IntegrityError(
                f"{path}: {len(data)} bytes came that are not the {info.length} signed ones",
                hint="the server or somebody on the way replaced the file; nothing was accepted",
            )
        return data

    # Time --------------------------------------------------------------------------------------------------------

    def time_floor(self) -> int:
        """Return the time that it certainly is by now, in Unix seconds, without importing tuf."""
        return self._floor(self._slots.read(), self._generations.read())

    def raise_time_floor(self, seconds: int) -> None:
        """Note an authenticated time, as the session with the fleet server gives it.

        Never beyond the expiry of the committed timestamp: a server whose clock is wrong then costs a device one
        timestamp, which is replaced daily, and not its life.
        """
        try:
            with self._locked():
                self._raise_time(seconds)
        except OSError as e:
            raise storage_error(e) from e

    def _raise_time(self, seconds: int) -> None:
        files = self._generations.read()
        timestamp = views.roles(files).get("timestamp")
        if timestamp is None:
            return
        floors = self._slots.read()
        raised = floors.raised({}, Floor(min(seconds, timestamp.expires), views.timestamp_keys(files)))
        if raised != floors:
            self._slots.write(raised)

    def now(self) -> float:
        """Return the system's time or the floor, whichever is later."""
        return max(self._clock(), self.time_floor())

    # Refreshing --------------------------------------------------------------------------------------------------

    def refresh(self, *, models: Collection[str] | None = None, paths: Collection[str] = ()) -> RefreshResult:
        """Bring the metadata up to date: all of it becomes the committed state, or the former stays.

        `models` says whose roles to fetch besides the top-level ones (None: everybody's); `paths` adds the roles
        responsible for other targets. Raises RefusedError, TemporaryError.
        """
        try:
            with self._locked():
                return self._refresh(models, paths)
        except OSError as e:
            raise storage_error(e) from e

    def _refresh(self, models: Collection[str] | None, paths: Collection[str]) -> RefreshResult:
        from edgeseal.trust.refresh import run

        before, floors = self._generations.read(again=True), self._slots.read()
        source = self._source()
        now = max(self._clock(), self._floor(floors, before))
        self._recall(source, before)
        try:
            staging = self._generations.stage()
            outcome = run(staging, bootstrap=self._bootstrap, source=source, now=now, models=models, paths=paths)
            if outcome.error is not None:
                if outcome.verified_on_the_way:
                    self._commit_partly(staging, before, floors)
                raise outcome.error
            drop_complete(staging)
            changed = self._commit(read_tree(staging), before, floors)
        finally:
            self._generations.sweep()
        self._remember(source)
        return RefreshResult(changed, self.versions(), outcome.refused)

    def _commit(self, staged: Mapping[str, bytes], before: Mapping[str, bytes], floors: Floors) -> bool:
        """Apply our rules to what is staged, then make it the committed state and raise the floors."""
        from edgeseal.trust import rules

        issued = views.issued_floor(staged)
        now = max(self._clock(), self._floor(floors, staged), issued.value)
        verified = views.version_floors(staged, before, whole=True)
        self._check(staged, verified, floors)
        rules.check_expiry(staged, now)
        changed = staged != before
        if changed:
            self._generations.commit()
        self._raise(floors, verified, issued)
        return changed

    def _commit_partly(self, staging: Path, before: Mapping[str, bytes], floors: Floors) -> None:
        """Keep the roles that were verified before an error: a root that revokes keys must not be forgotten.

        TUF stores each role as soon as it is verified (§5.3.8, §5.4.5, §5.5.7). What belonged together last is kept
        beside it and stays in use as long as the newest root allows.
        """
        if read_tree(staging) == before or not (staging / "root.json").exists():
            return
        keep_complete(staging, before)
        staged = read_tree(staging)
        verified = views.version_floors(staged, before, whole=False)
        try:
            self._check(staged, verified, floors)
        except RefusedError:
            return  # the error on its way up says why; nothing of this is kept
        self._generations.commit()
        self._raise(floors, verified, floors.time)

    def _check(self, staged: Mapping[str, bytes], verified: Mapping[str, Floor], floors: Floors) -> None:
        from edgeseal.trust import rules

        rules.check_algorithms(staged, self._algorithms or rules.ML_DSA_ONLY)
        rules.check_versions(verified, floors)

    def _raise(self, floors: Floors, verified: Mapping[str, Floor], issued: Floor) -> None:
        """Store floors only after the rename: floors above what is committed would lock this device out."""
        raised = floors.raised(verified, issued)
        if raised != floors:
            self._slots.write(raised)

    def _floor(self, floors: Floors, files: Mapping[str, bytes]) -> int:
        """Time floor under the timestamp keys of `files`; a time that replaced keys vouched for no longer counts."""
        keys = views.timestamp_keys(files) or floors.time.keys
        return max(self._not_before, floors.online_time(keys))

    def _chain(self) -> Chain:
        from edgeseal.trust.chain import Chain

        files = self._generations.read()
        return Chain.load(files, max(self._clock(), self._floor(self._slots.read(), files)))

    def _source(self) -> Source:
        if self._fetcher is None:
            raise TemporaryError("no source of metadata is configured", hint="set metadata_url in the configuration")
        return self._fetcher

    def _locked(self) -> Any:  # noqa: ANN401 - a context manager; contextlib's type has no short name
        if not self._directory.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_directory(self._directory.parent)
        return locked(self._directory / "lock")

    # ETag of the committed timestamp: lost or torn it costs one download, so it is not flushed ---------------------

    def _recall(self, source: Source, before: Mapping[str, bytes]) -> None:
        recall = getattr(source, "recall", None)
        data = before.get("timestamp.json")
        if recall is None:
            return
        etag = self._read_etag(data) if data else None
        recall(f"{source.metadata_url}timestamp.json", etag, data)

    def _read_etag(self, timestamp: bytes) -> str | None:
        try:
            digest, _, etag = (self._directory / _ETAG).read_text(encoding="ascii").partition(" ")
        except (OSError, ValueError):
            return None
        return etag if digest == _etag_digest(etag, timestamp) else None

    def _remember(self, source: Source) -> None:
        etag = getattr(source, "etag", None)
        timestamp = self._generations.read().get("timestamp.json")
        if etag and timestamp and etag != self._read_etag(timestamp):
            (self._directory / _ETAG).write_text(f"{_etag_digest(etag, timestamp)} {etag}", encoding="ascii")


def _etag_digest(etag: str, timestamp: bytes) -> str:
    return hashlib.sha256(etag.encode() + b"\n" + timestamp).hexdigest()

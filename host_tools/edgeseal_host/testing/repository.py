"""A TUF repository in memory, behind tuf's fetcher interface: the far end for tests of clients.

    repository = Repository(models=["bearing"])
    repository.add_release("bearing", 1, manifest)
    repository.publish()
    Trust(directory, bootstrap=repository.root_bytes(1), fetcher=repository).refresh()

Every role's metadata is an attribute that a test may spoil before it signs (`publish`), and `files` holds what is
served, which a test may spoil afterwards. `dump` writes it to a directory, `serve` puts it on a real socket.
Nothing checks anything here: an attacker's repository must be possible too. Keys are ML-DSA unless asked otherwise.
"""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient.fetcher import FetcherInterface

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tuf.api.metadata import Signed

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)

OFFLINE: Final = "ml-dsa-65/1"
ONLINE: Final = "ml-dsa-44/1"
ISSUED: Final = "x-edgeseal-issued"
LIFETIME: Final = {"root": 5 * 365, "targets": 365, "model": 180, "snapshot": 7, "timestamp": 1}  # days


class Repository(FetcherInterface):
    """Keys, metadata and served files of one repository; also a fetcher that serves them."""

    metadata_url = "memory:/metadata/"
    targets_url = "memory:/targets/"

    def __init__(
        self, models: Sequence[str] = (), *, now: float | None = None, root_keys: int = 3, threshold: int = 2
    ) -> None:
        """Make keys and publish version 1 of everything; `now` is the repository's clock."""
        self.now = time.time() if now is None else now
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.metadata: dict[str, Metadata[Any]] = {
            "root": Metadata(Root(consistent_snapshot=True)),
            "targets": Metadata(Targets(delegations=Delegations({}, {}))),
            "snapshot": Metadata(Snapshot()),
            "timestamp": Metadata(Timestamp()),
        }
        self._published: set[str] = set()
        for role, count, scheme in (
            ("root", root_keys, OFFLINE),
            ("targets", 1, OFFLINE),
            ("snapshot", 1, ONLINE),
            ("timestamp", 1, ONLINE),
        ):
            self.set_keys(role, [new_key(scheme) for _ in range(count)], threshold=threshold if role == "root" else 1)
        for model in models:
            self.add_model(model)
        self.publish("root", *(role_of(m) for m in models), "targets", "snapshot", "timestamp")

    # Metadata to change before `publish` ---------------------------------------------------------------------------

    @property
    def root(self) -> Root:
        """Signed part of root, to change."""
        return self._signed("root", Root)

    @property
    def targets(self) -> Targets:
        """Signed part of targets, to change."""
        return self._signed("targets", Targets)

    @property
    def snapshot(self) -> Snapshot:
        """Signed part of snapshot, to change."""
        return self._signed("snapshot", Snapshot)

    @property
    def timestamp(self) -> Timestamp:
        """Signed part of timestamp, to change."""
        return self._signed("timestamp", Timestamp)

    def model(self, model: str) -> Targets:
        """Signed part of a model's role, to change."""
        return self._signed(role_of(model), Targets)

    def set_keys(self, role: str, signers: list[CryptoSigner], *, threshold: int = 1) -> None:
        """Give a top-level role other keys; effective with the next published root."""
        root = self.root
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for signer in signers:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = threshold
        self.signers[role] = signers

    def rotate(self, *roles: str) -> None:
        """Replace the keys of top-level roles and publish the new root, signed by old and new root keys."""
        former = self.signers["root"]
        for role in roles:
            scheme = self.signers[role][0].public_key.scheme
            fresh = [new_key(scheme) for _ in self.signers[role]]
            self.set_keys(role, fresh, threshold=self.root.roles[role].threshold)
        now = self.signers["root"]
        self.signers["root"] = [*former, *(s for s in now if s not in former)]
        self.publish("root")
        self.signers["root"] = now

    def add_model(self, model: str, signer: CryptoSigner | None = None) -> None:
        """Delegate `models/<model>/*` to a new role; publish it, targets, snapshot and timestamp to show it."""
        signer = signer or new_key(OFFLINE)
        role = role_of(model)
        delegations = self.targets.delegations
        assert delegations is not None  # noqa: S101 - made in __init__
        assert delegations.roles is not None  # noqa: S101 - as above
        delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=[f"models/{model}/*"])
        delegations.keys[signer.public_key.keyid] = signer.public_key
        delegations.roles[role].keyids.append(signer.public_key.keyid)
        self.signers[role] = [signer]
        self.metadata[role] = Metadata(Targets())

    def add_release(self, model: str, release: int, manifest: bytes, **custom: object) -> str:
        """List a release and serve its manifest; returns its path."""
        path = f"models/{model}/{release}.cbor"
        about = {"v": 1, "name": model, "rel": release, "size": len(manifest), **custom}
        self.add_target(role_of(model), path, manifest, {"edgeseal": about})
        return path

    def add_target(self, role: str, path: str, data: bytes, custom: dict[str, Any] | None = None) -> None:
        """List a file in `role` and serve it."""
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        self._signed(role, Targets).targets[path] = target
        directory, slash, name = path.rpartition("/")
        self.files[f"targets/{directory}{slash}{hashlib.sha256(data).hexdigest()}.{name}"] = data

    def publish(self, *roles: str, expires: float | None = None, same_version: bool = False) -> None:
        """Sign and serve `roles` in this order (default: all models, targets, snapshot, timestamp).

        Versions go up by one unless `same_version`; snapshot and timestamp learn about what is published before them.
        """
        for role in roles or (
            *(r for r in self.metadata if r.startswith("model-")),
            "targets",
            "snapshot",
            "timestamp",
        ):
            signed: Signed = self.metadata[role].signed
            if role in self._published and not same_version:
                signed.version += 1
            self._published.add(role)
            days = LIFETIME.get(role, LIFETIME["model"])
            signed.expires = moment(self.now) + timedelta(days=days) if expires is None else moment(expires)
            if role == "timestamp":
                signed.unrecognized_fields[ISSUED] = int(self.now)
            self.serve_signed(role, self.sign(role))

    def sign(self, role: str) -> bytes:
        """Return the role's metadata, signed with its signers; nothing is served."""
        metadata = self.metadata[role]
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def serve_signed(self, role: str, data: bytes) -> None:
        """Serve `data` as the current version of `role`, and list it in the unsigned snapshot or timestamp."""
        version = self.metadata[role].signed.version
        name = quote(role, "")
        self.files["metadata/timestamp.json" if role == "timestamp" else f"metadata/{version}.{name}.json"] = data
        meta = MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})
        if role == "snapshot":
            self.timestamp.snapshot_meta = meta
        elif role not in {"root", "timestamp"}:
            self.snapshot.meta[f"{role}.json"] = meta

    # What is served ------------------------------------------------------------------------------------------------

    def root_bytes(self, version: int) -> bytes:
        """Return a published root."""
        return self.files[f"metadata/{version}.root.json"]

    def freeze(self) -> dict[str, bytes]:
        """Return what is served now, to serve it again later (`files = …`): what a mirror could have kept."""
        return deepcopy(self.files)

    def dump(self, directory: Path) -> None:
        """Write everything served below `directory`."""
        for name, data in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def serve(self) -> AbstractContextManager[HttpServer]:
        """Serve on a free port of the loopback interface until the block ends."""
        return serving(self.files)

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("memory:/")
        self.requests.append(name)
        if name not in self.files:
            raise DownloadHTTPError(f"{name} is not there", 404)
        return iter([self.files[name]])

    def _signed(self, role: str, kind: type[S]) -> S:
        signed = self.metadata[role].signed
        assert isinstance(signed, kind)  # noqa: S101 - a wrong role name is the test's bug
        return signed


class HttpServer(ThreadingHTTPServer):
    """Serves a mapping of names to bytes with ETag, and counts."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        """Bind a free port of the loopback interface."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.log: list[tuple[str, int, int]] = []  # path, status, bytes of the body

    @property
    def base(self) -> str:
        """Return the address to give to a client."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[HttpServer]:
    """Serve `files` on a free port of the loopback interface until the block ends; changes to it are seen."""
    with HttpServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpServer

    def do_GET(self) -> None:
        data = self.server.files.get(urlsplit(self.path).path.lstrip("/"))
        if data is None:
            self._answer(404, b"not found\n", {"Content-Type": "text/plain"})
            return
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == etag:
            self._answer(304, b"", {"ETag": etag})
        else:
            self._answer(200, data, {"ETag": etag, "Content-Type": "application/octet-stream"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.server.log.append((self.path, status, len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:  # noqa: PLR2004 - RFC 9110 §15.4.5: no body, so no length of one
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: tests read `log`."""


def role_of(model: str) -> str:
    """Name of the role that lists a model's releases."""
    return f"model-{model}"


def new_key(scheme: str = OFFLINE) -> CryptoSigner:
    """Return a new ML-DSA key pair."""
    return CryptoSigner.generate_mldsa(scheme=scheme)


def moment(seconds: float) -> datetime:
    """Return a time as TUF writes it, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC)

"""A fleet server in a process of its own, with publishers, a model and devices, for tests of the real thing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from edgeseal import checkin, contentkey, enrolment
from edgeseal.chunks import encode_piece
from edgeseal.manifest import Manifest
from edgeseal.servers import TARGET_PATH, FleetServers
from edgeseal.session.device import Device, Generation, Identity
from edgeseal.suite import SUITES, PrivateKey, PublicKey
from edgeseal.table import FileEntry, Table, seal_table
from edgeseal.transport.x1 import FleetExchange
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.repository.verify import Publication

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal.session.messages import Reply
    from edgeseal_host.fleet.public import FleetPublic

FAMILY = bytes(range(32))
STARTED = 20.0  # seconds until a server must answer


@dataclass
class Bundle:
    """One release: manifest, sealed table, chunks and the content key."""

    manifest: Manifest
    table: bytes
    chunks: dict[bytes, bytes]
    ck: bytes

    @property
    def path(self) -> str:
        return self.manifest.target_path

    def files(self, directory: Path) -> dict[str, dict[bytes, Path]]:
        """Write every object below `directory`, as an upload wants them."""
        directory.mkdir(exist_ok=True, parents=True)
        out: dict[str, dict[bytes, Path]] = {"chunks": {}, "tables": {}}
        for kind, objects in (("chunks", self.chunks), ("tables", {self.manifest.table_sha256: self.table})):
            for name, data in objects.items():
                out[kind][name] = directory / name.hex()
                out[kind][name].write_bytes(data)
        return out


def make_bundle(model: str, release: int, *, pieces: int = 2, suite: int = 1) -> Bundle:
    """Build a small release of one random file."""
    made = [encode_piece(os.urandom(5000), fs=FAMILY, suite=suite) for _ in range(pieces)]
    records = [record for record, _ in made]
    content = hashlib.sha256(b"whole").digest()
    size = sum(r.plain_length for r in records)
    table = Table([FileEntry("model.onnx", size, 0o644, content, 0, pieces)], None, records)
    ck = os.urandom(32)
    sealed = seal_table(table, ck=ck, suite=suite, model=model, release=release, salt=os.urandom(32))
    manifest = Manifest(
        model=model,
        release=release,
        suite=suite,
        ck_commitment=contentkey.commitment(ck, model, release),
        table_sha256=hashlib.sha256(sealed).digest(),
        table_length=len(sealed),
        plain_size=size,
        stored_size=sum(r.stored_length for r in records),
    )
    return Bundle(manifest, sealed, {r.stored_sha256: stored for r, stored in made}, ck)


class Publisher:
    """Offline keys and what they have signed."""

    def __init__(self, public: FleetPublic) -> None:
        self.root_key, self.targets_key, self.model_key = (CryptoSigner.generate_mldsa() for _ in range(3))
        self.root = Root(expires=_in(3650), consistent_snapshot=True)
        for role, key in (
            ("root", self.root_key.public_key),
            ("targets", self.targets_key.public_key),
            ("snapshot", public.snapshot),
            ("timestamp", public.timestamp),
        ):
            self.root.add_key(key, role)
        self.targets = Targets(expires=_in(365), delegations=Delegations({}, {}))
        self.roles: dict[str, Targets] = {}
        self.files: dict[str, bytes] = {}
        self._signed: dict[str, tuple[dict[str, Any], bytes]] = {}
        servers = FleetServers(1, 1, list(public.session)).to_bytes()
        self.targets.targets[TARGET_PATH] = _target(TARGET_PATH, servers, None)
        self.files[TARGET_PATH] = servers

    def root_bytes(self) -> bytes:
        return _signed(self.root, self.root_key)

    def list_release(self, bundle: Bundle, *, hw: list[str] | None = None, min_rel: int = 0) -> None:
        model = bundle.manifest.model
        role = f"model-{model}"
        if role not in self.roles:
            delegations = self.targets.delegations
            assert delegations is not None
            assert delegations.roles is not None
            delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=[f"models/{model}/*"])
            self.targets.add_key(self.model_key.public_key, role)
            self.roles[role] = Targets(expires=_in(180))
        data = bundle.manifest.to_bytes()
        custom = {"edgeseal": {"v": 1, "rel": bundle.manifest.release, "hw": hw or [], "min_rel": min_rel}}
        self.roles[role].targets[bundle.path] = _target(bundle.path, data, custom)
        self.files[bundle.path] = data

    def unlist(self, bundle: Bundle) -> None:
        role = self.roles[f"model-{bundle.manifest.model}"]
        del role.targets[bundle.path]
        self.files.pop(bundle.path, None)

    def publication(self) -> Publication:
        """Sign what has changed under the next version."""
        targets = self._sign("targets", self.targets, self.targets_key)
        roles = {name: self._sign(name, role, self.model_key) for name, role in self.roles.items()}
        return Publication(targets=targets, roles=roles, files=dict(self.files))

    def _sign(self, name: str, signed: Targets, key: CryptoSigner) -> bytes:
        content = {k: v for k, v in signed.to_dict().items() if k != "version"}
        before = self._signed.get(name)
        if before is not None and before[0] == content:
            return before[1]
        signed.version += before is not None
        self._signed[name] = deepcopy(content), _signed(signed, key)
        return self._signed[name][1]


@dataclass
class Server:
    """A running `edgeseal fleet serve`."""

    process: subprocess.Popen[bytes]
    base: str
    log: Path

    def kill(self) -> None:
        """Pull the plug."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=20)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `edgeseal` as a person does."""
    command = [sys.executable, "-c", "from edgeseal_host.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def answering(process: subprocess.Popen[bytes], ready: Path, log: Path) -> Server:
    """Wait until a server that was just started answers, and return it."""
    ends = time.monotonic() + STARTED
    while not ready.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.02)
    return Server(process, ready.read_text().strip(), log)


@contextlib.contextmanager
def serving(data: Path, *more: str) -> Iterator[Server]:
    """Start a server on a free port, with more options; kill it at the end of the block if it still runs."""
    ready = data.parent / f"ready-{time.monotonic_ns()}"
    log = data.parent / "server.log"
    command = [sys.executable, "-c", "from edgeseal_host.cli import main; main()", "fleet", "serve"]
    command += ["--data", str(data), "--listen", "127.0.0.1:0", "--ready-file", str(ready), *more]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield answering(process, ready, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@dataclass
class World:
    """A fleet directory with an admin token and a publisher whose root it trusts."""

    data: DataDirectory
    publisher: Publisher
    scratch: Path
    token: str = field(repr=False)

    @classmethod
    def make(cls, tmp: Path, *, trusted: bool = True) -> World:
        data = DataDirectory(tmp / "fleet")
        public = data.create("http://127.0.0.1:8443", now=int(time.time()))
        publisher = Publisher(public)
        world = cls(data, publisher, tmp / "scratch", data.admin_token.read_text().strip())
        world.scratch.mkdir()
        if trusted:
            with data.open() as fleet:
                fleet.publisher.trust(publisher.root_bytes())
        return world

    def client(self, server: Server, token: str | None = None) -> FleetClient:
        return FleetClient(server.base, token=token or self.token)

    def upload(self, client: FleetClient, bundle: Bundle) -> None:
        files = bundle.files(self.scratch)
        client.upload_all("chunks", files["chunks"])
        client.upload_all("tables", files["tables"])

    def envelope(self, bundle: Bundle) -> dict[str, bytes]:
        wrap = self.data.public().wrap
        model, release = bundle.manifest.model, bundle.manifest.release
        return {bundle.path: contentkey.wrap(wrap, model=model, release=release, ck=bundle.ck)}

    def publish(
        self, client: FleetClient, bundle: Bundle, *, hw: list[str] | None = None, min_rel: int = 0
    ) -> dict[str, Any]:
        """Upload, list, sign and publish with the content key."""
        self.upload(client, bundle)
        self.publisher.list_release(bundle, hw=hw, min_rel=min_rel)
        return client.publish(self.publisher.publication(), self.envelope(bundle))


class Card:
    """A device's flash and its session."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def save(self, identity: Identity) -> None:
        self.identity = identity

    def device(self) -> Device:
        return Device(self.identity, save=self.save, draw=lambda _label, n: os.urandom(n))


def enrol(
    client: FleetClient,
    public: FleetPublic,
    name: str,
    *,
    group: str = "line-1",
    suite: int = 1,
    hardware: str = "pi-4",
) -> Card:
    """Enrol a device over the API; returns its card."""
    seed, psk = os.urandom(SUITES[suite].seed_length), os.urandom(32)
    key = PrivateKey(suite, seed).public
    client.enrol(record(name, key, psk, public, group=group, hardware=hardware))
    return Card(Identity(name, Generation(suite, seed, psk, provisioned=True)))


def record(
    name: str, key: PublicKey, psk: bytes, public: FleetPublic, *, group: str = "line-1", hardware: str = "pi-4"
) -> bytes:
    """Return an enrolment record."""
    made = enrolment.Record.make(
        device=name, serial="s", hardware=hardware, group=group, key=key, psk=psk, enrol=public.enrol
    )
    return made.to_bytes()


def report(agent: str = "0.1", problem: str = "") -> bytes:
    """Return a device report."""
    values: dict[str, Any] = {
        "format": 1,
        "agent": agent,
        "hardware": "pi-4",
        "runtimes": [],
        "models": {},
        "failed": [],
        "metadata": {},
        "entropy": {},
        "free_disk": 1,
        "free_ram": 1,
        "problem": problem,
    }
    return checkin.Report(**values).to_bytes()


def check_in(card: Card, server: Server, public: FleetPublic, *, problem: str = "") -> Reply:
    """Make one X1 check-in over HTTP."""
    keys = FleetServers(1, 1, list(public.session)).usable(int(time.time()))
    return card.device().check_in(report(problem=problem), servers=keys, send=FleetExchange(server.base))


def orders(card: Card, server: Server, public: FleetPublic) -> checkin.Orders:
    """Check in and read the orders."""
    return checkin.Orders.from_bytes(check_in(card, server, public).body)


# Fixtures: a module that wants one says `world = fleet_world.world` -------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A new fleet that trusts its publisher's root."""
    return World.make(tmp_path)


@pytest.fixture
def server(world: World) -> Iterator[Server]:
    """Its server, running."""
    with serving(world.data.path) as found:
        yield found


@pytest.fixture
def client(world: World, server: Server) -> FleetClient:
    """A client with the admin's token."""
    return world.client(server)


@pytest.fixture
def public(client: FleetClient) -> FleetPublic:
    """What the server says to publishers."""
    return client.public()


def _in(days: int) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def _target(path: str, data: bytes, custom: dict[str, Any] | None) -> TargetFile:
    target = TargetFile(len(data), {"sha256": hashlib.sha256(data).hexdigest()}, path)
    if custom is not None:
        target.unrecognized_fields["custom"] = custom
    return target


def _signed(signed: Root | Targets, key: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(key)
    return metadata.to_bytes()

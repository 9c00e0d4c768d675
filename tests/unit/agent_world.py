"""A fleet in one process for tests of the agent: signed metadata, real bundles and X1 over real HTTP.

The agent itself runs as its users run it, as a command (`run`) or by calling its functions (`agent`).
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseal.checkin import Assignment, Grant, Orders, Report
from edgeseal.device import config, enrol
from edgeseal.device.agent import Agent
from edgeseal.enrolment import Grant as EnrolmentGrant
from edgeseal.servers import FleetServers, ServerKey
from edgeseal.session.messages import Status
from edgeseal.session.server import exchange, ring
from edgeseal.suite import PrivateKey, PublicKey
from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import bundle_content_key
from edgeseal_host.testing.registry import MemoryRegistry
from edgeseal_host.testing.repository import HttpServer, Repository, _Handler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.manifest import Manifest
    from edgeseal.session.server import Row

MODEL = "bearing"
FS = bytes(range(32))
CANARY = b"EDGESEAL-PLAINTEXT-CANARY-" * 8
YEAR = 365 * 86_400


@dataclass
class Published:
    """One release in the repository."""

    manifest: Manifest
    data: bytes
    ck: bytes
    files: dict[str, bytes]


@dataclass
class Fleet:
    """Repository, registry and what the fleet server answers. Tests change it as they like."""

    directory: Path
    repository: Repository
    registry: MemoryRegistry
    session: PrivateKey
    releases: dict[int, Published] = field(default_factory=dict)
    assigned: int = 0
    granted: bool = True
    swapped_key: bytes | None = None
    assignment_sha256: bytes | None = None
    reports: list[Report] = field(default_factory=list)
    base: str = ""

    @classmethod
    def make(cls, directory: Path) -> Fleet:
        repository = Repository([MODEL])
        session = PrivateKey(1, secrets.token_bytes(32))
        fleet = cls(directory, repository, MemoryRegistry(), session)
        fleet.list_server_keys(session)
        return fleet

    def list_server_keys(self, *keys: PrivateKey) -> None:
        """Sign which session keys devices may use."""
        records = [ServerKey(k.suite.number, k.public.raw, int(time.time()) + YEAR) for k in keys]
        self.repository.add_target("targets", "fleet/servers.cbor", FleetServers(1, 1, records).to_bytes())
        self.repository.publish()

    def publish(self, release: int, *, size: int = 2_500_000, listed: bool = True, **custom: object) -> Published:
        """Build a release whose files hold the canary, list and serve it."""
        source = self.directory / f"source-{release}"
        source.mkdir()
        rng = random.Random(7)  # the same body for all releases: only the head differs
        body = bytearray(CANARY + rng.randbytes(size))
        body[-100_000:] = random.Random(release).randbytes(100_000)
        (source / "model.bin").write_bytes(body)
        (source / "labels.txt").write_bytes(b"release %d " % release + CANARY)
        bundle = self.directory / f"bundle-{release}"
        manifest = build_bundle([source], model=MODEL, release=release, suite=1, family_secret=FS, out=bundle)
        files = {
            str(p.relative_to(bundle)): p.read_bytes()
            for kind in ("tables", "chunks")
            for p in (bundle / kind).rglob("*")
            if p.is_file()
        }
        data = (bundle / "manifest.cbor").read_bytes()
        published = Published(manifest, data, bundle_content_key(bundle, FS), files)
        self.releases[release] = published
        self.repository.files.update(files)
        if listed:
            self.repository.add_release(MODEL, release, data, **custom)
            self.repository.publish()
        return published

    def answer(self, _tx: object, _row: Row, body: bytes) -> tuple[Status, bytes]:
        """Give the orders of the moment."""
        self.reports.append(Report.from_bytes(body))
        assignments, keys = [], []
        if self.assigned:
            p = self.releases[self.assigned]
            import hashlib

            sha256 = self.assignment_sha256 or hashlib.sha256(p.data).digest()
            path = p.manifest.target_path
            assignments = [Assignment(MODEL, path, sha256, len(p.data), self.assigned, int(time.time()) + YEAR)]
            if self.granted:
                keys = [Grant(MODEL, self.assigned, self.swapped_key or p.ck, int(time.time()) + YEAR)]
        return Status.OK, Orders(1, assignments, keys, 60, 3600).to_bytes()

    def x1(self, m1: bytes) -> bytes:
        return exchange(
            m1,
            ring=ring([self.session]),
            registry=self.registry,
            handler=self.answer,
            now=int(time.time()),
            random=secrets.token_bytes,
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve files and /x1 on a free port."""
        fleet = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(200, fleet.x1(body), {"Content-Type": "application/octet-stream"})

        with HttpServer(self.repository.files) as server:
            server.RequestHandlerClass = Handler
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            self.base = server.base.rstrip("/")
            self.server = server
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


@dataclass
class Device:
    """One device of the fleet: its configuration file, state directory and model repository (in memory)."""

    fleet: Fleet
    directory: Path
    models: Path

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def config_file(self) -> Path:
        return self.directory / "edgeseal.toml"

    def write_config(self, **sections: dict[str, Any]) -> None:
        """Write the configuration: the test's directories, and what `sections` adds."""
        defaults: dict[str, dict[str, Any]] = {
            "device": {"hardware": "test-board", "serial": "0001"},
            "paths": {"state": str(self.state), "models": str(self.models)},
            "runtime": {"adapter": "none", "probe": False},
            "fleet": {"url": self.fleet.base},
        }
        for name, values in sections.items():
            defaults.setdefault(name, {}).update(values)
        lines = []
        for name, values in defaults.items():
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        self.config_file.write_text("\n".join(lines) + "\n")

    def agent(self) -> Agent:
        return Agent(config.load(self.config_file))

    def enrol(self, name: str = "press-7") -> None:
        """Join the fleet, as the two commands do it."""
        agent = self.agent()
        request = enrol.request(agent, 1)
        key = PublicKey(1, request.public)
        psk, k_rng = secrets.token_bytes(32), secrets.token_bytes(32)
        root = self.fleet.repository.root_bytes(1)
        grant = EnrolmentGrant(1, name, 1, psk, k_rng, self.fleet.base, root, int(time.time()) - 60)
        enrol.accept(agent, grant.seal(key))
        self.fleet.registry.enrol(name, key, psk)

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the command as a user does."""
        command = [sys.executable, "-m", "edgeseal.device.cli", "--config", self.config_file, *words]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [str(w) for w in command], capture_output=True, text=True, timeout=120, check=False, env=environment
        )

    def serving(self) -> int | None:
        """Return the release that runtimes see, after checking that its files are whole."""
        link = self.models / MODEL / "current"
        if not link.is_symlink() or not link.exists():
            return None
        release = int(link.readlink().name)
        source = self.fleet.directory / f"source-{release}"
        for path in source.iterdir():
            assert (link / path.name).read_bytes() == path.read_bytes(), f"{path.name} of release {release}"
        return release

    def plaintext_outside(self) -> list[str]:
        """Return every file with the canary that is not in the published releases in memory, and temporary files."""
        found = []
        for path in [*self.directory.rglob("*"), *self.models.rglob("*")]:
            if not path.is_file() or path.is_symlink():
                continue
            published = self.models in path.parents and path.relative_to(self.models).parts[1].isdecimal()
            if not published and CANARY in path.read_bytes():
                found.append(f"plaintext: {path}")
            if ".tmp-" in path.name or path.name.endswith(".part"):
                found.append(f"temporary: {path}")
        found += [f"staged: {p}" for p in self.models.glob("*/.staged-*")]
        return found

    def reboot(self) -> None:
        """Lose what is in memory."""
        make_writable(self.models)
        shutil.rmtree(self.models)


def make_writable(directory: Path) -> None:
    """Published releases are read-only: give directories back their write permission."""
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)


@contextmanager
def world(directory: Path) -> Iterator[tuple[Fleet, Device]]:
    """A fleet that serves, with release 1 published and assigned, and an enrolled device."""
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else directory
    models = Path(tempfile.mkdtemp(prefix="edgeseal-test-", dir=base)) / "models"
    fleet = Fleet.make(directory)
    fleet.publish(1)
    fleet.assigned = 1
    device = Device(fleet, directory / "device", models)
    device.directory.mkdir()
    try:
        with fleet.serving():
            device.write_config()
            device.enrol()
            yield fleet, device
    finally:
        make_writable(models.parent)
        shutil.rmtree(models.parent)

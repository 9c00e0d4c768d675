"""A publisher's working directory, made by the commands a person types, against a real fleet server in a process."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.unit.fleet_world import serving

from edgeseal.enrolment import Request
from edgeseal.suite import SUITES, PrivateKey
from edgeseal_host.cli import main
from edgeseal_host.fleet.client import FleetClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "bearing"
FAMILY = "bearing-family"
SIZE = 400_000


def edgeseal(*arguments: object) -> Result:
    """Run a command in this process; stdout and stderr apart."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def ok(*arguments: object) -> dict[str, Any]:
    """Run a command with --json that must succeed; return its object."""
    result = edgeseal(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(code: int, *arguments: object) -> str:
    """Run a command that must fail with `code`; return what it says."""
    result = edgeseal(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


@dataclass
class Publisher:
    """Keys, repository and fleet data below one directory; `base` is where the server answers."""

    place: Path
    base: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return "--keys", str(self.place / "keys")

    @property
    def to(self) -> tuple[str, ...]:
        return "--to", self.base, "--token", str(self.place / "fleet" / "admin.token")

    @property
    def repo(self) -> Path:
        return self.place / "repo"

    @property
    def root(self) -> Path:
        return next(
            p for p in (self.repo / "published/metadata/1.root.json", self.repo / "staged/root.json") if p.exists()
        )

    @property
    def public(self) -> Path:
        return self.place / "fleet" / "public.json"

    def client(self) -> FleetClient:
        return FleetClient(self.base, token=(self.place / "fleet" / "admin.token").read_text().strip())

    def make(self) -> None:
        """Make keys, fleet data, and a repository signed by two of three root keys that knows one model."""
        for name in ("alice", "bob", "carol", "targets", "publisher", "stranger"):
            ok("key", "new", name, "--no-passphrase", *self.keys)
        ok("key", "new", FAMILY, "--kind", "family", "--no-passphrase", *self.keys)
        ok("fleet", "init", "--data", self.place / "fleet", "--url", "http://127.0.0.1:8443")
        roots = [x for name in ("alice", "bob", "carol") for x in ("--root-key", name)]
        ok("repo", "init", self.repo, "--fleet", self.public, *roots, "--targets-key", "targets", *self.keys)
        ok("repo", "stage", self.repo, "--model", MODEL, "--publisher-key", "publisher", *self.keys)
        for name in ("alice", "bob", "targets", "publisher"):
            ok("repo", "sign", self.repo, "--key", name, *self.keys)
        ok("fleet", "trust", "--data", self.place / "fleet", self.root)

    def build(self, release: int, *more: object, size: int = SIZE) -> Path:
        """Build a release of random bytes whose last tenth differs from release to release."""
        source, out = self.place / f"model-{release}.bin", self.place / f"b{release}"
        body = np.random.default_rng(7).bytes(size * 9 // 10) + np.random.default_rng(release).bytes(size // 10)
        source.write_bytes(body)
        ok(
            "bundle",
            "build",
            source,
            "--model",
            MODEL,
            "--release",
            release,
            "--family",
            FAMILY,
            "--out",
            out,
            *more,
            *self.keys,
        )
        return out

    def publish_arguments(self, bundle: Path, *, key: str = "publisher") -> tuple[object, ...]:
        return (
            "bundle",
            "publish",
            bundle,
            "--repo",
            self.repo,
            "--key",
            key,
            "--family",
            FAMILY,
            *self.to,
            *self.keys,
        )

    def publish(self, bundle: Path) -> dict[str, Any]:
        return ok(*self.publish_arguments(bundle))

    def request(self, path: Path, *, suite: int = 1, seed: bytes | None = None) -> PrivateKey:
        """Write a device's enrolment request; return its key."""
        key = PrivateKey(suite, seed or np.random.default_rng(5).bytes(SUITES[suite].seed_length))
        path.write_bytes(Request(1, suite, key.public.raw, "sn-1", "pi-4", "0.1", ["kernel"]).to_bytes())
        return key

    def enrol_arguments(self, request: Path, name: str, *more: object) -> tuple[object, ...]:
        return ("device", "enrol", request, "--name", name, "--fleet", self.public, "--root", self.root, *more)


@contextmanager
def publisher(place: Path) -> Iterator[Publisher]:
    """A publisher whose repository the running fleet server has."""
    made = Publisher(place)
    made.make()
    with serving(place / "fleet") as server:
        made.base = server.base
        ok("repo", "publish", made.repo, *made.to)
        yield made


# Fixtures: a module that wants one says `world = publisher_world.world` ---------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Publisher]:
    """A publisher beside a running server that has its repository."""
    with publisher(tmp_path) as made:
        yield made


@pytest.fixture
def offline(tmp_path: Path) -> Publisher:
    """Everything staged and signed, no server."""
    made = Publisher(tmp_path)
    made.make()
    return made

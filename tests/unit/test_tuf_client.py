"""The script that the public conformance suite drives: its command line, exit codes and files (its CLIENT-CLI.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.trust_world import delegate
from tuf.api.metadata import DelegatedRole, Delegations

from edgeseal_host.testing.repository import HttpServer, Repository, new_key

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[1] / "conformance" / "tuf_client.py"


class Suite:
    """What the suite keeps for one test: a repository, its server, and the client's two directories."""

    def __init__(self, directory: Path, server: HttpServer, repository: Repository) -> None:
        self.server, self.repository = server, repository
        self.metadata, self.targets = directory / "metadata", directory / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        (directory / "initial_root.json").write_bytes(repository.root_bytes(1))
        assert self.run("init", str(directory / "initial_root.json")) == 0

    def run(self, *words: str) -> int:
        command = [sys.executable, str(SCRIPT), "--metadata-dir", str(self.metadata), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr
        assert (done.returncode == 0) == (not done.stderr), done.stderr
        return done.returncode

    def refresh(self) -> int:
        return self.run("--metadata-url", self.server.base + "metadata/", "refresh")

    def download(self, *names: str) -> int:
        urls = ["--metadata-url", self.server.base + "metadata/", "--target-base-url", self.server.base + "targets/"]
        words = [word for name in names for word in ("--target-name", name)]
        return self.run(*urls, *words, "--target-dir", str(self.targets), "download")

    def downloaded(self) -> list[bytes]:
        return [p.read_bytes() for p in self.targets.rglob("*") if p.is_file()]


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    repository = Repository(root_keys=1, threshold=1)
    repository.add_target("targets", "a/file.txt", b"content")
    repository.publish()
    with repository.serve() as server:
        yield Suite(tmp_path, server, repository)


def test_refresh_shows_what_is_trusted(suite: Suite) -> None:
    assert sorted(p.name for p in suite.metadata.glob("*.json")) == ["root.json"]
    assert suite.refresh() == 0
    names = ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    assert sorted(p.name for p in suite.metadata.glob("*.json")) == names
    served = suite.repository.files
    assert (suite.metadata / "timestamp.json").read_bytes() == served["metadata/timestamp.json"]
    assert (suite.metadata / "targets.json").read_bytes() == served["metadata/2.targets.json"]


def test_download_keeps_what_it_has(suite: Suite) -> None:
    assert suite.download("a/file.txt") == 0
    assert suite.download("a/file.txt") == 0
    assert suite.downloaded() == [b"content"]
    assert len([path for path, *_ in suite.server.log if "/targets/" in path]) == 1
    suite.repository.add_target("targets", "a/file.txt", b"changed")
    suite.repository.publish()
    assert suite.download("a/file.txt") == 0
    assert suite.downloaded() == [b"changed"]


def test_role_is_verified_again_under_another_delegator(suite: Suite) -> None:
    """Two targets in one run, listed by one role that two roles delegate to: the second with a key it has not."""
    repository, both = suite.repository, ["a/*", "b/*"]
    delegate(repository, [("targets", "A", ["a/*"], False), ("targets", "B", ["b/*"], False), ("A", "C", both, False)])
    stranger = new_key().public_key
    named = DelegatedRole("C", [stranger.keyid], 1, terminating=False, paths=both)
    repository.metadata["B"].signed.delegations = Delegations({stranger.keyid: stranger}, {"C": named})
    repository.add_target("C", "a/1", b"one")
    repository.add_target("C", "b/1", b"two")
    repository.publish("B", "C", "snapshot", "timestamp")
    assert suite.download("a/1", "b/1") == 1
    assert suite.downloaded() == [b"one"]


def test_failures_are_exit_code_1(suite: Suite) -> None:
    assert suite.download("missing") == 1
    for name in [n for n in suite.repository.files if n.startswith("targets/")]:
        suite.repository.files[name] = b"c0ntent"
    assert suite.download("a/file.txt") == 1
    assert suite.downloaded() == []
    suite.repository.publish("timestamp", expires=1)
    assert suite.refresh() == 1

"""The rotation guide, done: each replacement publishes, and so does what comes after it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow
EDGESEAL = Path(sys.executable).parent / "edgeseal"


class Desk:
    """A workstation and a fleet server in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{s.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.environment = {**os.environ, "EDGESEAL_KEYS": "keys", "EDGESEAL_TOKEN_FILE": "fleet/admin.token"}

    def do(self, line: str) -> str:
        """Run `edgeseal LINE` and return its output."""
        words = [str(EDGESEAL), *line.split()]
        done = subprocess.run(
            words, cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    def sign_and_publish(self, *names: str) -> str:
        """Let people sign what is staged, then publish it."""
        for name in names:
            self.do(f"repo sign repo --key {name}")
        return self.do(f"repo publish repo --to {self.url}")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    for name in ("alice", "bob", "carol", "dora", "erin", "targets", "targets-2", "publisher", "publisher-2"):
        desk.do(f"key new {name} --no-passphrase")
    desk.do(f"fleet init --data fleet --url {desk.url}")
    roots = "--root-key alice --root-key bob --root-key carol --threshold 2 --targets-key targets"
    desk.do(f"repo init repo --fleet fleet/public.json {roots}")
    desk.do("repo stage repo --model bearing --publisher-key publisher")
    for name in ("alice", "bob", "targets", "publisher"):
        desk.do(f"repo sign repo --key {name}")
    desk.do("fleet trust --data fleet repo/staged/root.json")
    words = [str(EDGESEAL), "fleet", "serve", "--data", "fleet", "--listen", desk.address, "--ready-file", "ready"]
    with (
        open(tmp_path / "server.log", "wb") as log,
        subprocess.Popen(words, cwd=tmp_path, env=desk.environment, stdout=log, stderr=log) as server,
    ):
        while not (tmp_path / "ready").exists():
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            time.sleep(0.05)
        desk.do(f"repo publish repo --to {desk.url}")
        yield desk
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0


def test_every_rotation_of_the_guide_publishes_one_after_another(desk: Desk) -> None:
    desk.do("repo rotate repo --role root --old carol --new dora")
    assert "root" in desk.sign_and_publish("alice", "bob", "dora")
    desk.do("repo stage repo --model bearing --publisher-key publisher-2")
    assert "targets" in desk.sign_and_publish("targets", "publisher-2")
    desk.do("repo stage repo --renew model-bearing")
    assert "model-bearing" in desk.sign_and_publish("publisher-2")
    for ring in ("session", "wrap", "enrol"):
        desk.do(f"fleet rotate --data fleet {ring}")
    desk.do("repo stage repo --fleet fleet/public.json")
    assert "targets" in desk.sign_and_publish("targets")
    desk.do("fleet rotate-online-keys --data fleet")
    desk.do("repo stage repo --fleet fleet/public.json")
    assert "root" in desk.sign_and_publish("alice", "bob", "targets")
    assert not list((desk.directory / "fleet/secrets").glob("*.next.key"))
    desk.do("repo add-key repo --role root --key erin --threshold 3")
    assert "root" in desk.sign_and_publish("alice", "bob", "erin")
    desk.do("repo remove-key repo --role root --key erin --threshold 2")
    assert "root" in desk.sign_and_publish("alice", "dora", "bob")
    desk.do("repo add-key repo --role targets --key targets-2")
    assert "root" in desk.sign_and_publish("bob", "alice")
    desk.do("repo stage repo --renew targets")
    assert "targets" in desk.sign_and_publish("targets-2")
    assert "a device whose clock says 1970" in desk.do(f"repo doctor repo --to {desk.url}")

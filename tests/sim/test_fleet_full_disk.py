"""A fleet server whose disk fills up under it, a real one of its own (tmpfs in a mount namespace): nothing is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from tests.unit import fleet_world
from tests.unit.fleet_world import Card, Server, World, answering, check_in, enrol

from edgeseal.errors import NoSpaceError, TemporaryError
from edgeseal.session.messages import Status
from edgeseal_host.fleet.wire import LENGTH_HEADER, OFFSET_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal_host.fleet.public import FleetPublic

DISK_MB = 72  # 64 must stay free for the database, see objects.SPARE
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
LENGTH = 3 * 2**20


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    """Mount namespaces, usable by this user."""
    mount = [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs unshare and leave to mount a tmpfs of its own")


class Disk:
    """The disk of a server, seen from outside of its mount namespace."""

    def __init__(self, server: Server, place: Path) -> None:
        self.place = Path(f"/proc/{server.process.pid}/root") / place.relative_to("/")

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.place / "filler").open("wb", buffering=0) as f:
            for size in (2**20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(size))

    def free(self) -> None:
        (self.place / "filler").unlink()


world = fleet_world.world


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[Server]:
    """A server on a copy of the world's directory, on a small disk."""
    place, ready, log = tmp_path / "disk", tmp_path / "ready", tmp_path / "server.log"
    place.mkdir()
    run = f'mount -t tmpfs -o size={DISK_MB}m,mode=755 tmpfs "$1" && cp -a "$0/." "$1" && shift && exec "$@"'
    program = [sys.executable, "-c", "from edgeseal_host.cli import main; main()", "fleet", "serve"]
    program += ["--data", str(place), "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command = [*UNSHARE, "sh", "-c", run, str(world.data.path), str(place), *program]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield answering(process, ready, log)
        finally:
            process.kill()


@pytest.fixture
def disk(server: Server, tmp_path: Path) -> Disk:
    return Disk(server, tmp_path / "disk")


def send_while_the_disk_fills(world: World, server: Server, disk: Disk, content: bytes) -> bytes:
    """Upload with the disk filling up half-way; returns the server's answer."""
    name, at = hashlib.sha256(content).hexdigest(), urlsplit(server.base)
    assert at.hostname
    assert at.port
    lines = [
        f"PATCH /api/v1/uploads/tables/{name} HTTP/1.1",
        "Host: x",
        "Connection: close",
        f"Authorization: Bearer {world.token}",
    ]
    lines += [f"Content-Length: {len(content)}", f"{OFFSET_HEADER}: 0", f"{LENGTH_HEADER}: {len(content)}", "", ""]
    with socket.create_connection((at.hostname, at.port), timeout=20) as s:
        s.sendall("\r\n".join(lines).encode() + content[: LENGTH // 2])
        partial = disk.place / "objects/incoming" / f"tables-{name}"
        ends = time.monotonic() + 20
        while not partial.exists() or partial.stat().st_size < 2**20:
            assert time.monotonic() < ends
            time.sleep(0.02)
        disk.fill()
        with contextlib.suppress(OSError):  # it may have answered and closed already
            s.sendall(content[LENGTH // 2 :])
        answer = b""
        while piece := s.recv(65_536):
            answer += piece
        return answer


def test_disk_that_fills_during_an_upload_keeps_what_came_and_goes_on_there(
    world: World, server: Server, disk: Disk, tmp_path: Path
) -> None:
    content = os.urandom(LENGTH)
    answer = send_while_the_disk_fills(world, server, disk, content)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 507 "), answer
    assert json.loads(body)["error"] == "NoSpaceError"
    assert b"disk is full" in body
    assert str(tmp_path).encode() not in body  # not the server's paths
    client, name = world.client(server), hashlib.sha256(content).digest()
    file = tmp_path / "object"
    file.write_bytes(content)
    with pytest.raises(NoSpaceError, match="bytes left"):
        client.request(
            "PATCH",
            f"uploads/tables/{name.hex()}",
            body=content,
            headers={OFFSET_HEADER: "0", LENGTH_HEADER: str(LENGTH)},
        )
    disk.free()
    assert client.missing("tables", [name]) == [name]
    assert client.partial["tables", name.hex()] >= 2**20  # what had come is there still
    sent: list[int] = []
    client.upload("tables", name, file, sent.append)
    assert client.missing("tables", [name]) == []
    assert "Traceback" not in server.log.read_text()


def check_in_often(card: Card, server: Server, public: FleetPublic) -> None:
    """More often than the space that a database has set aside can last."""
    for _ in range(200):
        check_in(card, server, public)


def test_device_that_meets_a_full_disk_is_told_to_come_back_and_nothing_is_forgotten(
    world: World, server: Server, disk: Disk
) -> None:
    client = world.client(server)
    public = client.public()
    card = enrol(client, public, "press-7")
    assert check_in(card, server, public).status is Status.OK
    seen = client.device("press-7")["seen_at"]
    disk.fill()
    with pytest.raises(TemporaryError):
        check_in_often(card, server, public)
    with pytest.raises(NoSpaceError):
        client.revoke("press-7", "x" * 200)
    assert client.device("press-7")["seen_at"] >= seen  # what it can read it still answers
    disk.free()
    assert check_in(card, server, public).status is Status.OK
    assert client.device("press-7")["alarms"] == 0
    client.revoke("press-7", "lost")
    assert check_in(card, server, public).status is Status.REVOKED
    assert world.token not in server.log.read_text()

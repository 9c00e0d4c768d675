"""The fleet server's HTTP edge: traversal, ranges, caches, oversized and malformed bodies, clean shutdown."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import sqlite3
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from tests.unit.fleet_world import Server, World, make_bundle, run, serving

from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World.make(tmp_path_factory.mktemp("fleet"))
    place = world.data.path / "objects" / "chunks" / NAME[:2] / NAME
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    big = world.data.path / "objects" / "tables" / "aa" / ("aa" + "0" * 62)
    big.parent.mkdir(parents=True)
    with big.open("wb") as f:
        f.truncate(5 * 2**20 + 1)
    return world


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    with serving(world.data.path) as found:
        world.client(found).publish(world.publisher.publication())
        yield found


def ask(
    server: Server, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request whose path no library tidies up."""
    where = urlsplit(server.base)
    line = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=20)
    try:
        line.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            line.putheader(name.replace("_", "-"), value)
        if body is not None:
            line.putheader("Content-Length", str(len(body)))
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        line.close()


CHUNK = f"/chunks/{NAME[:2]}/{NAME}"


@pytest.mark.parametrize(
    "path",
    [
        "/metadata/../fleet.db",
        "/metadata/../../secrets/data.key",
        "/metadata/%2e%2e/%2e%2e/secrets/data.key",
        "/metadata/..%2f..%2fsecrets%2fdata.key",
        "/metadata//etc/passwd",
        "//etc/passwd",
        "/chunks/../../secrets/data.key",
        f"/chunks/{NAME[:2]}/../../../secrets/session.ring",
        f"/chunks/00/{NAME}",
        f"{CHUNK}/",
        f"{CHUNK}%00",
        f"{CHUNK}.part",
        "/targets/../../admin.token",
        "/targets/fleet/../../../admin.token",
        "/targets/models/../fleet/x",
        "/incoming/x",
        "/metadata/",
        "/metadata/timestamp.json/../../../fleet.db",
        "/metadata/.tmp-timestamp.json",
        "/metadata/1..json",
        "/objects/metadata/timestamp.json",
    ],
)
def test_path_outside_the_public_files_is_not_found(server: Server, path: str) -> None:
    status, headers, body = ask(server, path)
    assert status == 404
    assert b"edgeseal_" not in body
    assert headers["cache-control"] == "no-store"  # a cache must not remember that a root is not there yet


def test_link_below_the_objects_is_not_followed(server: Server, world: World) -> None:
    name = "bb" + "0" * 62
    link = world.data.path / "objects" / "chunks" / "bb" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(world.data.secrets / "data.key")
    assert ask(server, f"/chunks/bb/{name}")[0] == 404


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1000-", 1000, 1024),
        ("bytes=1023-", 1023, 1024),
        ("bytes=-1", 1023, 1024),
        ("bytes=-5000", 0, 1024),
        ("bytes=5-99999999", 5, 1024),
    ],
)
def test_range_gets_exactly_those_bytes(server: Server, value: str, start: int, end: int) -> None:
    status, headers, body = ask(server, CHUNK, Range=value)
    assert (status, body) == (206, CONTENT[start:end])
    assert headers["content-range"] == f"bytes {start}-{end - 1}/1024"


@pytest.mark.parametrize("value", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_range_behind_the_end_is_unsatisfiable(server: Server, value: str) -> None:
    status, headers, body = ask(server, CHUNK, Range=value)
    assert (status, body) == (416, b"")
    assert headers["content-range"] == "bytes */1024"


@pytest.mark.parametrize(
    "value",
    ["bytes=", "bytes=-", "bytes=9-3", "bytes=a-b", "items=0-1", "bytes=0-1,5-6", "bytes=" + "9" * 30 + "-", "0-1"],
)
def test_malformed_or_multiple_range_gets_everything(server: Server, value: str) -> None:
    status, _headers, body = ask(server, CHUNK, Range=value)
    assert (status, body) == (200, CONTENT)


def test_range_of_a_large_file_is_streamed(server: Server) -> None:
    path = f"/tables/aa/aa{'0' * 62}"
    assert len(ask(server, path)[2]) == 5 * 2**20 + 1
    status, headers, body = ask(server, path, Range="bytes=1000-4000000")
    assert (status, len(body)) == (206, 3_999_001)
    assert headers["content-length"] == "3999001"


def test_etag_makes_an_unchanged_poll_a_304(server: Server) -> None:
    status, headers, body = ask(server, "/metadata/timestamp.json")
    assert status == 200
    assert headers["cache-control"] == "no-cache"
    tag = headers["etag"]
    for value in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        again = ask(server, "/metadata/timestamp.json", If_None_Match=value)
        assert (again[0], again[2]) == (304, b"")
        assert again[1]["etag"] == tag
    assert ask(server, "/metadata/timestamp.json", If_None_Match='"other"')[2] == body


def test_immutable_files_may_be_cached_for_ever(server: Server) -> None:
    for path in (CHUNK, "/metadata/1.root.json", "/metadata/1.snapshot.json"):
        status, headers, _ = ask(server, path)
        assert status == 200
        assert "immutable" in headers["cache-control"]


def test_if_range_with_another_etag_gets_everything(server: Server) -> None:
    tag = ask(server, CHUNK)[1]["etag"]
    assert ask(server, CHUNK, Range="bytes=0-3", If_Range=tag)[0] == 206
    assert ask(server, CHUNK, Range="bytes=0-3", If_Range='"other"')[0] == 200


def test_head_has_the_headers_and_no_body(server: Server) -> None:
    status, headers, body = ask(server, CHUNK, method="HEAD")
    assert (status, headers["content-length"], body) == (200, "1024", b"")


@pytest.mark.parametrize(
    ("path", "method", "size"),
    [("/x1", "POST", 16_385), ("/api/v1/devices", "POST", 65_537), ("/api/v1/tickets", "POST", 65_537)],
)
def test_oversized_body_is_refused(server: Server, world: World, path: str, method: str, size: int) -> None:
    status, _, body = ask(server, path, method=method, body=b"x" * size, Authorization=f"Bearer {world.token}")
    assert status == 413
    if path != "/x1":
        assert json.loads(body)["exit_code"] == UsageError.exit_code


def test_oversized_body_without_a_length_is_cut_off(server: Server) -> None:
    where = urlsplit(server.base)
    with socket.create_connection((where.hostname or "", where.port or 0)) as line:
        line.settimeout(20)
        line.sendall(b"POST /x1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(64):
                line.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                time.sleep(0.002)
        except OSError:
            return  # closed on us: as good
        assert b" 413 " in line.recv(4096)


def test_announced_length_beyond_the_limit_is_refused_before_the_body(server: Server) -> None:
    where = urlsplit(server.base)
    for length in (b"999999999999", b"9" * 17):
        with socket.create_connection((where.hostname or "", where.port or 0)) as line:
            line.settimeout(20)
            line.sendall(b"POST /x1 HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n")
            assert b" 413 " in line.recv(4096)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("assignments", b"{}"),
        ("assignments", b"null"),
        ("assignments", b"[" * 10_000),
        ("assignments", b'{"model": "m", "release": 0, "group": "g"}'),
        ("assignments", b'{"model": "m", "release": 1e400, "group": "g"}'),
        ("assignments", b'{"model": "m", "release": 1}'),
        ("assignments", b'{"model": "m", "release": 1, "group": "g", "device": "d"}'),
        ("assignments", b'{"model": "m", "release": 1, "group": "g", "extra": 1}'),
        ("devices", b'{"record": "???"}'),
        ("devices", b'{"record": ""}'),
        ("missing", b'{"kind": "secrets", "names": []}'),
        ("missing", b'{"kind": "chunks", "names": ["../../x"]}'),
        ("missing", json.dumps({"kind": "chunks", "names": ["a" * 64 + "\n"]}).encode()),
        ("metadata", b'{"roots": 1}'),
        ("metadata", b'{"targets": "%%%"}'),
        ("metadata", b'{"files": {"x": 1}}'),
        ("metadata", b'{"envelopes": []}'),
        ("metadata", b"\xff\xfe"),
        ("tickets", b'{"device": "d", "model": "m", "release": 1}'),
    ],
)
def test_malformed_api_body_is_a_clear_error(server: Server, world: World, path: str, body: bytes) -> None:
    status, _, answer = ask(server, f"/api/v1/{path}", method="POST", body=body, Authorization=f"Bearer {world.token}")
    error = json.loads(answer)
    assert status in {400, 403, 422}, answer
    assert set(error) == {"error", "message", "hint", "exit_code"}
    assert server.process.poll() is None


def test_unknown_route_and_method_are_json_errors(server: Server, world: World) -> None:
    for path, method, status in (
        ("/api/v1/nothing", "GET", 404),
        ("/api/v1/metadata", "PUT", 405),
        ("/x1", "GET", 405),
    ):
        answer = ask(server, path, method=method, body=b"", Authorization=f"Bearer {world.token}")
        assert answer[0] == status
        assert json.loads(answer[2])["error"] == "UsageError"


def test_request_without_a_token_is_401(server: Server) -> None:
    status, headers, body = ask(server, "/api/v1/devices")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["error"] == "NotAuthorisedError"


def test_health_and_metrics_answer(server: Server) -> None:
    status, _, body = ask(server, "/healthz")
    assert status == 200
    assert json.loads(body)["timestamp_seconds_left"] > 80_000
    assert b"edgeseal_timestamp_expiry_seconds" in ask(server, "/metrics")[2]


def test_clean_shutdown_lets_a_running_request_end(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    content = os.urandom(400_000)
    name = hashlib.sha256(content).hexdigest()
    with serving(world.data.path) as server:
        where = urlsplit(server.base)
        with socket.create_connection((where.hostname or "", where.port or 0)) as line:
            line.settimeout(20)
            head = (
                f"PATCH /api/v1/uploads/chunks/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token}\r\n"
                f"Upload-Offset: 0\r\nUpload-Length: 400000\r\nContent-Length: 400000\r\n\r\n"
            )
            line.sendall(head.encode() + content[:200_000])
            time.sleep(0.3)
            ended: list[int] = []
            stopper = threading.Thread(target=lambda: ended.append(server.stop()))
            stopper.start()
            time.sleep(0.3)
            line.sendall(content[200_000:])
            assert b" 201 " in line.recv(4096)
        stopper.join()
        assert ended == [0]
    assert (world.data.path / "objects" / "chunks" / name[:2] / name).read_bytes() == content


def test_broken_database_is_a_temporary_error_without_details(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    with serving(world.data.path) as server:
        with sqlite3.connect(world.data.database) as connection:
            connection.execute("ALTER TABLE token RENAME TO gone")
        connection.close()
        status, _, body = ask(server, "/api/v1/devices", Authorization=f"Bearer {world.token}")
        log = server.log.read_text()
    assert status == 503
    assert json.loads(body)["exit_code"] == 5
    assert b"token" not in body
    assert world.token.split("_", 2)[2] not in log
    assert '"exception": "OperationalError"' in log


def test_second_server_on_one_directory_is_refused(server: Server, world: World) -> None:
    done = run("fleet", "serve", "--data", str(world.data.path), "--listen", "127.0.0.1:0")
    assert done.returncode == 5
    assert "is in use" in done.stderr
    assert server.process.poll() is None


def test_busy_or_bad_address_is_a_usage_error(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    for listen in ("nowhere", "127.0.0.1:99999", "127.0.0.1:x"):
        done = run("fleet", "serve", "--data", str(world.data.path), "--listen", listen)
        assert done.returncode == UsageError.exit_code, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("fleet", "serve", "--data", str(world.data.path), "--listen", listen)
    assert done.returncode == UsageError.exit_code
    assert "is another server running there" in done.stderr
    assert run("fleet", "serve", "--data", str(tmp_path / "none")).returncode == UsageError.exit_code


def test_bundle_objects_are_served_after_upload(server: Server, world: World) -> None:
    bundle = make_bundle("bearing", 1)
    world.upload(world.client(server), bundle)
    for name, data in bundle.chunks.items():
        assert ask(server, f"/chunks/{name.hex()[:2]}/{name.hex()}")[2] == data

"""edgeseal-serve over time: switches under load, releases that do not load, going back, starting and ending."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.unit import runtime_world as world

from edgeseal.errors import IncompatibleError, UsageError
from edgeseal.runtime.contract import Candidate, make_adapter
from edgeseal.runtime.listen import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.repository import ModelRepository

pytestmark = pytest.mark.unit
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}).encode()


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        yield found


def _serve_release(models: ModelRepository, release: int) -> None:
    """Install as the agent does; release n answers n."""
    adapter = make_adapter("serve", repository=models, probe=False)
    candidate = world.publish(models, "m", release, float(release))
    adapter.prepare(candidate)
    adapter.activate(candidate)
    adapter.commit(candidate)


def _ask(connection: http.client.HTTPConnection) -> tuple[int, str, float]:
    connection.request("POST", "/v2/models/m/infer", BODY)
    answer = connection.getresponse()
    document = json.loads(answer.read())
    if answer.status != 200:
        return answer.status, document["error"], 0
    return 200, document["model_version"], document["outputs"][0]["data"][0]


def _status(server: world.Serve, path: str) -> int:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def _version(server: world.Serve) -> Any:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        return _ask(connection)[1]
    finally:
        connection.close()


class Load:
    """Clients that ask without a pause and keep what went wrong."""

    def __init__(self, server: world.Serve, clients: int = 3) -> None:
        self.wrong: list[object] = []
        self.versions: list[str] = []
        self._server = server
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._server.address, timeout=30)
        while not self._done.is_set():
            try:
                status, version, value = _ask(connection)
            except (OSError, http.client.HTTPException, ValueError) as e:
                self.wrong.append(repr(e))
                break
            if status != 200 or float(version) != value:
                self.wrong.append((status, version, value))
            self.versions.append(version)
        connection.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


def test_switches_under_load_lose_no_request(models: ModelRepository) -> None:
    _serve_release(models, 1)
    with world.serving(models) as server, Load(server) as load:
        for release in range(2, 8):
            _serve_release(models, release)
            world.until(lambda r=release: load.wrong or str(r) in load.versions, f"release {release} serves")
    assert load.wrong == []
    assert set(load.versions) == {str(r) for r in range(1, 8)}
    assert models.releases("m") == [7]


def test_a_lost_request_would_be_seen(models: ModelRepository) -> None:
    # Negative control: the server ends in the middle of the load.
    _serve_release(models, 1)
    with world.serving(models) as server, Load(server) as load:
        world.until(lambda: len(load.versions) > 5, "requests are answered")
        server.process.kill()
        server.process.wait()
        world.until(lambda: load.wrong, "the load notices")
    assert load.wrong


def test_a_release_that_does_not_load_leaves_the_old_one_serving(models: ModelRepository) -> None:
    _serve_release(models, 1)
    with world.serving(models) as server, Load(server) as load:
        (models.stage("m", 2) / "model.onnx").write_bytes(b"garbage")
        models.publish("m", 2)
        models.switch("m", 2)
        world.until(lambda: "m release 2 does not load, release 1 goes on" in server.said(), "it says so")
        assert _version(server) == "1"
        assert _status(server, "/v2/health/ready") == 200
        _serve_release(models, 3)
        world.until(lambda: _version(server) == "3", "the next good release serves")
    assert load.wrong == []


def test_the_same_number_with_other_bytes_is_another_release(models: ModelRepository) -> None:
    _serve_release(models, 1)
    with world.serving(models) as server:
        (models.stage("m", 2) / "model.onnx").write_bytes(b"garbage")
        models.publish("m", 2)
        models.switch("m", 2)
        world.until(lambda: "m release 2 does not load" in server.said(), "it says so")
        _serve_release(models, 2)
        world.until(lambda: _version(server) == "2", "the mended release serves")


def test_a_rollback_returns_to_the_release_before(models: ModelRepository) -> None:
    _serve_release(models, 1)
    adapter = make_adapter("serve", repository=models, probe=False)
    with world.serving(models) as server, Load(server) as load:
        candidate = world.publish(models, "m", 2, 2.0)
        adapter.activate(candidate)
        world.until(lambda: _version(server) == "2", "release 2 serves")
        adapter.rollback(candidate)
        world.until(lambda: _version(server) == "1", "release 1 serves again")
    assert load.wrong == []
    assert (models.current("m"), models.releases("m")) == (1, [1])


def test_a_first_release_that_is_taken_back_does_not_stay(models: ModelRepository) -> None:
    adapter = make_adapter("serve", repository=models, probe=False)
    with world.serving(models) as server:
        candidate = world.publish(models, "m", 1, 1.0)
        adapter.activate(candidate)
        world.until(lambda: _status(server, "/v2/models/m/ready") == 200, "release 1 serves")
        adapter.rollback(candidate)
        world.until(lambda: _status(server, "/v2/models/m/ready") == 404, "nothing serves")
        world.until(lambda: _status(server, "/v2/health/ready") == 503, "the old worker takes no new connection")
    assert models.current("m") is None


def test_strange_things_in_the_repository_do_not_stop_it(models: ModelRepository) -> None:
    (models.root / "lost+found").mkdir()
    (models.root / "UPPER").mkdir()
    (models.root / "file").write_text("x")
    (models.root / "empty").mkdir()
    with world.serving(models) as server:
        _serve_release(models, 1)
        world.until(lambda: _status(server, "/v2/models/m/ready") == 200, "it follows all the same")


def test_it_waits_for_a_repository_that_is_not_there_yet(models: ModelRepository) -> None:
    models.root.rmdir()
    with world.serving(models) as server:
        assert _status(server, "/v2/health/live") == 200
        models.prepare()
        _serve_release(models, 1)
        world.until(lambda: _status(server, "/v2/health/ready") == 200, "it serves")


# Start and end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(models: ModelRepository, number: int) -> None:
    _serve_release(models, 1)
    with world.serving(models) as server:
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        assert not server.ready.exists()
        assert "Traceback" not in server.said()


def test_it_answers_what_has_begun_before_it_ends(models: ModelRepository) -> None:
    _serve_release(models, 1)
    with world.serving(models) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as s:
            head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
            s.sendall(head.encode() + BODY[:10])
            world.until(lambda: _status(server, "/v2/health/live") == 200, "the beginning has arrived")
            server.process.terminate()
            world.until(lambda: "Shutting down" in server.said(), "it drains")
            s.sendall(BODY[10:])
            assert s.recv(100).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(30) == 0


def test_an_endless_inference_does_not_hold_it_back(models: ModelRepository) -> None:
    world.endless(models.stage("m", 1) / "model.onnx")
    models.publish("m", 1)
    models.switch("m", 1)
    with world.serving(models, "--timeout", "1") as server:
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}]})
        connection = http.client.HTTPConnection(server.address, timeout=60)
        connection.request("POST", "/v2/models/m/infer", body)
        server.process.terminate()
        assert server.process.wait(60) == 0
        connection.close()


def test_a_unix_socket(models: ModelRepository) -> None:
    _serve_release(models, 1)
    path = models.root.parent / "socket"
    with world.serving(models, listen=f"unix:{path}") as server:
        assert server.url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(str(path))
            s.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert s.recv(100).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(IncompatibleError, match="another server answers"):
            listen(f"unix:{path}")
        assert server.stop() == 0
        assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    found, _ = listen(f"unix:{path}")
    found.close()


def test_a_file_in_the_sockets_place_stays(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    with pytest.raises(IncompatibleError, match="cannot listen"):
        listen(f"unix:{tmp_path}/socket")
    assert (tmp_path / "socket").read_text() == "precious"


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:8000", "192.168.1.1:80", ":8000", "8000", "127.0.0.1:x", "127.0.0.1:99999", "unix:", "[::]:1", ""],
)
def test_it_does_not_listen_on_a_network(address: str) -> None:
    with pytest.raises(UsageError, match="cannot listen on"):
        listen(address)


def test_a_port_that_is_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(IncompatibleError, match="cannot listen on") as caught,
    ):
        listen(f"127.0.0.1:{other.getsockname()[1]}")
    assert "another edgeseal-serve" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "0.0.0.0:1"],
        ["--concurrency", "0"],
        ["--timeout", "0"],
        ["--max-body-mb", "0"],
        ["--threads", "-1"],
    ],
)
def test_a_wrong_command_line(arguments: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "edgeseal.runtime.serve", "--models", str(tmp_path), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def _mapped(server: world.Serve, models: ModelRepository) -> list[str]:
    """Releases whose files the server's workers have mapped."""
    place = f"{models.root}/m/"
    lines = [line for pid in server.workers() for line in (Path("/proc") / pid / "maps").read_text().splitlines()]
    return sorted({line.partition(place)[2].split("/")[0] for line in lines if place in line})


def test_weights_are_mapped_and_let_go(models: ModelRepository) -> None:
    """One release in memory once, as the file it is; of a replaced one nothing stays."""
    adapter = make_adapter("serve", repository=models, probe=False)
    with world.serving(models) as server:
        for release in range(1, 5):
            world.mapped(models.stage("m", release), float(release))
            candidate = Candidate("m", release, models.publish("m", release), models.current("m"))
            adapter.activate(candidate)
            adapter.commit(candidate)
            world.until(lambda r=release: _version(server) == str(r), f"release {release} serves")
            world.until(lambda r=release: _mapped(server, models) == [str(r)], f"only release {release} is in memory")

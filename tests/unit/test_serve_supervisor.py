"""edgeseal-serve by processes: workers that crash, are killed or do not load; memory that is short; a held socket."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.unit import runtime_world as world
from tests.unit.test_serve_switch import BODY, Load, _ask, _serve_release, _status

from edgeseal.errors import UsageError
from edgeseal.runtime import serve_status
from edgeseal.runtime.listen import passed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.repository import ModelRepository


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        yield found


@pytest.fixture
def status_file(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


def model_status(path: Path, model: str = "m") -> serve_status.ModelStatus:
    found = serve_status.read(path)
    return found.models.get(model, serve_status.ModelStatus()) if found else serve_status.ModelStatus()


def counted(path: Path, release: int) -> serve_status.ReleaseStatus:
    return model_status(path).releases.get(str(release), serve_status.ReleaseStatus())


def serves(path: Path, release: int) -> bool:
    return model_status(path).serving == release


def ask_once(server: world.Serve) -> tuple[int, str, float]:
    connection = http.client.HTTPConnection(server.address, timeout=60)
    try:
        return _ask(connection)
    finally:
        connection.close()


# Kills ----------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_waiting_connections_are_answered(
    models: ModelRepository, status_file: Path
) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file)) as server:
        (worker,) = server.workers()
        os.kill(int(worker), signal.SIGKILL)
        assert ask_once(server) == (200, "1", 1.0)  # its connection waited for the next worker
        world.until(lambda: counted(status_file, 1).crashes == 1, "the crash is counted")
        assert server.workers() != [worker]


def test_a_worker_killed_while_it_loads_leaves_the_old_one_serving(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file)) as server, Load(server) as load:
        (old,) = server.workers()
        world.publish(models, "m", 2, 2.0)
        models.switch("m", 2)
        world.until(lambda: len(server.workers()) == 2, "a second worker loads")
        (new,) = set(server.workers()) - {old}
        os.kill(int(new), signal.SIGKILL)
        world.until(lambda: model_status(status_file).failed, "it says so")
        failed = model_status(status_file).failed
        assert failed
        assert (failed.release, failed.reason) == (2, "the worker ended while it loaded (SIGKILL)")
        assert server.workers() == [old]
        assert serves(status_file, 1)
        _serve_release(models, 3)
        world.until(lambda: serves(status_file, 3), "the next release serves")
    assert load.wrong == []


def test_an_old_worker_killed_while_it_drains_costs_nothing_new(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file)) as server:
        host, port = server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=30):  # silent: it lingers
            (old,) = server.workers()
            _serve_release(models, 2)
            world.until(lambda: serves(status_file, 2), "release 2 serves")
            assert old in server.workers()
            os.kill(int(old), signal.SIGKILL)
            world.until(lambda: old not in server.workers(), "it has ended")
        assert ask_once(server)[1] == "2"
        assert counted(status_file, 1).crashes == 0


def test_workers_end_with_a_killed_supervisor(models: ModelRepository) -> None:
    _serve_release(models, 1)
    with world.serving(models) as server:
        (worker,) = server.workers()
        server.process.kill()
        server.process.wait()
        world.until(lambda: not Path(f"/proc/{worker}/fd").exists(), "the worker has ended")


def test_a_worker_killed_while_it_loads_with_nothing_to_go_back_to_is_tried_again(
    models: ModelRepository, status_file: Path
) -> None:
    """As by the kernel for memory while a device starts: the release has served for weeks and is not to blame."""
    _serve_release(models, 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = held(listener, "--models", str(models.root), "--status-file", str(status_file))
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for _ in range(2):
                world.until(lambda: children.exists() and children.read_text(), "a worker loads")
                worker = int(children.read_text().split()[0])
                os.kill(worker, signal.SIGKILL)
                world.until(lambda w=worker: str(w) not in children.read_text().split(), "it is gone")
            connection = http.client.HTTPConnection(f"127.0.0.1:{listener.getsockname()[1]}", timeout=60)
            assert _ask(connection) == (200, "1", 1.0)
            connection.close()
            assert model_status(status_file).failed is None
        finally:
            process.kill()
            process.wait()


def test_a_crash_loop_backs_off_and_is_counted(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file)) as server:
        for number in range(1, 4):
            world.until(lambda: serves(status_file, 1) and server.workers(), "it serves")
            os.kill(int(server.workers()[0]), signal.SIGKILL)
            world.until(lambda n=number: counted(status_file, 1).crashes == n, "it is counted")
        pauses = [line.rsplit(" in ", 1)[1] for line in server.said().splitlines() if "started again in" in line]
        assert pauses == ["0.1 s", "0.2 s", "0.4 s"]
        assert ask_once(server)[1] == "1"


# Two models -----------------------------------------------------------------------------------------------------------


def test_one_model_that_fails_does_not_hold_another_back(models: ModelRepository, status_file: Path) -> None:
    for name in ("a", "b"):
        world.publish(models, name, 1, 1.0)
        models.switch(name, 1)
    with world.serving(models, "--status-file", str(status_file)) as server:
        (models.stage("a", 2) / "model.onnx").write_bytes(b"garbage")
        models.publish("a", 2)
        models.switch("a", 2)
        world.until(lambda: model_status(status_file, "a").failed, "release 2 of a fails")
        world.publish(models, "b", 2, 2.0)
        models.switch("b", 2)
        world.until(lambda: model_status(status_file, "b").serving == 2, "release 2 of b serves")
        assert model_status(status_file, "a").serving == 1
        assert _status(server, "/v2/models/a/versions/1/ready") == 200


# Memory ---------------------------------------------------------------------------------------------------------------


def test_stop_then_load_never_holds_two_releases(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file), "--switch", "stop-then-load") as server:
        seen: set[int] = set()
        _serve_release(models, 2)
        end = time.monotonic() + 30
        while not serves(status_file, 2) and time.monotonic() < end:
            seen.add(len(server.workers()))
        assert seen <= {0, 1}
        assert ask_once(server)[1] == "2"
        assert model_status(status_file).mode == "stop-then-load"


def test_hand_over_does_hold_two_for_a_moment(models: ModelRepository, status_file: Path) -> None:
    # Negative control of the test above.
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file), "--switch", "hand-over") as server:
        _serve_release(models, 2)
        world.until(lambda: len(server.workers()) == 2, "both are there")
        world.until(lambda: serves(status_file, 2), "release 2 serves")


def test_stop_then_load_goes_back_when_the_new_release_does_not_load(
    models: ModelRepository, status_file: Path
) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file), "--switch", "stop-then-load") as server:
        (models.stage("m", 2) / "model.onnx").write_bytes(b"garbage")
        models.publish("m", 2)
        models.switch("m", 2)
        world.until(lambda: model_status(status_file).failed and serves(status_file, 1), "release 1 serves again")
        assert ask_once(server)[1] == "1"


def test_stop_then_load_goes_back_when_the_new_worker_is_killed(models: ModelRepository, status_file: Path) -> None:
    """The old one has ended by then; its release is still there, and what waits is answered by it."""
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file), "--switch", "stop-then-load") as server:
        (old,) = server.workers()
        world.publish(models, "m", 2, 2.0)
        models.switch("m", 2)
        world.until(lambda: server.workers() and server.workers() != [old], "the new one loads")
        (new,) = server.workers()
        os.kill(int(new), signal.SIGKILL)
        assert ask_once(server) == (200, "1", 1.0)
        failed = model_status(status_file).failed
        assert failed
        assert failed.reason == "the worker ended while it loaded (SIGKILL)"


def test_auto_chooses_by_the_memory_that_is_free(models: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeseal.runtime import supervisor
    from edgeseal.runtime.bounds import Bounds
    from edgeseal.runtime.follow import wanted

    _serve_release(models, 1)
    with socket.socket() as listener:
        made = supervisor.Supervisor(listener, models, supervisor.Settings(Bounds()))
        target = wanted(models, {})
        need = supervisor.WORKER_BYTES + target["m"].size()
        for free, first in ((need, False), (need - 1, True)):
            monkeypatch.setattr(supervisor, "memory_available", lambda f=free: f)
            assert made._must_stop_first(target) is first


def test_load_on_demand(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    words = ("--status-file", str(status_file), "--switch", "load-on-demand", "--idle", "1")
    process = Unready(models, *words)
    try:
        time.sleep(0.5)
        assert process.workers() == []
        assert ask_once(process)[1] == "1"
        assert len(process.workers()) == 1
        world.until(lambda: not process.workers(), "it falls asleep")
        assert ask_once(process)[1] == "1"
    finally:
        process.process.kill()
        process.process.wait()


def test_a_worker_killed_while_it_loads_on_demand_is_replaced(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    process = Unready(models, "--status-file", str(status_file), "--switch", "load-on-demand")
    try:
        with socket.create_connection(("127.0.0.1", int(process.address.rsplit(":", 1)[1]))):
            world.until(process.workers, "a worker loads for the connection")
            os.kill(int(process.workers()[0]), signal.SIGKILL)
            assert ask_once(process) == (200, "1", 1.0)
    finally:
        process.process.kill()
        process.process.wait()


class Unready(world.Serve):
    """A server that has not loaded anything, so there is no ready file: its address is fixed beforehand."""

    def __init__(self, models: ModelRepository, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = models.root.parent / "serve.log"
        words = [sys.executable, "-m", "edgeseal.runtime.serve", "--models", str(models.root)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*words, "--listen", self.address, *arguments], stderr=log)
        world.until(self._listens, "it listens")

    def _listens(self) -> bool:
        port = f"{int(self.address.rsplit(':', 1)[1]):04X}"
        return any(f":{port} " in line and " 0A " in line for line in Path("/proc/net/tcp").read_text().splitlines())


# A socket that systemd holds ------------------------------------------------------------------------------------------

HOLDER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
os.execv(sys.executable, [sys.executable, "-m", "edgeseal.runtime.serve", *sys.argv[2:]])
"""


def held(listener: socket.socket, *arguments: str) -> subprocess.Popen[bytes]:
    """Start edgeseal-serve as systemd does: the listening socket is descriptor 3."""
    words = [sys.executable, "-c", HOLDER, str(listener.fileno()), *arguments]
    return subprocess.Popen(words, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_drops_no_connection_while_the_socket_is_held(models: ModelRepository, number: int) -> None:
    _serve_release(models, 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = held(listener, "--models", str(models.root))
        try:
            connection = http.client.HTTPConnection(address, timeout=60)
            assert _ask(connection)[0] == 200
            connection.close()
            process.send_signal(number)
            process.wait()
            waiting = http.client.HTTPConnection(address, timeout=60)
            waiting.request("POST", "/v2/models/m/infer", BODY)  # nobody is there
            process = held(listener, "--models", str(models.root))
            answer = waiting.getresponse()
            assert (answer.status, json.loads(answer.read())["model_version"]) == (200, "1")
            waiting.close()
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: socket.create_server(("0.0.0.0", 0)), "systemd passed a socket on 0.0.0.0"),  # noqa: S104 - refused
        (socket.socket, "not a listening stream socket"),
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "not a listening stream socket"),
    ],
    ids=["network", "not listening", "datagrams"],
)
def test_a_passed_socket_that_is_not_taken(make: Any, reason: str) -> None:
    with make() as given:
        process = held(given)
        code = process.wait(60)
    assert code == UsageError.exit_code
    with make() as given:
        words = [sys.executable, "-c", HOLDER, str(given.fileno())]
        done = subprocess.run(words, pass_fds=[given.fileno()], capture_output=True, text=True, check=False)
    assert reason in done.stderr


def test_sockets_of_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert passed() is None


def test_two_sockets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with pytest.raises(UsageError, match="passed 2 sockets"):
        passed()


# What it says ---------------------------------------------------------------------------------------------------------


def test_history_survives_switches_and_crashes(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    with world.serving(models, "--status-file", str(status_file)) as server:
        for _ in range(3):
            ask_once(server)
        _serve_release(models, 2)
        world.until(lambda: serves(status_file, 2), "release 2 serves")
        world.until(lambda: len(server.workers()) == 1, "the old worker has ended")
        ask_once(server)
        world.until(lambda: counted(status_file, 2).requests, "it is counted")
        assert (counted(status_file, 1).requests, counted(status_file, 2).requests) == (3, 1)
        assert counted(status_file, 1).p99_ms
        text = _text(server, "/metrics")
        assert 'edgeseal_serve_requests_total{model="m",release="1",status="200"} 3' in text
        assert 'edgeseal_serve_requests_total{model="m",release="2",status="200"} 1' in text
        assert 'edgeseal_serve_request_seconds_bucket{model="m",release="1",le="+Inf"} 3' in text
        assert 'edgeseal_serve_release{model="m"} 2' in text


def test_status_of_another_boot_says_nothing(status_file: Path) -> None:
    serve_status.write(status_file, serve_status.ServeStatus(1, "another boot"))
    assert serve_status.read(status_file) is None
    serve_status.write(status_file, serve_status.ServeStatus(1, serve_status.boot_id()))
    assert serve_status.read(status_file) is not None


@pytest.mark.parametrize("data", [b"", b"{}", b'{"pid": "x"}', b"\xff", b"[" * 100_000])
def test_status_that_cannot_be_read_says_nothing(status_file: Path, data: bytes) -> None:
    status_file.write_bytes(data)
    assert serve_status.read(status_file) is None


def test_repository_extension(models: ModelRepository) -> None:
    _serve_release(models, 1)
    (models.stage("bad", 1) / "model.onnx").write_bytes(b"garbage")
    models.publish("bad", 1)
    models.switch("bad", 1)
    with world.serving(models) as server:
        index = {item["name"]: item for item in json.loads(_text(server, "/v2/repository/index", "POST"))}
        assert index["m"] == {"name": "m", "version": "1", "state": "READY"}
        assert index["bad"]["state"] == "UNAVAILABLE"
        assert "not an ONNX model" in index["bad"]["reason"]
        assert _code(server, "/v2/repository/models/m/load") == 200
        assert _code(server, "/v2/repository/models/nobody/load") == 400
        assert _code(server, "/v2/repository/models/m/unload") == 400


def test_the_page(models: ModelRepository, status_file: Path) -> None:
    _serve_release(models, 1)
    reason = "<script>alert(1)</script> & more"
    models.note(
        "m", {"gate": {"1": {"cases": 3, "latency_ms": 1.5}}, "rollback": {"release": 9, "reason": reason, "at": 0}}
    )
    with world.serving(models, "--status-file", str(status_file)) as server:
        ask_once(server)
        connection = http.client.HTTPConnection(server.address, timeout=30)
        connection.request("GET", "/")
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert "release 1 serves" in text
        assert "passed: 3 cases, 1.5 ms an answer (median)" in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
        assert "<svg" in text
        assert "http:" not in text  # nothing from anywhere else
        (models.stage("m", 2) / "model.onnx").write_bytes(b"garbage")
        models.publish("m", 2)
        models.switch("m", 2)
        world.until(lambda: "Release 2 does not load" in _text(server, "/"), "the page says so")
        connection.close()


def test_the_page_before_anything_is_installed(models: ModelRepository) -> None:
    with world.serving(models) as server:
        assert "No model is installed yet" in _text(server, "/")


def _text(server: world.Serve, path: str, method: str = "GET") -> str:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request(method, path)
    try:
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def _code(server: world.Serve, path: str) -> int:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("POST", path)
    try:
        return connection.getresponse().status
    finally:
        connection.close()

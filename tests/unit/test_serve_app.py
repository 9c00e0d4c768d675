"""The routes of one worker without its process: engines that fail in every way, clients that do, what is counted."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("starlette", reason="pip install 'edgeseal[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'edgeseal[server]'")

import numpy as np
from prometheus_client import parser

from edgeseal.errors import FormatError
from edgeseal.runtime.app import Server
from edgeseal.runtime.bounds import Bounds
from edgeseal.runtime.engine import Signature
from edgeseal.runtime.models import Loaded, Models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal.runtime.engine import Stop, Tensors

pytestmark = pytest.mark.unit
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}).encode()
BINARY = BODY[:-1] + b', "parameters": {"binary_data_output": true}}'
INFER = "/v2/models/m/infer"


class Fake:
    """Y = x, or what it is told to do instead."""

    platform = "fake"
    inputs = (Signature("x", "FP32", (-1,)),)
    outputs = (Signature("y", "FP32", (-1,)),)

    def __init__(self, instead: Any = None) -> None:
        self.instead = instead

    def infer(self, inputs: Tensors, _wanted: Sequence[str], _stop: Stop | None = None) -> dict[str, Any]:
        if isinstance(self.instead, BaseException):
            raise self.instead
        return {"y": inputs["x"] if self.instead is None else self.instead}


@dataclass
class Answered:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def server(instead: Any = None, **bounds: Any) -> Server:
    models = Models({"m": Loaded("m", 3, Fake(instead), 0.0)})
    return Server(models, Bounds(**bounds))


async def call(at: Server, path: str, *pieces: bytes, method: str = "POST", **headers: str) -> Answered:
    """Ask as a web server would. A piece of None: the client goes away."""
    left = [*pieces]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if left and left[0] is None:
            return {"type": "http.disconnect"}
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    found = Answered()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {n.decode(): v.decode() for n, v in message["headers"]}
        else:
            found.body += message.get("body", b"")

    sent = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": sent, "root_path": ""}
    await at.app()(scope, receive, send)  # type: ignore[arg-type]
    return found


def ask(at: Server, path: str = INFER, *pieces: Any, **more: str) -> Answered:
    found = asyncio.run(call(at, path, *(pieces or (BODY,)), **more))
    assert (at._inside, at._held) == (0, 0), "a place or its bytes are not given back"
    return found


# The engine's faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (RuntimeError("/run/secret"), 500, "m release 3 failed: RuntimeError"),
        (KeyError("y"), 500, "m release 3 failed: KeyError"),
        (FormatError("an index is out of range"), 500, "m release 3: an index is out of range"),
        (MemoryError(), 503, "not enough memory for this request"),
        (np.zeros(2, np.complex64), 500, "m release 3 failed: "),
    ],
)
def test_what_an_engine_does_wrong_is_the_servers_fault_and_counted(fault: Any, status: int, words: str) -> None:
    at = server(fault)
    found = ask(at)
    assert (found.status, found.document["error"][: len(words)]) == (status, words)
    assert b"secret" not in found.body
    assert at.counters.total()["m"][3].errors == 1
    at.models.loaded["m"].engine.instead = None  # type: ignore[attr-defined]
    assert ask(at).status == 200


def test_values_that_are_no_numbers_are_counted_either_way() -> None:
    at = server(np.array([1, np.nan], np.float32))
    assert ask(at).status == 400  # JSON has no NaN
    assert ask(at, INFER, BINARY).status == 200
    tally = at.counters.total()["m"][3]
    assert (tally.requests, tally.nan, tally.errors) == (2, 2, 2)


# The client's ---------------------------------------------------------------------------------------------------------


def test_a_body_too_large_by_its_own_word_is_not_read() -> None:
    at = server(body=100)
    found = ask(at, INFER, b"x" * 1000, content_length="1000")
    assert (found.status, found.document["error"]) == (413, "the request is larger than 100 bytes")


def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    at = server()
    ask(at, INFER, BODY[:10], None)
    assert at.counters.total()["m"][3].statuses == {400: 1}


def test_bodies_that_are_too_large_together() -> None:
    at = server(body=100, bodies=150, concurrency=1)

    async def both() -> list[Answered]:
        pieces = [b"x" * 20] * 5
        return list(await asyncio.gather(*(call(at, INFER, *pieces) for _ in range(2))))

    found = asyncio.run(both())
    assert sorted(f.status for f in found) == [400, 503]
    (late,) = [f for f in found if f.status == 503]
    assert late.headers["retry-after"] == "1"
    assert "all requests together are too large" in late.document["error"]
    assert (at._inside, at._held) == (0, 0)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/models/m/infer", 405, "GET is not for /v2/models/m/infer"),
        ("DELETE", "/v2", 405, "DELETE is not for /v2"),
        ("GET", "/v2/repository/index", 405, "GET is not for"),
        ("GET", "/v2/models/m/stats", 404, "there is no /v2/models/m/stats; /v2 says what this server offers"),
        ("GET", "/v2/models/m/versions/4", 404, "model 'm' is served as version 3, not '4'"),
        ("GET", "/v2/models/m/versions/4/ready", 404, "model 'm' is served as version 3"),
        ("POST", "/v2/models/n/infer", 404, "model 'n' is not served"),
        ("GET", "/" + "a" * 5000, 404, "there is no /aaa"),
    ],
)
def test_what_no_route_takes_is_said_as_the_protocol_wants_errors(
    method: str, path: str, status: int, words: str
) -> None:
    found = ask(server(), path, method=method)
    assert found.status == status
    assert found.headers["content-type"] == "application/json"
    assert words in found.document["error"]
    assert len(found.body) < 300
    assert (status == 405) == ("allow" in found.headers)


# Repository extension -------------------------------------------------------------------------------------------------


def test_the_index_says_what_is_here_what_comes_and_what_does_not_load() -> None:
    at = server()
    at.models.failed["new"] = "not an ONNX model"
    at.status = {
        "m": {"serving": 3, "candidate": 5, "failed": {"release": 4, "reason": "too large", "at": 1}},
        "old": {"failed": {"release": 1, "reason": "not there", "at": 1}},
    }
    at.models.failed["old"] = "not there"
    assert ask(at, "/v2/repository/index", b"").document == [
        {"name": "m", "version": "3", "state": "READY"},
        {"name": "m", "version": "4", "state": "UNAVAILABLE", "reason": "too large"},
        {"name": "m", "version": "5", "state": "LOADING"},
        {"name": "new", "version": "", "state": "UNAVAILABLE", "reason": "not an ONNX model"},
        {"name": "old", "version": "1", "state": "UNAVAILABLE", "reason": "not there"},
    ]
    ready = [{"name": "m", "version": "3", "state": "READY"}]
    assert ask(at, "/v2/repository/index", b'{"ready": true}').document == ready


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 60_000, 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b" " * 70_000, 413, "larger than 65536 bytes"),
    ],
)
@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/m/load"])
def test_requests_to_the_repository_that_are_none(path: str, body: bytes, status: int, words: str) -> None:
    found = ask(server(), path, body)
    assert (found.status, words in found.document["error"]) == (status, True)


def test_a_client_loads_nothing_of_its_own() -> None:
    at = server()
    assert ask(at, "/v2/repository/models/m/load", b"").status == 200
    assert ask(at, "/v2/repository/models/m/load", b"{}").status == 200
    for path, body, words in (
        ("/v2/repository/models/n/load", b"", "edgeseal-agent decides"),
        ("/v2/repository/models/m/load", b'{"parameters": {"config": "{}"}}', "serves as it was published"),
        ("/v2/repository/models/m/unload", b"", "edgeseal-agent rollback"),
    ):
        found = ask(at, path, body)
        assert (found.status, words in found.document["error"]) == (400, True)
    assert ask(at).status == 200


# Health and metrics ---------------------------------------------------------------------------------------------------


def test_ready_only_if_everything_that_should_be_is() -> None:
    at = server()

    def ready() -> int:
        return ask(at, "/v2/health/ready", method="GET").status

    assert ready() == 200
    at.models.failed["n"] = "does not load"
    assert ready() == 503
    at.models.failed.clear()
    at.models.loaded.clear()
    assert ready() == 503
    assert ask(at, "/v2/health/live", method="GET").status == 200


def test_metrics_are_what_prometheus_reads() -> None:
    at = server()
    for body in (BODY, BODY, b"{"):
        ask(at, INFER, body)
    at.models.loaded["m"].engine.instead = RuntimeError()  # type: ignore[attr-defined]
    ask(at)
    found = ask(at, "/metrics", method="GET")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in parser.text_string_to_metric_families(found.body.decode())}
    assert all(f.documentation and f.type in {"counter", "gauge", "histogram"} for f in families.values())
    counted = {s.labels["status"]: s.value for s in families["edgeseal_serve_requests"].samples}
    assert counted == {"200": 2, "400": 1, "500": 1}
    by_name: dict[str, list[Any]] = {}
    for sample in families["edgeseal_serve_request_seconds"].samples:
        assert sample.labels["model"] == "m"
        assert sample.labels["release"] == "3"
        by_name.setdefault(sample.name.rpartition("_")[2], []).append(sample)
    below = [(float(s.labels["le"]), s.value) for s in by_name["bucket"]]
    assert below == sorted(below)
    assert below[-1] == (float("inf"), by_name["count"][0].value) == (float("inf"), 2)
    assert 0 < by_name["sum"][0].value < below[-1][1] * below[-2][0]
    assert families["edgeseal_serve_release"].samples[0].value == 3


def test_time_of_failures_is_not_in_the_sum_of_successes() -> None:
    at = server()
    at.counters.add("m", 3, 504, 60.0)
    at.counters.add("m", 3, 200, 0.5)
    assert '_sum{model="m",release="3"} 0.5' in at.counters.text([])


def test_while_it_drains_every_answer_asks_to_close() -> None:
    at = server()
    assert "connection" not in ask(at).headers
    at.draining = True
    for path, method in ((INFER, "POST"), ("/", "GET"), ("/nowhere", "GET")):
        assert ask(at, path, method=method).headers["connection"] == "close"

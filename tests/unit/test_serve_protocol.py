"""A real edgeseal-serve, asked by the protocol's official client and by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from onnx import TensorProto, helper
from tests.unit import runtime_world as world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
CALLS = Path(__file__).with_name("triton_calls.py")
ONNX_TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}


@pytest.fixture(scope="module")
def server() -> Iterator[world.Serve]:
    """Echoes of every datatype, y = x + 1, and a model that never ends."""
    with world.repository() as models:
        for name, kind in ONNX_TYPES.items():
            model = f"echo-{name}"
            node = helper.make_node("Identity", ["x"], ["y"])
            path = models.stage(model, 1) / "model.onnx"
            world.save([node], [world.value("x", ["n"], kind)], [world.value("y", ["n"], kind)], path)
            models.publish(model, 1)
            models.switch(model, 1)
        world.publish(models, "plus", 3, 1.0)
        models.switch("plus", 3)
        world.endless(models.stage("endless", 1) / "model.onnx")
        models.publish("endless", 1)
        models.switch("endless", 1)
        with world.serving(models, "--max-body-mb", "1", "--timeout", "2", "--concurrency", "1") as running:
            yield running


def _ask(server: world.Serve, path: str, body: bytes | None = None, **more: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.address, timeout=60)
    headers = {name.replace("_", "-"): text for name, text in more.items()}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else text
    finally:
        connection.close()


def _request(**more: Any) -> bytes:
    given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **more}
    return json.dumps({"inputs": [given]}).encode()


def test_the_official_client_with_every_datatype(server: world.Serve) -> None:
    pytest.importorskip("tritonclient", reason="pip install 'tritonclient[http]'")
    done = subprocess.run(
        [sys.executable, str(CALLS), server.address], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0].lower() for line in lines[: len(ONNX_TYPES)]] == list(ONNX_TYPES)
    assert lines[len(ONNX_TYPES) :] == [
        "400 input 'x' is INT32; the model needs FP32",
        "400 input 'x' has shape [3, 1]; the model needs [-1]",
        "404 model 'absent' is not served",
        "404 model 'echo-fp32' is served as version 1, not '9'",
        "400 output 'y' has values that JSON cannot carry (NaN or infinite) (ask for it in binary)",
        "413 the request is larger than 1048576 bytes",
        "400 input 'x': parameter 'shared_memory_region' is not offered by this server",
        "400 output 'y': parameter 'classification' is not offered by this server",
        "400 the request: parameter 'sequence_id' is not offered by this server",
        "415 compressed requests are not taken: on this device they cost more than they save",
        "400 input 'x' is missing; the model needs x",
        "400 input 'x' is given twice",
        "400 model 'absent' is not served; edgeseal-agent decides which releases serve",
        "400 a model serves as it was published; files or another configuration are not taken here",
        "400 edgeseal-agent decides which releases serve: edgeseal-agent rollback, or assign another",
        "404 there is no /v2/models/echo-fp32/config; /v2 says what this server offers",
        "404 there is no /v2/models/echo-fp32/stats; /v2 says what this server offers",
    ]


def test_metadata_says_what_the_model_takes(server: world.Serve) -> None:
    assert _ask(server, "/v2/models/plus") == (
        200,
        {
            "name": "plus",
            "versions": ["3"],
            "platform": "onnx_onnxv1",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
        },
    )


def test_an_answer_in_json(server: world.Serve) -> None:
    status, answer = _ask(server, "/v2/models/plus/versions/3/infer", _request())
    assert (status, answer["model_version"]) == (200, "3")
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2.0, 3.0, 4.0, 5.0]}]


def test_a_batch_as_it_was_sent(server: world.Serve) -> None:
    _, answer = _ask(server, "/v2/models/plus/infer", _request(shape=[2, 4], data=[[1] * 4, [2] * 4]))
    assert answer["outputs"][0]["shape"] == [2, 4]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_request(name="z"), "there is no input 'z'; the model has x"),
        (_request(shape=[1, 5], data=[1] * 5), "input 'x' has shape [1, 5]; the model needs [-1, 4]"),
        (_request(shape=[4]), "input 'x' has shape [4]"),
        (_request(datatype="FP64"), "input 'x' is FP64; the model needs FP32"),
        (_request(data=[1, 2, 3, None]), "'x': null is no FP32"),  # of the body itself: test_oip
        (b'{"inputs": []}', "input 'x' is missing; the model needs x"),
        (_request()[:-1] + b', "outputs": [{"name": "q"}]}', "there is no output 'q'; the model has y"),
    ],
)
def test_a_wrong_request_names_the_tensor(server: world.Serve, body: bytes, reason: str) -> None:
    status, answer = _ask(server, "/v2/models/plus/infer", body)
    assert status == 400
    assert reason in answer["error"]


def test_a_body_that_is_too_large(server: world.Serve) -> None:
    status, answer = _ask(server, "/v2/models/plus/infer", bytes(2**20 + 1))
    assert (status, answer["error"]) == (413, "the request is larger than 1048576 bytes")


def test_who_asks_before_sending_too_much_sends_nothing(server: world.Serve) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as s:
        head = (
            "POST /v2/models/plus/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        )
        s.sendall(head.encode())
        assert s.recv(100).startswith(b"HTTP/1.1 413 ")


def test_who_sends_too_much_reads_why_and_goes_on(server: world.Serve) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=60)
    for body, status in ((bytes(8 * 2**20), 413), (_request(), 200)):
        connection.request("POST", "/v2/models/plus/infer", body)
        answer = connection.getresponse()
        assert answer.status == status
        answer.read()
    connection.close()


def test_a_body_without_end(server: world.Serve) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall(b"POST /v2/models/plus/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # it answers and closes before all of this is sent
            for _ in range(20):
                s.sendall(b"20000\r\n" + bytes(0x20000) + b"\r\n")
        assert b" 413 " in s.recv(100)


def test_a_body_that_never_comes(server: world.Serve) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall(b"POST /v2/models/plus/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in s.recv(100)


def test_an_inference_that_never_ends_is_ended(server: world.Serve) -> None:
    endless = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}]}).encode()
    assert _ask(server, "/v2/models/endless/infer", endless) == (504, {"error": "no answer within 2 s"})
    # The only worker is free again: the model really stopped.
    assert _ask(server, "/v2/models/plus/infer", _request())[0] == 200


def test_more_requests_than_may_wait_are_sent_away(server: world.Serve) -> None:
    host, _, port = server.address.rpartition(":")
    waiting = []
    try:
        for _ in range(65):  # one is served, 64 wait: all of them have begun a body that they do not end
            s = socket.create_connection((host, int(port)), timeout=60)
            waiting.append(s)
            s.sendall(b"POST /v2/models/plus/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        status, answer = _ask(server, "/v2/models/plus/infer", _request())
    finally:
        for s in waiting:
            s.close()
    assert status == 503
    assert "65 requests are being served or waiting; try again later" in answer["error"]
    world.until(lambda: _ask(server, "/v2/models/plus/infer", _request())[0] == 200, "their places are free again")


def test_a_compressed_body_is_refused_clearly(server: world.Serve) -> None:
    status, answer = _ask(server, "/v2/models/plus/infer", _request(), Content_Encoding="gzip")
    assert status == 415
    assert "compressed requests are not taken" in answer["error"]


@pytest.mark.parametrize("length", ["-1", "x", "9" * 13, "\u00b2"])
def test_a_header_length_that_is_no_number(server: world.Serve, length: str) -> None:
    status, answer = _ask(server, "/v2/models/plus/infer", _request(), Inference_Header_Content_Length=length)
    assert (status, answer["error"]) == (400, "Inference-Header-Content-Length must be a number")


@pytest.mark.parametrize("path", ["/v2/models/..%2f..%2fetc/infer", "/v2/models/%00/infer", "/v2/models/M/infer"])
def test_a_model_name_that_leads_out(server: world.Serve, path: str) -> None:
    assert _ask(server, path, _request())[0] == 404


def test_a_large_header_is_no_way_round_the_bounds(server: world.Serve) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as s:
        with contextlib.suppress(OSError):
            s.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not s.recv(100).startswith(b"HTTP/1.1 2")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 100])
def test_what_is_no_http_gets_400(server: world.Serve, garbage: bytes) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall(garbage + b"\r\n\r\n")
        assert s.recv(100)[:13] == b"HTTP/1.1 400 "


def test_metrics_count_by_status(server: world.Serve) -> None:
    _ask(server, "/v2/models/plus/infer", _request())
    status, text = _ask(server, "/metrics")
    assert status == 200
    assert b'edgeseal_serve_requests_total{model="plus",release="3",status="200"}' in text
    assert b'edgeseal_serve_release{model="plus"} 3' in text

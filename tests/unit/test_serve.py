"""edgeseal-serve as a process, asked by the protocol's official client and by a clumsy one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from tests.unit import onnx_models
from tests.unit.agent_world import make_writable

from edgeseal.errors import FormatError
from edgeseal.runtime import oip
from edgeseal.runtime.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[ModelRepository]:
    made = ModelRepository(tmp_path / "models", allow_disk=True)
    made.prepare()
    yield made
    make_writable(made.root)


def activate(repository: ModelRepository, release: int, *, bias: float = 0.0, model: str = "bearing") -> None:
    onnx_models.linear(repository.stage(model, release) / "model.onnx", bias=bias)
    repository.publish(model, release)
    repository.switch(model, release)


@contextmanager
def serving(repository: ModelRepository, *, listen: str = "127.0.0.1:0") -> Iterator[str]:
    ready = repository.root.parent / "ready"
    ready.unlink(missing_ok=True)
    words = ["-m", "edgeseal.runtime.serve", "--models", repository.root, "--listen", listen, "--ready-file", ready]
    process = subprocess.Popen([sys.executable, *map(str, words)], stderr=subprocess.PIPE)
    try:
        ends = time.monotonic() + 60
        while not (ready.exists() and ready.read_text()):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < ends
            time.sleep(0.02)
        yield ready.read_text()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(url: str, body: object, *, model: str = "bearing", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {n.replace("_", "-"): v for n, v in headers.items()}
    answer = urllib3.request("POST", f"{url}/v2/models/{model}/infer", body=data, headers=names, retries=False)
    return answer.status, json.loads(answer.data)


def x(values: list[float], **changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values, **changes}]}


def test_health_metadata_and_versions(repository: ModelRepository) -> None:
    activate(repository, 3)
    with serving(repository) as url:

        def get(path: str) -> urllib3.BaseHTTPResponse:
            return urllib3.request("GET", url + path, retries=False)

        assert get("/v2/health/live").status == 200
        assert get("/v2/health/ready").status == 200
        assert get("/v2/models/bearing/ready").status == 200
        assert get("/v2/models/bearing/versions/4/ready").status == 404
        about = get("/v2/models/bearing").json()
        assert about["versions"] == ["3"]
        assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert get("/v2").json()["extensions"] == ["binary_tensor_data", "model_repository"]
        assert 'release{model="bearing"} 3' in get("/metrics").data.decode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "`inputs` must be an array"),
        ({"inputs": [{}]}, "an input has no `name`"),
        (x([1, 2, 3, 4], datatype="FP99"), "unknown datatype 'FP99'"),
        (x([1, 2, 3]), r"input 'x' has shape [1, 3]; the model needs [-1, 4]"),
        (x([1, 2, 3, 4], name="z"), "there is no input 'z'; the model has x"),
        (x([1, 2, 3, 4], datatype="FP64"), "input 'x' is FP64; the model needs FP32"),
        (x([1, 2, 3, 4], shape=[1, 5]), "4 elements where shape [1, 5] has 5"),
        (x([1, 2, 3, 4], shape=[-1, 4]), "`shape` must be an array"),
        (x([1, 2, 3, 4], data=[1, 2, "3", 4]), '"3" is no FP32'),
        ({**x([1, 2, 3, 4]), "outputs": [{"name": "z"}]}, "there is no output 'z'; the model has y"),
        ({"inputs": []}, "input 'x' is missing"),
        (x([1, 2, 3, 4], parameters={"binary_data_size": 16}), "binary_data_size 16, but 0 bytes are left"),
    ],
)
def test_wrong_requests_name_what_is_wrong(repository: ModelRepository, body: object, message: str) -> None:
    activate(repository, 1)
    with serving(repository) as url:
        status, answer = ask(url, body)
        assert status == 400
        assert message in answer["error"]
        assert ask(url, x([1, 2, 3, 4]))[0] == 200


def test_unknown_model_and_too_large_body(repository: ModelRepository) -> None:
    activate(repository, 1)
    with serving(repository) as url:
        status, answer = ask(url, x([1]), model="pump")
        assert (status, answer["error"]) == (404, "model 'pump' is not served")
        assert ask(url, bytes(65 * 2**20))[0] == 413


def test_switch_under_requests_loses_none(repository: ModelRepository) -> None:
    """Answers come from one release or the other, whole, and none fails."""
    activate(repository, 1, bias=1.0)
    with serving(repository) as url:
        answers: list[tuple[int, Any]] = []
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                answers.append(ask(url, x([0, 0, 0, 0])))

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        for release in (2, 3, 4):
            time.sleep(0.3)
            activate(repository, release, bias=float(release))
            repository.remove("bearing", release - 1)
        ends = time.monotonic() + 30
        while not answers or answers[-1][1]["model_version"] != "4":
            assert time.monotonic() < ends
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert all(a["outputs"][0]["data"] == [float(a["model_version"])] * 4 for _, a in answers)
    assert {"1", "4"} <= {a["model_version"] for _, a in answers}


def test_release_that_does_not_load_leaves_the_old_one_serving(repository: ModelRepository) -> None:
    activate(repository, 1, bias=1.0)
    with serving(repository) as url:
        (repository.stage("bearing", 2) / "model.onnx").write_bytes(b"garbage")
        repository.publish("bearing", 2)
        repository.switch("bearing", 2)
        for _ in range(10):
            assert ask(url, x([0, 0, 0, 0]))[1]["model_version"] == "1"
            time.sleep(0.1)  # in all longer than it takes to see the switch
        assert urllib3.request("GET", f"{url}/v2/health/ready", retries=False).status == 200


def test_unix_socket(repository: ModelRepository) -> None:
    activate(repository, 1)
    with tempfile.TemporaryDirectory() as place, serving(repository, listen=f"unix:{place}/serve") as url:
        assert url == f"unix:{place}/serve"
        assert os.stat(f"{place}/serve").st_mode & 0o7 == 0


@pytest.mark.parametrize("listen", ["0.0.0.0:8000", "example.org:80", "8000", "unix:"])
def test_it_is_not_for_a_network(repository: ModelRepository, listen: str) -> None:
    words = [sys.executable, "-m", "edgeseal.runtime.serve", "--models", str(repository.root), "--listen", listen]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "not for a network" in done.stderr


CLIENT = """
import json, sys, warnings
warnings.simplefilter("ignore")  # gevent's, not ours
import numpy as np
import tritonclient.http as triton
url, kinds = sys.argv[1].removeprefix("http://"), json.loads(sys.argv[2])
client = triton.InferenceServerClient(url)
assert client.is_server_live() and client.is_server_ready()
for kind in kinds:
    value = np.array([0, 1, 1, 0] if kind == "BOOL" else [0, 1, 2, 100])
    value = value.astype(triton.triton_to_np_dtype(kind))
    if kind == "BYTES":
        value = np.array(["", "a", "\\u00e4\\u20ac", "x" * 300], dtype=object)
    for binary in (True, False):
        if kind == "FP16" and not binary:
            continue  # the client refuses FP16 in JSON
        tensor = triton.InferInput("x", [4], kind)
        tensor.set_data_from_numpy(value, binary_data=binary)
        answer = client.infer(kind.lower(), [tensor], outputs=[triton.InferRequestedOutput("y", binary_data=binary)])
        got = answer.as_numpy("y")
        if kind == "BYTES":
            got = np.array([g.decode() if isinstance(g, bytes) else g for g in got], dtype=object)
        assert (got == value).all(), (kind, binary, got)
print("every datatype")
"""


def test_official_client_with_every_datatype(repository: ModelRepository) -> None:
    for name, kind in KINDS.items():
        onnx_models.identity(repository.stage(name.lower(), 1) / "model.onnx", kind)
        repository.publish(name.lower(), 1)
        repository.switch(name.lower(), 1)
    with serving(repository) as url:
        words = [sys.executable, "-c", CLIENT, url, json.dumps(list(KINDS))]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "every datatype\n"


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_any_body_is_parsed_or_refused(body: bytes, length: int | None) -> None:
    try:
        oip.parse_request(body, length)
    except FormatError:
        return


@given(
    st.sampled_from([k for k in KINDS if k not in {"BYTES", "BOOL"}]),
    st.lists(st.integers(0, 100), min_size=1, max_size=20),
)
def test_numbers_survive_both_forms(kind: str, values: list[int]) -> None:
    array = np.array(values).astype(oip.DTYPES[kind])
    assert (oip.from_raw(kind, array.shape, oip.to_raw(kind, array), "x") == array).all()
    assert (oip.from_json(kind, array.shape, oip.to_json(kind, array, "x"), "x") == array).all()


@given(st.lists(st.text(max_size=20), min_size=1, max_size=10))
def test_strings_survive_both_forms(values: list[str]) -> None:
    array = np.array(values, dtype=object)
    assert list(oip.from_raw("BYTES", array.shape, oip.to_raw("BYTES", array), "x")) == values

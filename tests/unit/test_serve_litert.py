"""TFLite models in a real edgeseal-serve: the protocol's official client, both engines in one worker, refusals."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable  # noqa: TC003 - of BAD's annotation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert has no wheel for this platform")
pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.unit import onnx_models, tflite_models
from tests.unit import runtime_world as world

from edgeseal.runtime import engine_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.repository import ModelRepository

pytestmark = pytest.mark.unit
CALLS = Path(__file__).with_name("triton_calls.py")


def publish(models: ModelRepository, name: str, write: Callable[[Path], object], **settings: object) -> None:
    """Publish release 1 of a model and make it current; `write` is given its directory."""
    directory = models.stage(name, 1)
    write(directory)
    engine_settings.leave(directory, {"engine": settings} if settings else {})
    models.publish(name, 1)
    models.switch(name, 1)


def tflite(model: tflite_models.Model) -> Callable[[Path], object]:
    return lambda directory: model.save(directory / "model.tflite")


@pytest.fixture(scope="module")
def server() -> Iterator[world.Serve]:
    """Echoes of every datatype and y = 2x + 1 in LiteRT, y = x + 1 in onnxruntime."""
    with world.repository() as models:
        for name, kind in tflite_models.TYPES.items():
            publish(models, f"echo-{name.lower()}", tflite(tflite_models.echo(kind)))
        publish(models, "scaled", tflite(tflite_models.affine(scale=2.0, bias=1.0)), threads=1, providers=["cpu"])
        publish(models, "onnx", lambda directory: onnx_models.linear(directory / "model.onnx", bias=1.0))
        with world.serving(models, "--max-body-mb", "1") as running:
            yield running


def ask(server: world.Serve, path: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.address, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def rows(count: int, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [count, 4], "data": [1.0] * 4 * count, **more}]}


def test_the_official_client_with_every_datatype(server: world.Serve) -> None:
    pytest.importorskip("tritonclient", reason="pip install 'tritonclient[http]'")
    done = subprocess.run(
        [sys.executable, str(CALLS), server.address], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    types = len(tflite_models.TYPES)
    assert {line.split()[0] for line in lines[:types]} == set(tflite_models.TYPES)
    assert lines[types : types + 4] == [  # the rest is the server's, not the engine's: test_serve_protocol
        "400 input 'x' is INT32; the model needs FP32",
        "400 input 'x' has shape [3, 1]; the model needs [-1]",
        "404 model 'absent' is not served",
        "404 model 'echo-fp32' is served as version 1, not '9'",
    ]


def test_both_engines_serve_in_one_worker(server: world.Serve) -> None:
    for name, platform, value in (("scaled", "litert_tflite", 3.0), ("onnx", "onnx_onnxv1", 2.0)):
        status, about = ask(server, f"/v2/models/{name}")
        assert (status, about["platform"]) == (200, platform)
        assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert ask(server, f"/v2/models/{name}/infer", rows(2))[1]["outputs"][0]["data"] == [value] * 8


def test_a_batch_as_it_was_sent(server: world.Serve) -> None:
    for count in (3, 1, 0, 2):
        status, answer = ask(server, "/v2/models/scaled/infer", rows(count))
        assert (status, answer["outputs"][0]["shape"]) == (200, [count, 4])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (rows(1, name="z"), "there is no input 'z'; the model has x"),
        (rows(1, shape=[4, 1]), "input 'x' has shape [4, 1]; the model needs [-1, 4]"),
        (rows(1, datatype="FP64"), "input 'x' is FP64; the model needs FP32"),
        ({**rows(1), "outputs": [{"name": "q"}]}, "there is no output 'q'; the model has y"),
    ],
)
def test_a_wrong_request_names_the_tensor(server: world.Serve, body: object, reason: str) -> None:
    status, answer = ask(server, "/v2/models/scaled/infer", body)
    assert status == 400
    assert reason in answer["error"]


def one(number: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [number]}]}


def test_an_inference_without_end_costs_one_worker_and_no_more() -> None:
    """LiteRT cannot be interrupted: the process is, and the next one answers for all models."""
    with world.repository() as models:
        publish(models, "endless", tflite(tflite_models.endless(at=7.0)))
        publish(models, "onnx", lambda directory: onnx_models.linear(directory / "model.onnx", bias=1.0))
        with world.serving(models, "--timeout", "1", "--concurrency", "2") as running:
            (before,) = running.workers()
            assert ask(running, "/v2/models/endless/infer", one(3.0))[0] == 200
            assert ask(running, "/v2/models/endless/infer", one(7.0)) == (504, {"error": "no answer within 1 s"})
            assert ask(running, "/v2/models/onnx/infer", rows(1))[0] == 200
            assert ask(running, "/v2/models/endless/infer", one(3.0))[0] == 504  # its turn does not come
            world.until(lambda: running.workers() not in ([before], []), "another worker")
            assert ask(running, "/v2/models/endless/infer", one(3.0))[0] == 200
            assert "goes on with an inference that was ended" in running.said()
            assert "the worker ended (exit code 70)" in running.said()


def test_a_model_that_never_answers_zeros_does_not_hold_up_the_others(tmp_path: Path) -> None:
    tflite_models.endless(at=0.0).save(tmp_path / "endless" / "model.tflite")
    onnx_models.linear(tmp_path / "onnx" / "model.onnx")
    code = (  # in a process of its own, because nothing ends that inference
        "import os, sys\n"
        "from pathlib import Path\n"
        "from edgeseal.runtime import warm\n"
        "from edgeseal.runtime.models import Models\n"
        "warm._WARM_SECONDS, warm._END_SECONDS = 0.3, 0.1\n"
        "found = Models.load([(m, 1, Path(sys.argv[1], m)) for m in ('endless', 'onnx')], threads=1, failed={})\n"
        "print(list(found.loaded), found.failed, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    reason = "it did not answer within 0.3 s and its engine cannot be interrupted"
    assert done.stdout == f"{['onnx']} { ({'endless': reason}) }\n"


# What edgeseal-serve itself refuses, whoever put it there -------------------------------------------------------------


def _two_models(directory: Path) -> None:
    onnx_models.linear(directory / "model.onnx")
    tflite_models.affine().save(directory / "model.tflite")


BESIDE = "../../good/1/model.onnx"  # of another release in the same repository
BAD: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "onnx-weights-outside": (
        lambda directory: onnx_models.external(directory / "model.onnx", "/etc/passwd"),
        {},
        "a tensor's external data '/etc/passwd' lies outside the release",
    ),
    "onnx-weights-beside": (
        lambda directory: onnx_models.external(directory / "model.onnx", BESIDE),
        {},
        f"a tensor's external data {BESIDE!r} lies outside the release",
    ),
    "onnx-operator": (
        lambda directory: onnx_models.custom_operator(directory / "model.onnx"),
        {},
        "onnxruntime does not load model.onnx",
    ),
    "tflite-weights": (tflite(tflite_models.external("/etc/passwd")), {}, "weights outside of its file"),
    "tflite-operator": (tflite(tflite_models.custom_operator()), {}, "needs the operator 'Evil' of a library"),
    "tflite-flex": (tflite(tflite_models.custom_operator("FlexReadFile")), {}, "the operator 'FlexReadFile' of a lib"),
    "provider": (tflite(tflite_models.affine()), {"providers": ["cuda"]}, "computed by cuda; here is xnnpack, cpu"),
    "two-models": (_two_models, {}, "2 model files in the release where one was expected: model.onnx, model.tflite"),
    "no-model": (lambda directory: (directory / "model.pt").touch(), {}, "no model file in the release"),
}


@pytest.fixture(scope="module")
def careless() -> Iterator[world.Serve]:
    """A server over a repository that somebody has filled without a gate."""
    with world.repository() as models:
        publish(models, "good", lambda directory: onnx_models.linear(directory / "model.onnx"))
        for name, (write, settings, _) in BAD.items():
            publish(models, name, write, **settings)
        with world.serving(models) as running:
            yield running


@pytest.mark.parametrize("name", list(BAD))
def test_what_the_gate_would_refuse_is_not_served_either(careless: world.Serve, name: str) -> None:
    status, answer = ask(careless, f"/v2/models/{name}/infer", rows(1))
    assert status == 404
    assert BAD[name][2] in answer["error"]
    assert ask(careless, "/v2/models/good/infer", rows(1))[0] == 200

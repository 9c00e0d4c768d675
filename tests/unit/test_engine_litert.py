"""LiteRT behind the small Protocol: what it says of a model, what it answers, what it refuses, and by which name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert has no wheel for this platform")

from ai_edge_litert.interpreter import Interpreter
from tests.unit import onnx_models, tflite_models

from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.runtime import engine, engine_litert, engine_settings
from edgeseal.runtime.engine import Signature, Stop

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def load(model: tflite_models.Model, directory: Path, **settings: object) -> engine.Engine:
    model.save(directory / "model.tflite")
    engine_settings.leave(directory, {"engine": settings} if settings else {})
    return engine.load(directory)


def refused(model: tflite_models.Model, directory: Path) -> str:
    with pytest.raises(FormatError) as caught:
        load(model, directory)
    return caught.value.message


# What it says and answers ---------------------------------------------------------------------------------------------


def test_names_datatypes_and_shapes_are_those_of_the_signature(tmp_path: Path) -> None:
    found = load(tflite_models.affine(bias=2.0), tmp_path)
    assert found.platform == "litert_tflite"
    assert found.inputs == [Signature("x", "FP32", (-1, 4))]
    assert found.outputs == [Signature("y", "FP32", (-1, 4))]


def test_a_model_without_signatures_is_called_by_its_tensors(tmp_path: Path) -> None:
    found = load(tflite_models.affine(bias=2.0, name="in", signed=False), tmp_path)
    assert [s.name for s in found.inputs] == ["in"]
    assert np.array_equal(found.infer({"in": X}, ["y"])["y"], X + 2)


@pytest.mark.parametrize("provider", ["cpu", "xnnpack"])
def test_dense_and_softmax_are_computed(tmp_path: Path, provider: str) -> None:
    random = np.random.default_rng(7)
    weights, offset = random.normal(size=(3, 4)).astype(np.float32), random.normal(size=3).astype(np.float32)
    found = load(tflite_models.dense_softmax(weights, offset), tmp_path, providers=[provider])
    logits = X @ weights.T + offset
    wanted = np.exp(logits - logits.max(-1, keepdims=True))
    wanted /= wanted.sum(-1, keepdims=True)
    assert np.allclose(found.infer({"x": X}, ["p"])["p"], wanted, atol=1e-6)


def test_a_batch_of_any_size_and_back(tmp_path: Path) -> None:
    found = load(tflite_models.affine(bias=2.0), tmp_path)
    for rows in (1, 5, 0, 3, 1):
        x = np.full((rows, 4), rows, np.float32)
        assert np.array_equal(found.infer({"x": x}, ["y"])["y"], x + 2)


@pytest.mark.parametrize(("datatype", "kind"), list(tflite_models.TYPES.items()))
def test_every_datatype_comes_back_as_it_went(tmp_path: Path, datatype: str, kind: int) -> None:
    from edgeseal.runtime import oip

    found = load(tflite_models.echo(kind), tmp_path)
    assert found.inputs == [Signature("x", datatype, (-1,))]
    if datatype == "BYTES":
        value = np.array(["", "plain", "größe"], dtype=object)
    else:
        dtype = oip.DTYPES[datatype]
        bounds = {"b": (0, 1), "f": (-2, 2)}.get(dtype.kind) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
        value = np.array([bounds[0], 0, bounds[1]], dtype)
    got = found.infer({"x": value}, ["y"])["y"]
    assert got.dtype == value.dtype
    assert np.array_equal(got, value)


def test_text_that_is_no_utf8_stays_bytes(tmp_path: Path) -> None:
    found = load(tflite_models.echo(tflite_models.TYPES["BYTES"]), tmp_path)
    assert found.infer({"x": np.array([b"\xff\x00", "a"], dtype=object)}, ["y"])["y"].tolist() == [b"\xff\x00", "a"]


def test_several_callers_at_once_get_their_own_answers(tmp_path: Path) -> None:
    found = load(tflite_models.affine(bias=1.0), tmp_path)
    wrong: list[int] = []

    def call(number: int) -> None:
        x = np.full((number, 4), number, np.float32)
        answers = (found.infer({"x": x}, ["y"])["y"] for _ in range(50))
        wrong.extend(number for answer in answers if not np.array_equal(answer, x + 1))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _private_mib(directory: Path) -> float:
    """Return what opening and running a model adds to the memory that a process has for itself alone."""
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from edgeseal.runtime import engine\n"
        "def anonymous():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return int(text.split('RssAnon:')[1].split()[0]) / 1024\n"
        "engine.prepare(Path(sys.argv[1]))\n"
        "before = anonymous()\n"
        "model = engine.load(Path(sys.argv[1]))\n"
        "model.infer({'x': np.ones((1, 2048), np.float32)}, ['y'])\n"
        "print(anonymous() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True, timeout=60
    )
    return float(done.stdout)


def test_without_prepacking_the_weights_are_not_copied(tmp_path: Path) -> None:
    tflite_models.affine(width=2048).save(tmp_path / "model.tflite")  # 16 MiB of weights
    (tmp_path / engine_settings.FILE).write_text('{"prepack": false}')
    assert _private_mib(tmp_path) < 8
    (tmp_path / engine_settings.FILE).unlink()
    assert _private_mib(tmp_path) > 12  # negative control: XNNPACK keeps them in its own order


def test_without_prepacking_there_is_no_xnnpack(tmp_path: Path) -> None:
    load(tflite_models.affine(), tmp_path, prepack=False, providers=["xnnpack", "cpu"])
    (tmp_path / engine_settings.FILE).unlink()
    with pytest.raises(IncompatibleError, match="computed by xnnpack; here is cpu"):
        load(tflite_models.affine(), tmp_path, prepack=False, providers=["xnnpack"])


# Signatures -----------------------------------------------------------------------------------------------------------


def _twice(first: str, second: str) -> tflite_models.Model:
    model = tflite_models.affine(bias=1.0)
    model.table.signatureDefs[0].signatureKey = first.encode()
    graph = tflite_models.Graph(model)
    model.table.subgraphs.append(graph.table)
    x, y = graph.tensor("z", [-1], tflite_models.INT32), graph.tensor("w", [-1], tflite_models.INT32)
    graph.operator("RESHAPE", [x, graph.constant("shape", np.array([-1], np.int32))], [y])
    graph.ends([x], [y])
    model.sign(graph, second)
    return model


def test_of_several_signatures_the_default_one_is_served(tmp_path: Path) -> None:
    found = load(_twice("other", "serving_default"), tmp_path)
    assert [s.name for s in found.inputs] == ["z"]
    value = np.arange(3, dtype=np.int32)
    assert np.array_equal(found.infer({"z": value}, ["w"])["w"], value)


def test_several_signatures_without_a_default_are_not_guessed(tmp_path: Path) -> None:
    assert "the model has the signatures one, two; which one is to be served" in refused(_twice("one", "two"), tmp_path)


# Inputs that are wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"x": np.zeros((2, 5), np.float32)}, r"input 'x' has shape \[2, 5\]; the model needs \[-1, 4\]"),
        ({"x": np.zeros(4, np.float32)}, r"input 'x' has shape \[4\]"),
        ({"x": np.zeros((1, 4), np.int32)}, "expected type FLOAT32 for input 0, name: serving_default_x:0"),
        ({}, "input 'x' is missing"),
        ({"x": X, "z": X}, "expected 1 vs provided 2"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path: Path, inputs: dict[str, Any], reason: str) -> None:
    found = load(tflite_models.affine(), tmp_path)
    with pytest.raises(FormatError, match=reason):
        found.infer(inputs, ["y"])
    assert np.array_equal(found.infer({"x": X}, ["y"])["y"], X)


def test_what_litert_remembers_of_failures_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tflite_models.Model()
    graph = model.graph()
    size, y = graph.tensor("n", [1], tflite_models.INT32), graph.tensor("y", [-1])
    graph.operator("BROADCAST_TO", [graph.constant("one", np.ones(1, np.float32)), size], [y], version=2)
    graph.ends([size], [y])
    model.sign(graph)
    found: Any = load(model, tmp_path)
    monkeypatch.setattr(engine_litert, "_MAX_SAID", 1000)
    lengths = []
    for _ in range(40):
        with pytest.raises(FormatError, match=r"failed to invoke\.$") as caught:
            found.infer({"n": np.array([-5], np.int32)}, ["y"])
        lengths.append(len(str(caught.value.__cause__)))
    assert lengths[1] > lengths[0], "LiteRT no longer repeats itself: this test and what it tests can go"
    assert max(lengths) < 2000
    assert found.infer({"n": np.array([3], np.int32)}, ["y"])["y"].tolist() == [1, 1, 1]


def test_who_waits_behind_an_endless_inference_can_be_stopped(tmp_path: Path) -> None:
    # In a process of its own: LiteRT cannot be interrupted, and the thread in it would hold up the end of this one.
    tflite_models.endless().save(tmp_path / "model.tflite")
    code = (
        "import os, sys, threading, numpy as np\n"
        "from pathlib import Path\n"
        "from edgeseal.runtime import engine\n"
        "found = engine.load(Path(sys.argv[1]))\n"
        "assert found.infer({'x': np.ones(1, np.float32)}, ['y'])['y'] == 1\n"
        "call = lambda: found.infer({'x': np.zeros(1, np.float32)}, ['y'])\n"
        "threading.Thread(target=call, daemon=True).start()\n"
        "while not found._turn.locked(): pass\n"
        "stop = engine.Stop()\n"
        "threading.Timer(0.2, stop.now).start()\n"
        "try: found.infer({'x': np.ones(1, np.float32)}, ['y'], stop)\n"
        "except TimeoutError: print('stopped', flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "stopped\n", done.stderr


@pytest.mark.parametrize(("longest", "ends"), [(0.0, True), (60.0, False)])
def test_an_inference_that_goes_on_after_its_end_takes_its_process_along(
    tmp_path: Path, longest: float, *, ends: bool
) -> None:
    """Unless it may just be slow: one that began late in its caller's time must not cost the others theirs."""
    tflite_models.endless().save(tmp_path / "model.tflite")
    code = (
        "import os, sys, threading, time, numpy as np\n"
        "from pathlib import Path\n"
        "from edgeseal.runtime import engine, engine_litert\n"
        "engine_litert._LEAST_SECONDS = 0.3\n"
        "found, stop = engine.load(Path(sys.argv[1])), engine.Stop()\n"
        "found._longest = float(sys.argv[2])\n"
        "begun, run = threading.Event(), found._graph.run\n"
        "found._graph.run = lambda inputs: (begun.set(), run(inputs))[1]\n"
        "call = lambda: found.infer({'x': np.zeros(1, np.float32)}, ['y'], stop)\n"
        "threading.Thread(target=call, daemon=True).start()\n"
        "begun.wait()\n"
        "stop.now()\n"
        "time.sleep(float(sys.argv[3]))\n"
        "os._exit(0)\n"
    )
    words = [str(tmp_path), str(longest), "30" if ends else "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], check=False, timeout=60)
    assert done.returncode == (os.EX_SOFTWARE if ends else 0)


def test_one_that_was_stopped_before_its_turn_does_not_run(tmp_path: Path) -> None:
    found, stop = load(tflite_models.affine(), tmp_path), Stop()
    stop.now()
    with pytest.raises(TimeoutError):
        found.infer({"x": X}, ["y"], stop)
    assert np.array_equal(found.infer({"x": X}, ["y"])["y"], X)  # the turn was given back


# Models that are refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Evil", "FlexReadFile"])
def test_an_operator_of_a_library_is_refused(tmp_path: Path, name: str) -> None:
    assert f"needs the operator {name!r} of a library" in refused(tflite_models.custom_operator(name), tmp_path)


def test_no_library_named_in_the_environment_is_loaded(tmp_path: Path) -> None:
    """Flex operators make LiteRT look for TensorFlow's library by name, wherever the loader is told to look."""
    tflite_models.custom_operator("FlexReadFile").save(tmp_path / "model.tflite")
    code = (
        "import sys; from pathlib import Path; from edgeseal.runtime import engine\n"
        "try: engine.load(Path(sys.argv[1]))\n"
        "except Exception as e: print(type(e).__name__)\n"
        "print([l.split()[-1] for l in open('/proc/self/maps') if sys.argv[1] in l])\n"
    )
    (tmp_path / "_pywrap_tensorflow_internal.so").write_bytes(b"\x7fELF")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == "FormatError\n[]\n"


@pytest.mark.parametrize("location", ["/etc/passwd", "../other/model.tflite", "weights.bin", ""])
def test_weights_in_another_file_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    assert "has weights outside of its file" in refused(tflite_models.external(location), tmp_path)


def test_litert_by_itself_would_take_weights_that_it_does_not_have(tmp_path: Path) -> None:
    # Negative control: without the check above a model whose weights are missing loads, and answers something.
    path = tflite_models.external("/etc/passwd").save(tmp_path / "model.tflite")
    Interpreter(model_path=str(path)).allocate_tensors()


@pytest.mark.parametrize(("kind", "name"), [(8, "COMPLEX64"), (13, "RESOURCE"), (17, "INT4"), (18, "BFLOAT16")])
def test_datatypes_that_no_client_knows_are_refused_by_name(tmp_path: Path, kind: int, name: str) -> None:
    assert f"'x' is {name}" in refused(tflite_models.echo(kind), tmp_path)


def test_an_operator_that_this_litert_does_not_know(tmp_path: Path) -> None:
    model = tflite_models.affine()
    model.table.operatorCodes[0].version = 99
    assert "LiteRT does not load model.tflite: Didn't find op" in refused(model, tmp_path)


# Which engine ---------------------------------------------------------------------------------------------------------


def test_two_models_of_two_engines_are_not_guessed(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    tflite_models.affine().save(tmp_path / "model.tflite")
    with pytest.raises(IncompatibleError, match=r"2 model files .*: model\.onnx, model\.tflite"):
        engine.load(tmp_path)


def test_the_one_at_the_top_called_model_is_meant(tmp_path: Path) -> None:
    tflite_models.affine(bias=1.0).save(tmp_path / "model.tflite")
    onnx_models.linear(tmp_path / "parts" / "other.onnx")
    assert engine.load(tmp_path).platform == "litert_tflite"


def test_no_model_says_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(IncompatibleError) as caught:
        engine.load(tmp_path)
    assert "model.onnx or model.tflite" in (caught.value.hint or "")


@pytest.mark.parametrize(("suffix", "other"), [(".tflite", "onnxruntime"), (".onnx", "ai_edge_litert")])
def test_only_the_engine_that_is_needed_is_imported(tmp_path: Path, suffix: str, other: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".tflite":
        tflite_models.affine().save(path)
    else:
        onnx_models.linear(path)
    code = (
        "import sys; from pathlib import Path; from edgeseal.runtime import engine\n"
        "engine.load(Path(sys.argv[1]))\n"
        "sys.exit(sys.argv[2] in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), other], check=True, capture_output=True, timeout=60)


def test_an_engine_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tflite_models.affine().save(tmp_path / "model.tflite")
    monkeypatch.delitem(sys.modules, "edgeseal.runtime.engine_litert", raising=False)
    monkeypatch.delattr("edgeseal.runtime.engine_litert", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"pip install 'edgeseal\[litert\]'"):
        engine.load(tmp_path)


def test_threads_are_taken_and_change_no_answer(tmp_path: Path) -> None:
    tflite_models.affine(bias=1.0).save(tmp_path / "model.tflite")
    for threads in (1, 2, 64):
        assert np.array_equal(engine.load(tmp_path, threads=threads).infer({"x": X}, ["y"])["y"], X + 1)

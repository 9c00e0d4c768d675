"""Models that must not serve: each is refused by a real probe process, with the reason, and nothing hangs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.unit import runtime_world as world

from edgeseal.errors import EdgesealError, FormatError, IncompatibleError
from edgeseal.runtime import child, onnx_external
from edgeseal.runtime.contract import Candidate, ProbeError
from edgeseal.runtime.probe import Limits, probe

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.unit
LIMITS = Limits(seconds=60, memory_mb=256)


def _candidate(directory: Path, **more: Any) -> Candidate:
    return Candidate("bearing", 7, directory, None, **more)


def _refused(directory: Path, limits: Limits = LIMITS, **more: Any) -> str:
    with pytest.raises(ProbeError) as caught:
        probe(_candidate(directory, **more), limits)
    assert caught.value.exit_code == 3
    assert "not activated" in (caught.value.hint or "")
    return caught.value.message


def _tensor(values: Sequence[float]) -> list[object]:
    return ["FP32", [1, len(values)], np.array(values, "<f4").tobytes()]


def _vectors(x: Sequence[float], y: Sequence[float], **more: object) -> dict[str, object]:
    return {"v": 1, "cases": [{"inputs": {"x": _tensor(x)}, "outputs": {"y": _tensor(y)}}], **more}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    world.affine(tmp_path / "model.onnx", 1.0)
    return tmp_path


# What the probe is for: a good model passes --------------------------------------------------------------------------


def test_a_good_model_passes(good: Path) -> None:
    found = probe(_candidate(good), LIMITS)
    assert (found["inputs"], found["outputs"], found["cases"]) == (["x"], ["y"], 1)


def test_a_good_model_with_vectors_and_declared_tensors_passes(good: Path) -> None:
    requirements = {"inputs": {"x": ["FP32", [-1, 4]]}, "outputs": {"y": ["FP32", [-1, 4]]}}
    tests = _vectors([1, 2, 3, 4], [2, 3, 4, 5])
    assert probe(_candidate(good, requirements=requirements, tests=tests), LIMITS)["cases"] == 1


def test_external_data_inside_the_release_passes(tmp_path: Path) -> None:
    _external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.ones(4, "<f4").tobytes())
    assert probe(_candidate(tmp_path), LIMITS)["cases"] == 1


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_malformed_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(os.urandom(4096))
    assert "refused by the probe" in _refused(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "model.onnx is empty" in _refused(tmp_path)


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_file(good: Path, part: float) -> None:
    data = (good / "model.onnx").read_bytes()
    (good / "model.onnx").write_bytes(data[: int(len(data) * part)])
    assert "longer than the file" in _refused(good)


def test_no_model_in_the_release(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(IncompatibleError, match="no model file"):
        probe(_candidate(tmp_path), LIMITS)


def test_two_models_in_the_release(good: Path) -> None:
    (good / "model.onnx").rename(good / "a.onnx")
    world.affine(good / "b.onnx", 1.0)
    with pytest.raises(IncompatibleError, match="2 model files"):
        probe(_candidate(good), LIMITS)


def test_a_link_in_the_release(good: Path) -> None:
    (good / "extra").symlink_to("/etc/passwd")
    assert "extra in the release is a link" in _refused(good)


def test_a_model_that_is_a_link_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("/dev/zero")
    assert "is a link" in _refused(tmp_path)


def test_a_pipe_in_the_release(good: Path) -> None:
    os.mkfifo(good / "data.onnx")
    assert "neither a file nor a directory" in _refused(good)


# External data -------------------------------------------------------------------------------------------------------


def _external(directory: Path, location: str, entries: Sequence[tuple[str, str]] = ()) -> None:
    tensor = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in [*entries, ("location", location), ("offset", "0"), ("length", "16")]:
        tensor.external_data.add(key=key, value=text)
    node = helper.make_node("Add", ["x", "b"], ["y"])
    world.save([node], [world.value("x", [4])], [world.value("y", [4])], directory / "model.onnx", initializer=[tensor])


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret", "a/../../secret", "..", "", "a\\..\\secret", "./../s"]
)
def test_external_data_that_leads_out(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    directory = tmp_path / "release"
    directory.mkdir()
    _external(directory, location)
    assert "lies outside the release" in _refused(directory)


def test_external_data_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    directory = tmp_path / "release"
    directory.mkdir()
    _external(directory, "weights.bin")
    (directory / "weights.bin").symlink_to(tmp_path / "secret")
    assert "is a link" in _refused(directory)


def test_external_data_through_a_linked_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w").write_bytes(bytes(16))
    directory = tmp_path / "release"
    directory.mkdir()
    _external(directory, "in/w")
    (directory / "in").symlink_to(tmp_path / "out")
    assert "is a link" in _refused(directory)


def test_external_data_named_twice(tmp_path: Path) -> None:
    _external(tmp_path, "weights.bin", [("location", "/etc/passwd")])
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert "lies outside the release" in _refused(tmp_path)


def test_external_data_that_is_absent(tmp_path: Path) -> None:
    _external(tmp_path, "weights.bin")
    assert "is not in the release" in _refused(tmp_path)


def test_external_data_beyond_its_file(tmp_path: Path) -> None:
    _external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    assert "refused by the probe" in _refused(tmp_path)


def _everywhere() -> dict[str, bytes]:
    """The same escaping tensor in every place of a model that can hold one."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    sparse = helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.arange(4, dtype=np.int64), "i"), [16])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [world.value("c", [4])])
    opset = [helper.make_opsetid("", 17)]

    def model(*nodes: Any, **more: Any) -> bytes:
        functions = more.pop("functions", [])
        graph = helper.make_graph(list(nodes), "g", [], [], **more)
        return bytes(helper.make_model(graph, functions=functions).SerializeToString())

    function = helper.make_function("f", "F", [], ["c"], [constant], opset)
    defaulted = helper.make_function("f", "F", [], ["c"], [], opset)
    defaulted.attribute_proto.append(helper.make_attribute("value", tensor))
    trained = helper.make_model(helper.make_graph([], "g", [], []))
    trained.training_info.add().algorithm.CopyFrom(inner)
    return {
        "initializer": model(initializer=[tensor]),
        "sparse initializer": model(sparse_initializer=[sparse]),
        "attribute": model(constant),
        "list of tensors": model(helper.make_node("X", [], [], values=[tensor])),
        "subgraph": model(helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)),
        "list of graphs": model(helper.make_node("X", [], [], graphs=[inner])),
        "sparse attribute": model(helper.make_node("X", [], [], value=sparse)),
        "function": model(functions=[function]),
        "default of a function": model(functions=[defaulted]),
        "training": bytes(trained.SerializeToString()),
    }


@pytest.mark.parametrize("place", list(_everywhere()))
def test_external_data_is_found_in_every_place(place: str) -> None:
    assert "/etc/passwd" in list(onnx_external.locations(memoryview(_everywhere()[place])))


def test_a_field_number_that_protobuf_would_cut(tmp_path: Path) -> None:
    # 2**32 + tag of `graph`: to a reader with 32 bits it is the graph, to one with more an unknown field.
    _external(tmp_path, "/etc/passwd")
    data = (tmp_path / "model.onnx").read_bytes()
    at = data.index(b"\x3a")  # graph, length-delimited
    (tmp_path / "model.onnx").write_bytes(data[:at] + b"\xba\x80\x80\x80\x10" + data[at + 1 :])
    assert "impossible number" in _refused(tmp_path)


def test_graphs_within_graphs_without_end(tmp_path: Path) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=graph)], "g", [], [])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert "nested deeper" in _refused(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        list(onnx_external.locations(memoryview(data)))


@given(st.data())
def test_any_change_of_a_model_is_read_or_refused(data: st.DataObject) -> None:
    original = _everywhere()["subgraph"]
    at = data.draw(st.integers(0, len(original) - 1))
    changed = original[:at] + data.draw(st.binary(max_size=3)) + original[at + 1 :]
    with contextlib.suppress(FormatError):
        list(onnx_external.locations(memoryview(changed)))


# What the model does -------------------------------------------------------------------------------------------------


def test_a_custom_operator(tmp_path: Path) -> None:
    node = helper.make_node("Evil", ["x"], ["y"], domain="org.example")
    world.save(
        [node], [world.value("x", [4])], [world.value("y", [4])], tmp_path / "model.onnx", domains=["org.example"]
    )
    assert "org.example" in _refused(tmp_path)


def test_a_memory_bomb_when_it_runs(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2**31], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape2"], ["big"]),
        helper.make_node("Cast", ["x"], ["one"], to=TensorProto.INT64),
        helper.make_node("Add", ["one", "shape"], ["shape2"]),
        helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0),
    ]
    nodes = [nodes[1], nodes[2], nodes[0], nodes[3]]
    world.save(nodes, [world.value("x", [1])], [world.value("y", [])], tmp_path / "model.onnx", initializer=[shape])
    assert "needs more than 256 MiB" in _refused(tmp_path)


def test_a_memory_bomb_when_it_loads(tmp_path: Path) -> None:
    # Folded while the model is loaded: a few bytes of file become 8 GiB.
    shape = numpy_helper.from_array(np.array([2**31], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "x"], ["y"]),
    ]
    world.save(nodes, [world.value("x", [1])], [world.value("y", [1])], tmp_path / "model.onnx", initializer=[shape])
    assert "needs more than 256 MiB" in _refused(tmp_path)


def test_the_memory_limit_is_the_owners(tmp_path: Path) -> None:
    # Negative control for the two above: 64 MiB fit into 256 and not into 16.
    shape = numpy_helper.from_array(np.array([2**24 - 1], np.int64), "shape")
    nodes = [
        helper.make_node("Cast", ["x"], ["one"], to=TensorProto.INT64),
        helper.make_node("Add", ["one", "shape"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0),
    ]
    world.save(nodes, [world.value("x", [1])], [world.value("y", [])], tmp_path / "model.onnx", initializer=[shape])
    probe(_candidate(tmp_path), LIMITS)
    assert "needs more than 16 MiB" in _refused(tmp_path, Limits(seconds=60, memory_mb=16))


def test_an_endless_loop(tmp_path: Path) -> None:
    world.endless(tmp_path / "model.onnx")
    assert "did not load and answer within 3 s" in _refused(tmp_path, Limits(seconds=3, memory_mb=256))


def test_nan_weights(tmp_path: Path) -> None:
    world.affine(tmp_path / "model.onnx", float("nan"))
    assert "output 'y' has values that are not numbers" in _refused(tmp_path)


def test_nan_weights_with_vectors(tmp_path: Path) -> None:
    world.affine(tmp_path / "model.onnx", float("nan"))
    assert "not numbers" in _refused(tmp_path, tests=_vectors([0] * 4, [1] * 4))


def test_accuracy_that_dropped(good: Path) -> None:
    message = _refused(good, tests=_vectors([0] * 4, [1, 1, 1, 1.1]))
    assert "acceptance vector 1, output 'y': 1 of 4 values differ, by up to 0.1" in message


def test_top1_that_changed(good: Path) -> None:
    assert probe(_candidate(good, tests=_vectors([0, 1, 2, 3], [0, 0, 0, 99], top1=True)), LIMITS)["cases"] == 1
    assert "1 of 1 cases have another top-1" in _refused(good, tests=_vectors([0, 1, 2, 3], [9, 0, 0, 0], top1=True))


def test_a_wrong_shape(tmp_path: Path) -> None:
    world.affine(tmp_path / "model.onnx", 1.0, width=5)
    message = _refused(tmp_path, requirements={"inputs": {"x": ["FP32", [-1, 4]]}})
    assert "declares input 'x' as ['FP32', [-1, 4]]; the model has ['FP32', [-1, 5]]" in message


def test_a_wrong_shape_that_only_vectors_show(tmp_path: Path) -> None:
    world.affine(tmp_path / "model.onnx", 1.0, width=5)
    assert "does not run on these inputs" in _refused(tmp_path, tests=_vectors([0] * 4, [1] * 4))


def test_a_renamed_input(tmp_path: Path) -> None:
    world.affine(tmp_path / "model.onnx", 1.0, name="input_1")
    assert "the model has input_1" in _refused(tmp_path, requirements={"inputs": {"x": ["FP32", [-1, 4]]}})
    assert "the model has input_1" in _refused(tmp_path, tests=_vectors([0] * 4, [1] * 4))


def test_an_undeclared_output(good: Path) -> None:
    assert "the model has output 'y'" in _refused(good, requirements={"outputs": {}})


def test_a_tensor_that_declares_more_than_memory(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    shape = [2**20, 2**20]
    world.save([node], [world.value("x", shape)], [world.value("y", shape)], tmp_path / "model.onnx")
    # No input of that size is made up; the model loads, and whoever wants more declares vectors.
    assert probe(_candidate(tmp_path), LIMITS)["cases"] == 0


def test_an_initializer_that_declares_more_than_it_has(tmp_path: Path) -> None:
    huge = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[2**40, 2**20], raw_data=bytes(16))
    node = helper.make_node("Add", ["x", "b"], ["y"])
    world.save([node], [world.value("x", [4])], [world.value("y", [4])], tmp_path / "model.onnx", initializer=[huge])
    assert "refused by the probe" in _refused(tmp_path)


# Vectors that would accept everything --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (_vectors([0] * 4, [1] * 4, atol=float("inf")), "accepts everything"),
        ({"v": 1, "cases": []}, "acceptance vectors"),
        ({"v": 1, "cases": [{"inputs": {"x": _tensor([0] * 4)}, "outputs": {}}]}, "accepts everything"),
        (_vectors([0] * 4, [float("nan")] * 4), "nothing can be held against them"),
        (_vectors([0] * 4, [1] * 4, atol=-1.0), "acceptance vectors"),
        (_vectors([0] * 4, [1] * 4, unknown=1), "acceptance vectors"),
        ({"v": 1, "cases": [{"inputs": {"x": ["FP32", [1, 4], b"short"]}, "outputs": {"y": _tensor([1])}}]}, "5 bytes"),
        ({"v": 1, "cases": [{"inputs": {"x": _tensor([0] * 4)}, "outputs": {"z": _tensor([1])}}]}, "refused"),
        ("no", "acceptance vectors"),
    ],
)
def test_vectors_that_prove_nothing(good: Path, tests: object, reason: str) -> None:
    assert reason in _refused(good, tests=tests)


def test_vectors_of_a_newer_version_ask_for_an_update(good: Path) -> None:
    with pytest.raises(IncompatibleError, match="version 2") as caught:
        probe(_candidate(good, tests={"v": 2, "cases": "in another shape"}), LIMITS)
    assert "update edgeseal" in (caught.value.hint or "")


# The process ---------------------------------------------------------------------------------------------------------


def _as_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let another program take the worker's place: one that a model has taken over."""
    program = tmp_path / "worker"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr("edgeseal.runtime.probe.sys.executable", str(program))


def test_a_crash_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_worker(monkeypatch, tmp_path, "import ctypes; ctypes.string_at(0)")
    assert "made the runtime crash while it was probed (SIGSEGV" in _refused(tmp_path)


def test_the_kernel_ends_it_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_worker(monkeypatch, tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert "needs more than 256 MiB" in _refused(tmp_path)


def test_a_worker_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_worker(monkeypatch, tmp_path, "pass")
    assert "crash while it was probed (exit code 0" in _refused(tmp_path)


def test_a_worker_that_never_stops_talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_worker(monkeypatch, tmp_path, "import os\nwhile True: os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)")
    assert "within 2 s" in _refused(tmp_path, Limits(seconds=2, memory_mb=64))


def test_a_worker_that_leaves_a_process_with_its_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "pid"
    code = (
        "import subprocess, pathlib, time\n"
        "p = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(left)!r}).write_text(str(p.pid))"
    )
    _as_worker(monkeypatch, tmp_path, code)
    _refused(tmp_path)  # does not wait for the 300 seconds: the test would run into its own timeout
    world.until(lambda: not _alive(int(left.read_text())), "the process it left is gone")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_a_worker_outlives_nobody(tmp_path: Path) -> None:
    """The agent is killed in the middle of a probe: the worker goes with it."""
    world.endless(tmp_path / "model.onnx")
    code = (
        "from pathlib import Path\n"
        "from edgeseal.runtime.probe import Limits, probe\n"
        "from edgeseal.runtime.contract import Candidate\n"
        f"probe(Candidate('m', 1, Path({str(tmp_path)!r}), None), Limits(120, 256))"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        world.until(lambda: _children(agent.pid), "the worker has started")
        (worker,) = _children(agent.pid)
        world.until(lambda: "NoNewPrivs:\t1" in Path(f"/proc/{worker}/status").read_text(), "it has confined itself")
    finally:
        agent.kill()
        agent.wait()
    world.until(lambda: not _alive(worker), "the worker is gone")


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_worker_has_given_up_what_a_model_has_no_use_for() -> None:
    script = (
        "import os, resource, socket\n"
        "from edgeseal.runtime import confine\n"
        "confine.limits(30, os.getppid())\n"
        "confine.network()\n"
        "limits = [resource.getrlimit(r) for r in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)]\n"
        "print(sorted(os.environ), *limits)\n"
        "print(os.listdir('/sys/class/net') if os.stat('/proc/self/ns/net').st_ino != OUTER else 'same')\n"
        "print([name for _, name in socket.if_nameindex()])\n"
    ).replace("OUTER", str(os.stat("/proc/self/ns/net").st_ino))
    ended = child.run(
        [sys.executable, "-I", "-c", script], stdin=b"", seconds=60, environment={"PATH": "/usr/bin", "LANG": "C.UTF-8"}
    )
    lines = ended.stdout.decode().splitlines()
    assert ended.code == 0, ended.stderr
    assert "HOME" not in lines[0]
    assert "(0, 0) (0, 0)" in lines[0]
    if lines[1] == "same":
        pytest.skip("this kernel gives no unprivileged network namespace")
    assert lines[2] == "['lo']"


def test_a_secret_of_the_agents_environment_does_not_reach_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    _as_worker(monkeypatch, tmp_path, "import os, sys; sys.exit('CREDENTIALS_DIRECTORY' in os.environ and 77 or 1)")
    assert "exit code 1" in _refused(tmp_path)


def test_a_probe_leaves_no_file(good: Path) -> None:
    before = set(good.rglob("*"))
    probe(_candidate(good), LIMITS)
    assert set(good.rglob("*")) == before


def test_an_error_is_of_this_project(tmp_path: Path) -> None:
    with pytest.raises(EdgesealError):
        probe(_candidate(tmp_path / "absent"), LIMITS)


def test_a_timeout_is_not_mistaken_for_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _as_worker(monkeypatch, tmp_path, "import time; time.sleep(300)")
    assert "within 1 s" in _refused(tmp_path, Limits(seconds=1, memory_mb=64))

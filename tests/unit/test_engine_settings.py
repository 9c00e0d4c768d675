"""What a release asks of its engine: parsed strictly, bounded by the device, left beside the files, honoured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")

import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tests.unit import onnx_models
from tests.unit import runtime_world as world

from edgeseal import cbor
from edgeseal.device import config
from edgeseal.device.agent import Agent
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, UsageError
from edgeseal.runtime import engine, engine_settings, probe_worker, serve
from edgeseal.runtime.adapters import Link
from edgeseal.runtime.contract import Candidate
from edgeseal.runtime.engine_settings import EngineSettings, parse
from edgeseal.runtime.probe import Limits, probe
from edgeseal_host.sources import collect

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit
FULL = {"threads": 3, "prepack": True, "spin": True, "providers": ["xnnpack", "cpu"]}


# Parsing --------------------------------------------------------------------------------------------------------------


def test_nothing_is_asked() -> None:
    assert parse({}) == parse({"engine": {}}) == EngineSettings()


def test_everything_is_asked() -> None:
    assert parse({"engine": FULL, "format": "onnx"}) == EngineSettings(
        3, prepack=True, spin=True, providers=("xnnpack", "cpu")
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "must be a map"),
        ([], "must be a map"),
        ("cpu", "must be a map"),
        ({"threads": 0}, "threads"),
        ({"threads": 65}, "threads"),
        ({"threads": -1}, "threads"),
        ({"threads": True}, "threads"),
        ({"threads": 2.0}, "threads"),
        ({"threads": "2"}, "threads"),
        ({"threads": 2**70}, "threads"),
        ({"threads": None}, "threads is null"),
        ({"prepack": 1}, "prepack"),
        ({"prepack": None}, "prepack is null"),
        ({"spin": 0}, "spin"),
        ({"spin": None}, "spin is null"),
        ({"providers": []}, "providers"),
        ({"providers": "cpu"}, "providers"),
        ({"providers": ["cpu"] * 2}, "named twice"),
        ({"providers": [f"p{n}" for n in range(9)]}, "providers"),
        ({"providers": ["CPUExecutionProvider"]}, "providers"),
        ({"providers": ["../lib.so"]}, "providers"),
        ({"providers": ["cpu\n"]}, "providers"),
        ({"providers": ["x" * 33]}, "providers"),
        ({"providers": [b"cpu"]}, "providers"),
    ],
)
def test_values_out_of_bounds_are_refused(value: object, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse({"engine": value})


def test_a_setting_of_a_later_version_is_incompatible() -> None:
    with pytest.raises(
        IncompatibleError, match="engine has 'graph'; this version knows threads, prepack, spin, providers"
    ):
        parse({"engine": {"graph": 1, "threads": 0}})


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(["threads", "prepack", "spin", "providers"]) | st.text(max_size=3)
_GOOD = st.fixed_dictionaries(
    {},
    optional={
        "threads": st.integers(1, 64),
        "prepack": st.booleans(),
        "spin": st.booleans(),
        "providers": st.lists(st.from_regex(r"\A[a-z][a-z0-9-]{0,31}\Z"), min_size=1, max_size=8, unique=True),
    },
)


@given(_ANY | st.dictionaries(_KEYS, _ANY, max_size=3))
def test_anything_is_read_or_refused(value: object) -> None:
    try:
        found = parse({"engine": value})
    except (FormatError, IncompatibleError):
        return
    assert isinstance(value, dict)
    assert all(getattr(found, k) == (tuple(v) if isinstance(v, list) else v) for k, v in value.items())


@settings(max_examples=30)  # each one is flushed to the disk
@given(_GOOD)
def test_what_is_left_beside_the_files_is_read_as_the_manifest_was(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    directory = tmp_path_factory.mktemp("release")
    requirements: Any = cbor.decode(cbor.encode({"engine": value}), max_length=4096)
    engine_settings.leave(directory, requirements)
    assert engine_settings.read(directory) == parse(requirements)


@given(st.binary(max_size=100) | st.builds(lambda v: json.dumps(v).encode(), _ANY))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("release")
    (directory / engine_settings.FILE).write_bytes(data)
    try:
        engine_settings.read(directory)
    except EdgesealError as e:
        assert e.exit_code in {3, 6}  # noqa: PT017 - anything else is a traceback


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / engine_settings.FILE).write_bytes(b" " * 5000)
    with pytest.raises(FormatError, match="longer than 4096"):
        engine_settings.read(tmp_path)


# Beside the files -----------------------------------------------------------------------------------------------------


def test_without_settings_no_file_is_left(tmp_path: Path) -> None:
    engine_settings.leave(tmp_path, {"format": "onnx"})
    assert list(tmp_path.iterdir()) == []


def test_a_release_cannot_bring_the_file_itself(tmp_path: Path) -> None:
    """What nobody signed as settings must not become settings."""
    (tmp_path / ".engine.json").write_text('{"threads": 64}')
    for requirements in ({}, {"engine": {"threads": 1}}):
        with pytest.raises(FormatError, match=r"holds a file called \.engine\.json"):
            engine_settings.leave(tmp_path, requirements)


def test_nor_as_a_link(tmp_path: Path) -> None:
    (tmp_path / ".engine.json").symlink_to("/nowhere")
    with pytest.raises(FormatError, match="holds a file called"):
        engine_settings.leave(tmp_path, {"engine": {"threads": 1}})


def test_nor_can_it_be_built(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    (tmp_path / ".engine.json").write_text("{}")
    with pytest.raises(UsageError, match=r"cannot be in one bundle: .*\.engine\.json"):
        collect([tmp_path])


# On this device -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "limit", "cores", "taken"),
    [
        (None, 0, 4, 4),
        (2, 0, 4, 2),
        (64, 0, 4, 4),
        (None, 1, 4, 1),
        (3, 2, 4, 2),
        (2, 3, 4, 2),
        (None, 64, 4, 4),
        (1, 1, 1, 1),
    ],
)
def test_never_more_threads_than_asked_allowed_or_there(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, limit: int, cores: int, taken: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    assert EngineSettings(asked).threads_here(engine_settings.most_threads(limit)) == taken


def test_the_first_provider_that_is_there_is_taken() -> None:
    assert EngineSettings().provider_here(["cpu", "xnnpack"]) == "cpu"
    assert EngineSettings(providers=("cuda", "xnnpack", "cpu")).provider_here(["cpu", "xnnpack"]) == "xnnpack"


def test_no_provider_that_is_there() -> None:
    with pytest.raises(IncompatibleError, match="to be computed by cuda or acl; here is cpu") as caught:
        EngineSettings(providers=("cuda", "acl")).provider_here(["cpu"])
    assert caught.value.exit_code == 6


# Honoured by onnxruntime ----------------------------------------------------------------------------------------------


class _Session:
    """Stands in for onnxruntime's session: notes what it was opened with."""

    def __init__(self, _path: str, options: Any, providers: list[str], **switches: int) -> None:
        assert switches == {"enable_fallback": 0, "read_config_from_model": 0}
        self.options, self.providers = options, providers
        self.entry = options.get_session_config_entry("session.disable_prepacking")
        self.spins = options.get_session_config_entry("session.intra_op.allow_spinning")

    def get_providers(self) -> list[str]:
        return self.providers

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs


def _opened(path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], limit: int = 0) -> _Session:
    engine_settings.leave(path, {"engine": asked} if asked else {})
    monkeypatch.setattr(onnxruntime, "InferenceSession", _Session)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    found: Any = engine.load(path, threads=limit)
    session: _Session = found._session
    return session


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return onnx_models.linear(tmp_path / "model.onnx", bias=1.0).parent


def test_what_onnxruntime_is_opened_with_by_default(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _opened(release, monkeypatch, {})
    assert (session.options.intra_op_num_threads, session.options.inter_op_num_threads) == (8, 1)
    assert (session.entry, session.spins, session.providers) == ("1", "0", ["CPUExecutionProvider"])


def test_what_onnxruntime_is_opened_with_as_asked(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _opened(release, monkeypatch, {**FULL, "providers": ["cuda", "cpu"]}, limit=2)
    assert session.options.intra_op_num_threads == 2
    assert (session.entry, session.spins, session.providers) == ("0", "1", ["CPUExecutionProvider"])


def test_onnxruntime_answers_with_prepacking(release: Path) -> None:
    engine_settings.leave(release, {"engine": {"prepack": True, "threads": 1}})
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(engine.load(release).infer({"x": x}, ["y"])["y"], x + 1)


def test_a_provider_that_sends_inputs_away_is_never_taken(release: Path) -> None:
    """It is in the official builds: negative control for the list of names."""
    assert "AzureExecutionProvider" in onnxruntime.get_available_providers()
    engine_settings.leave(release, {"engine": {"providers": ["azure"]}})
    with pytest.raises(IncompatibleError, match="azure; here is cpu"):
        engine.load(release)


def test_a_provider_that_is_there_and_does_not_start(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself onnxruntime warns and goes on with its own kernels; the release asked for something else."""
    monkeypatch.setattr(_Session, "get_providers", lambda _: ["CPUExecutionProvider"])
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(IncompatibleError, match="CUDAExecutionProvider, but it does not start"):
        _opened(release, monkeypatch, {"providers": ["cuda"]})


def test_a_provider_that_cannot_load_the_model(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error 35")

    monkeypatch.setattr(_Session, "__init__", fails)
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(
        IncompatibleError, match=r"model\.onnx does not load with CUDAExecutionProvider here: CUDA error"
    ):
        _opened(release, monkeypatch, {"providers": ["cuda"]})


_OPEN: Final = (
    "import os, sys\n"
    "from pathlib import Path\n"
    "from edgeseal.runtime import engine, oip\n"
    "model = engine.load(Path(sys.argv[1]))\n"
    "model.infer({s.name: oip.zeros(s.datatype, [1, 4]) for s in model.inputs}, ['y'])\n"
    "print(len(os.listdir('/proc/self/task')))\n"
)


def _threads(release: Path, **environment: str) -> int:
    """Return how many threads a process has that has opened and run a release."""
    inherited = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads do not count
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(release)],
        capture_output=True, text=True, check=True, timeout=60, cwd=release, env={**inherited, **environment},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_only_the_threads_that_are_asked_for_start(tmp_path: Path, suffix: str) -> None:
    if suffix == ".tflite":
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert has no wheel for this platform")
        from tests.unit import tflite_models

        tflite_models.affine().save(tmp_path / "model.tflite")
    else:
        onnx_models.linear(tmp_path / "model.onnx")
    engine_settings.leave(tmp_path, {"engine": {"threads": 1}})
    assert _threads(tmp_path) == 1
    if engine_settings.cores_here() == 1:
        pytest.skip("one core: nothing else could start")
    (tmp_path / engine_settings.FILE).unlink()
    assert _threads(tmp_path) > 1  # negative control


def test_options_in_the_model_itself_are_not_taken(release: Path) -> None:
    """Where the environment says so, onnxruntime lets a model set threads, and write a profile of every run."""
    model = onnx.load(str(release / "model.onnx"))
    entry = model.metadata_props.add()
    entry.key, entry.value = "ort_config", '{"session_options": {"enable_profiling": 1, "intra_op_num_threads": 7}}'
    onnx.save(model, str(release / "model.onnx"))
    assert _threads(release, ORT_LOAD_CONFIG_FROM_MODEL="1") <= engine_settings.cores_here()
    assert [p.name for p in release.iterdir()] == ["model.onnx"]
    raw = "import onnxruntime; onnxruntime.InferenceSession('model.onnx')"
    environment = {**os.environ, "ORT_LOAD_CONFIG_FROM_MODEL": "1", "ORT_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, "-c", raw], check=True, timeout=60, cwd=release, env=environment)
    assert len(list(release.iterdir())) > 1  # negative control: by itself it would


def test_a_refusal_by_onnxruntime_names_what_is_wrong_and_not_its_source_files(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([3], np.int64), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs, outputs = [world.value("x", ["n"])], [world.value("y", [3])]
    world.save([node], inputs, outputs, tmp_path / "model.onnx", initializer=[shape])
    with pytest.raises(FormatError, match="cannot be reshaped to the requested shape") as caught:
        engine.load(tmp_path).infer({"x": np.zeros(4, np.float32)}, ["y"])
    assert "onnxruntime_src" in str(caught.value.__cause__), "onnxruntime names its files no longer"
    assert "onnxruntime_src" not in str(caught.value)


# Honoured by the gate -------------------------------------------------------------------------------------------------

LIMITS = Limits(seconds=60, memory_mb=256, threads=1)


def test_the_owners_limit_reaches_the_gate(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_of = config.parse(b"[runtime]\nadapter = 'none'\nthreads = 3\n", name="x")
    assert settings_of.runtime.threads == 3
    adapter = Agent(settings_of).adapter()
    assert isinstance(adapter, Link)
    assert adapter._limits is not None
    assert adapter._limits.threads == 3
    asked: list[object] = []

    def loading(_directory: Path, *, threads: int) -> None:
        asked.append(threads)
        raise FormatError("far enough")

    monkeypatch.setattr(engine, "load", loading)
    with pytest.raises(FormatError, match="far enough"):
        probe_worker.examine(release, {}, None, threads=3)
    assert asked == [3]


@pytest.mark.parametrize("value", ["-1", "65", "true", "'2'"])
def test_a_limit_that_means_nothing(value: str) -> None:
    with pytest.raises(UsageError, match=r"x: runtime\.threads: Expected `int`"):
        config.parse(f"[runtime]\nthreads = {value}\n".encode(), name="x")


def test_the_gate_opens_the_model_as_asked(release: Path) -> None:
    engine_settings.leave(release, {"engine": {"threads": 2, "prepack": True}})
    assert probe(Candidate("m", 1, release, None), LIMITS)["cases"] == 1


def test_the_gate_says_what_the_device_lacks(release: Path) -> None:
    engine_settings.leave(release, {"engine": {"providers": ["cuda"]}})
    with pytest.raises(IncompatibleError, match="m release 1: the release wants to be computed by cuda; here is cpu"):
        probe(Candidate("m", 1, release, None), LIMITS)


# Which engines are installed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"onnxruntime"}, None),
        ({"ai_edge_litert"}, None),
        ({"onnxruntime", "ai_edge_litert"}, "the extra 'onnx' or 'litert'"),
        ({"uvicorn"}, "the extra 'serve'"),
    ],
)
def test_edgeseal_serve_needs_one_engine(monkeypatch: pytest.MonkeyPatch, missing: set[str], said: str | None) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name in missing else object())
    if said is None:
        serve._check_extras()
        return
    with pytest.raises(UsageError, match=said):
        serve._check_extras()

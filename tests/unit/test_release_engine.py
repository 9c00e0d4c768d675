"""What a release asks of its engine, from `edgeseal bundle build` to what serves it; a TFLite model all the way."""

from __future__ import annotations

import dataclasses
import http.client
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert has no wheel for this platform")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from click.testing import CliRunner
from tests.unit import agent_world, tflite_models
from tests.unit import runtime_world as world
from tests.unit.agent_world import FS, MODEL, Device, Fleet, Published

from edgeseal.device import update
from edgeseal.manifest import Manifest
from edgeseal.runtime import engine_settings
from edgeseal.runtime.vectors import Tensor
from edgeseal_host import accept
from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import BundleDirectory, bundle_content_key
from edgeseal_host.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit
SETTINGS: dict[str, object] = {"threads": 1, "prepack": False, "providers": ["cuda", "cpu"]}


def edgeseal(*words: object) -> Any:
    """Run a command with --json and return what it printed."""
    done = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# On the workstation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, object]:
    edgeseal("key", "new", "fam", "--kind", "family", "--no-passphrase", "--keys", tmp_path / "keys")
    return "--keys", tmp_path / "keys"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tflite_models.affine(bias=2.0).save(tmp_path / "bearing.tflite")


def _build(model: Path, out: Path, keys: tuple[str, object], *words: object) -> list[object]:
    return ["bundle", "build", model, "--model", "m", "--release", 1, "--family", "fam", "--out", out, *keys, *words]


def test_a_tflite_model_recorded_built_and_shown(model: Path, keys: tuple[str, object], tmp_path: Path) -> None:
    samples, vectors, out = tmp_path / "samples.npz", tmp_path / "vectors.json", tmp_path / "bundle"
    arrays: dict[str, Any] = {"inputs/x": np.arange(12, dtype=np.float32).reshape(3, 1, 4)}
    np.savez(samples, **arrays)
    recorded = edgeseal("accept", "record", model, "--inputs", samples, "--out", vectors)["acceptance"]
    assert (recorded["cases"], recorded["outputs"]) == (3, {"y": ["FP32", [1, 4]]})
    case = json.loads(vectors.read_text())["cases"][2]
    assert case["outputs"]["y"]["data"] == [10, 11, 12, 13]
    asked = ("--threads", 1, "--no-prepacking", "--provider", "cuda", "--provider", "cpu", "--accept", vectors)
    edgeseal(*_build(model, out, keys, *asked))
    about = edgeseal("bundle", "inspect", out, "--family", "fam", *keys)
    assert about["requirements"] == {"format": "tflite", "engine": SETTINGS}
    assert [f["path"] for f in about["files"]] == ["model.tflite"]
    assert about["acceptance"]["cases"] == 3
    shown = CliRunner().invoke(main, ["bundle", "inspect", str(out)]).output
    assert "engine (prepack False, threads 1, providers cuda/cpu), format tflite" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ((), None),
        (("--threads", 64), {"threads": 64}),
        (("--prepacking",), {"prepack": True}),
        (("--no-spinning",), {"spin": False}),
        (("--provider", "xnnpack"), {"providers": ["xnnpack"]}),
    ],
)
def test_only_what_was_asked_for_is_in_the_manifest(
    model: Path, keys: tuple[str, object], tmp_path: Path, words: tuple[object, ...], settings: object
) -> None:
    edgeseal(*_build(model, tmp_path / "bundle", keys, *words))
    manifest = BundleDirectory(tmp_path / "bundle").manifest()
    assert manifest.requirements.get("engine") == settings
    assert engine_settings.parse(manifest.requirements) == engine_settings.parse({"engine": settings or {}})


@pytest.mark.parametrize(
    "words",
    [
        ("--threads", 0),
        ("--threads", 65),
        ("--provider", "CPUExecutionProvider"),
        ("--provider", "/tmp/libevil.so"),
        ("--provider", "cpu", "--provider", "cpu"),
    ],
)
def test_what_every_device_would_refuse_is_not_built(
    model: Path, keys: tuple[str, object], tmp_path: Path, words: tuple[object, ...]
) -> None:
    done = CliRunner().invoke(main, [str(w) for w in _build(model, tmp_path / "bundle", keys, *words)])
    assert done.exit_code == 2
    assert not (tmp_path / "bundle" / "manifest.cbor").exists()


# On the device --------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Fleet, Device]]:
    with agent_world.world(tmp_path) as (fleet, found):
        found.write_config(runtime={"probe": True, "probe_memory_mb": 256, "threads": 1})
        yield fleet, found


def publish(fleet: Fleet, release: int, bias: float, **requirements: Any) -> None:
    """Build y = x + bias with one recorded case, list and serve it."""
    source, bundle = fleet.directory / f"source-{release}", fleet.directory / f"bundle-{release}"
    tflite_models.affine(bias=bias).save(source / "model.tflite")
    x = Tensor("FP32", [1, 4], np.ones(4, "<f4").tobytes())
    tests = accept.to_table(accept.record(source, [({"x": x}, {})], {}))
    build_bundle(
        [source], model=MODEL, release=release, suite=1, family_secret=FS, out=bundle, tests=tests,
        requirements=requirements,
    )  # fmt: skip
    _list(fleet, release, bundle)


def _list(fleet: Fleet, release: int, bundle: Path) -> None:
    objects = [p for kind in ("tables", "chunks") for p in (bundle / kind).rglob("*") if p.is_file()]
    files = {str(p.relative_to(bundle)): p.read_bytes() for p in objects}
    data = (bundle / "manifest.cbor").read_bytes()
    fleet.releases[release] = Published(Manifest.from_bytes(data), data, bundle_content_key(bundle, FS), files)
    fleet.repository.files.update(files)
    fleet.repository.add_release(MODEL, release, data)
    fleet.repository.publish()
    fleet.assigned = release


def test_a_tflite_release_is_tried_installed_and_served_as_it_asks(device: tuple[Fleet, Device]) -> None:
    fleet, found = device
    publish(fleet, 2, 2.0, engine=SETTINGS)
    assert not update.run(found.agent()).errors
    agent = found.agent()
    directory = agent.models.path(MODEL, 2)
    assert found.serving() == 2
    assert sorted(p.name for p in directory.iterdir()) == [".engine.json", "model.tflite"]
    assert json.loads((directory / ".engine.json").read_bytes()) == SETTINGS
    current = agent.state().model(MODEL).current
    assert current is not None
    assert current.gate is not None
    assert current.gate.cases == 1
    with world.serving(agent.models) as running:
        connection = http.client.HTTPConnection(running.address, timeout=60)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}
        connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
        answer = json.loads(connection.getresponse().read())
        connection.close()
    assert answer["outputs"][0]["data"] == [3, 3, 3, 3]


def test_a_reboot_brings_the_settings_back(device: tuple[Fleet, Device]) -> None:
    fleet, found = device
    publish(fleet, 2, 2.0, engine=SETTINGS)
    assert not update.run(found.agent()).errors
    found.reboot()
    assert found.serving() is None
    assert not update.run(found.agent()).errors
    path = found.agent().models.path(MODEL, 2) / ".engine.json"
    assert json.loads(path.read_bytes()) == SETTINGS


def test_a_provider_that_is_not_here_leaves_the_release_before(device: tuple[Fleet, Device]) -> None:
    fleet, found = device
    publish(fleet, 2, 2.0)
    assert not update.run(found.agent()).errors
    publish(fleet, 3, 3.0, engine={"providers": ["cuda"]})
    (error,) = update.run(found.agent()).errors
    assert "to be computed by cuda; here is xnnpack, cpu" in str(error)
    assert found.serving() == 2
    assert [f.release for f in found.agent().state().model(MODEL).failed] == [3]
    assert found.agent().models.releases(MODEL) == [2]


def _asking(fleet: Fleet, release: int, asked: object) -> None:
    """List a release whose manifest says what no build of ours would write."""
    publish(fleet, release, 1.0)
    published = fleet.releases[release]
    manifest = dataclasses.replace(published.manifest, requirements={"format": "tflite", "engine": asked})
    bundle = fleet.directory / f"bundle-{release}"
    (bundle / "manifest.cbor").write_bytes(manifest.to_bytes())
    _list(fleet, release, bundle)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"graph": "basic"}, "engine has 'graph'; this version knows threads, prepack, spin, providers"),
        ({"threads": 1000}, "requirements: engine: Expected `int` <= 64"),
        ({"providers": ["/tmp/libevil.so"]}, "requirements: engine: Expected `str` matching"),
    ],
)
def test_what_may_not_be_asked_is_refused_before_anything_is_fetched(
    device: tuple[Fleet, Device], asked: object, reason: str
) -> None:
    fleet, found = device
    _asking(fleet, 2, asked)
    (error,) = update.run(found.agent()).errors
    assert reason in str(error)
    assert found.serving() is None
    assert not [p for p in found.state.rglob("*") if p.is_file() and {"chunks", "tables"} & set(p.parts)]


def test_a_release_that_brings_settings_as_a_file_is_refused(
    device: tuple[Fleet, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, found = device
    (fleet.directory / "source-2").mkdir()
    (fleet.directory / "source-2" / ".engine.json").write_text('{"threads": 64}')
    with monkeypatch.context() as patched:
        patched.setattr("edgeseal_host.sources.check_names", lambda _: None)
        publish(fleet, 2, 2.0)
    (error,) = update.run(found.agent()).errors
    assert "the release holds a file called .engine.json" in str(error)
    assert found.serving() is None
    assert not [p for p in found.state.rglob("*") if p.is_file() and "chunks" in p.parts]

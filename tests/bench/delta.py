"""How much of a model a device fetches after a change: the five changes of docs/spec/bundle.md, against fixed grids.

The model is made here: fp32 tensors of a transformer's shapes, seeded, in ONNX. A share is stored bytes of chunks that
the release before does not have, divided by the size of the file.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import BundleDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

FS: Final = bytes(range(32))
WIDTH, LAYERS, VOCABULARY = 384, 6, 2048
GRID: Final = 4096


def measure() -> dict[str, object]:
    """Return percentages by change."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-bench-") as place:
        work = Path(place)
        base = _tensors()
        first = _save(work / "base.onnx", base)
        before = _bundle(work, first, 1)
        out: dict[str, object] = {"model_mb": round(first.stat().st_size / 1e6, 1)}
        for number, (name, tensors, options) in enumerate(_changes(base), 2):
            changed = _save(work / f"{name}.onnx", tensors, **options)
            after = _bundle(work, changed, number, previous=before)
            had = {p.name for p in BundleDirectory(before).objects("chunks")}
            new = sum(p.stat().st_size for p in BundleDirectory(after).objects("chunks") if p.name not in had)
            size = changed.stat().st_size
            out[f"{name}_percent"] = round(100 * new / size, 2)
            out[f"{name}_grid_4k_percent"] = round(100 * _grid(first, changed) / size, 2)
    return out


def _tensors() -> Tensors:
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"{i}.qkv": (WIDTH, 3 * WIDTH), f"{i}.out": (WIDTH, WIDTH)}
        shapes |= {f"{i}.up": (WIDTH, 4 * WIDTH), f"{i}.down": (4 * WIDTH, WIDTH), f"{i}.norm": (WIDTH,)}
    shapes["head"] = (WIDTH, 64)
    return {n: rng.standard_normal(s).astype(np.float32) * np.float32(0.02) for n, s in shapes.items()}


def _changes(base: Tensors) -> Iterator[tuple[str, Tensors, dict[str, Any]]]:
    rng = np.random.default_rng(8)
    yield "head_changed", {**base, "head": rng.standard_normal((WIDTH, 64)).astype(np.float32)}, {}
    yield "node_inserted", base, {"extra_node": True}
    yield "head_widened", {**base, "head": rng.standard_normal((WIDTH, 80)).astype(np.float32)}, {}
    yield "metadata_only", base, {"note": "retrained on another day"}
    merged = dict(base)
    for i in range(LAYERS):
        a, b = rng.standard_normal((WIDTH, 4)), rng.standard_normal((4, 3 * WIDTH))
        merged[f"{i}.qkv"] = (base[f"{i}.qkv"] + 1e-3 * (a @ b)).astype(np.float32)
    yield "lora_merge", merged, {}


def _save(path: Path, tensors: Tensors, *, extra_node: bool = False, note: str = "") -> Path:
    names = list(tensors)
    nodes = [helper.make_node("Identity", [n], [f"{n}_out"], name=f"use_{n}") for n in names]
    if extra_node:
        nodes.insert(len(nodes) // 2, helper.make_node("Relu", [f"{names[0]}_out"], ["extra"], name="inserted"))
    outputs = [helper.make_tensor_value_info(f"{n}_out", TensorProto.FLOAT, list(tensors[n].shape)) for n in names]
    graph = helper.make_graph(nodes, "bench", [], outputs, [numpy_helper.from_array(tensors[n], n) for n in names])
    model = helper.make_model(graph, doc_string=note)
    onnx.save(model, str(path))
    return path


def _bundle(work: Path, model: Path, release: int, previous: Path | None = None) -> Path:
    out = work / f"bundle-{release}"
    build_bundle([model], model="bench", release=release, suite=1, family_secret=FS, previous=previous, out=out)
    return out


def _grid(old: Path, new: Path) -> int:
    """Bytes of 4 KiB blocks of `new` that `old` does not have at any place: what a fixed grid would fetch."""
    blocks = [p.read_bytes() for p in (old, new)]
    had = {hashlib.sha256(blocks[0][i : i + GRID]).digest() for i in range(0, len(blocks[0]), GRID)}
    pieces = (blocks[1][i : i + GRID] for i in range(0, len(blocks[1]), GRID))
    return sum(len(p) for p in pieces if hashlib.sha256(p).digest() not in had)

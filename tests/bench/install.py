"""Installing 1 GiB: verify, decrypt, write, flush; against the floor (hash, copy, flush) and peers that are installed.

The floor is `openssl dgst -sha256` + `cp` + flush of the same file: what any installer that checks and copies must
do. Peers do what they can of the same job: verify and decrypt one file. Every step is a process of its own; CPU is user
plus system time of it and its children. The least of five rounds, because disk and memory are shared with the rest of
the machine. Suite 2 stands beside suite 1, because a processor with instructions for SHA-256 has them for AES too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench import peers
from tests.bench.measured import Cost, cost, in_turn

from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import open_content_key

if TYPE_CHECKING:
    from collections.abc import Callable

GIB: Final = 2**30
SIZES: Final = (GIB // 4, GIB)
FS: Final = bytes(range(32))
ROUNDS: Final = 5
_TENSORS: Final = 16


def measure() -> dict[str, object]:
    """Return ratios and figures by name."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-bench-") as place:
        work = Path(place)
        out: dict[str, object] = {}
        small = _best(_install_of(work, _model(work, SIZES[0]), 1))
        out[f"peak_rss_mb_{SIZES[0] // 2**20}_mib"] = round(small.rss_mb, 1)
        model = _model(work, SIZES[-1])
        suites = [_install_of(work, model, number) for number in (1, 2)]
        ours, second, floor = in_turn(*suites, lambda: _floor(work, model), rounds=ROUNDS)
        out |= {
            "size_mib": SIZES[-1] // 2**20,
            "cpu_s": round(ours.cpu, 2),
            "wall_s": round(ours.wall, 2),
            "floor_cpu_s": round(floor.cpu, 2),
            "floor_wall_s": round(floor.wall, 2),
            "cpu_ratio_to_floor": round(ours.cpu / floor.cpu, 2),
            "wall_ratio_to_floor": round(ours.wall / floor.wall, 2),
            "suite_2_cpu_ratio_to_floor": round(second.cpu / floor.cpu, 2),
            "suite_2_wall_ratio_to_floor": round(second.wall / floor.wall, 2),
            "peak_rss_mb": round(max(ours.rss_mb, second.rss_mb), 1),
        }
        out |= peers.measure(work, model, {"": suites[0], "suite_2_": suites[1]})
    return out


def _best(run: Callable[[], Cost]) -> Cost:
    return in_turn(run, rounds=ROUNDS)[0]


def _floor(work: Path, model: Path) -> Cost:
    copy = work / "copy"
    copy.unlink(missing_ok=True)
    return cost(["sh", "-c", f"openssl dgst -sha256 {model} && cp {model} {copy} && sync {copy}"])


def _model(work: Path, size: int) -> Path:
    """Make a model of 8-bit weights, sixteen tensors that do not compress, in a safetensors file."""
    model = work / f"model-{size}.safetensors"
    tensor = size // _TENSORS
    shape = [tensor // 2**10, 2**10]
    places = ([n * tensor, (n + 1) * tensor] for n in range(_TENSORS))
    tensors = {f"layer.{n}": {"dtype": "I8", "shape": shape, "data_offsets": p} for n, p in enumerate(places)}
    header = json.dumps(tensors).encode()
    with model.open("wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size // 2**20):
            f.write(os.urandom(2**20))
    return model


def _install_of(work: Path, model: Path, suite: int) -> Callable[[], Cost]:
    """Build a bundle of the model and return what installs it."""
    bundle, out = work / f"bundle-{model.name}-{suite}", work / "installed"
    build_bundle([model], model="bench", release=1, suite=suite, family_secret=FS, out=bundle)
    key = open_content_key((bundle / "content.key").read_bytes(), fs=FS, model="bench", release=1)
    (bundle / "ck").write_bytes(key)

    def install() -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        return cost([sys.executable, "-m", "tests.bench.install_once", bundle, out])

    return install

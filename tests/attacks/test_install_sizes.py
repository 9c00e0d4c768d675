"""Sizes around 2 GiB and 4 GiB, where 32-bit integers end: cut, sealed, unpacked and verified to the byte."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from edgeseal.install import stored_table, unpack
from edgeseal.store import ObjectStore
from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import bundle_content_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FS = bytes(range(32))
GIB = 2**30
_BLOCK = 2**20
_HEADER = 256  # bytes
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def anything(path: Path, size: int) -> Path:
    """A file of zeros with a mark at its start and at its very end."""
    with path.open("wb") as f:
        f.write(b"start")
        f.seek(size - 3)
        f.write(b"end")
    return path


def one_tensor(path: Path, size: int) -> Path:
    """The same as the one tensor of a safetensors file, which is cut without looking at every byte."""
    length = size - 8 - _HEADER
    header = json.dumps({"t": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}).ljust(_HEADER)
    anything(path, size)
    with path.open("r+b") as f:
        f.write(_HEADER.to_bytes(8, "little") + header.encode())
    return path


def digest(path: Path) -> bytes:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


@pytest.mark.parametrize(
    ("size", "make"),
    [(2 * GIB - 1, one_tensor), (2 * GIB + 1, one_tensor), (4 * GIB - 1, one_tensor), (4 * GIB + 1, anything)],
    ids=["2G-1", "2G+1", "4G-1", "4G+1"],
)
def test_sizes_around_two_and_four_gib(tmp_path: Path, size: int, make: Callable[[Path, int], Path]) -> None:
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < size + GIB:
        pytest.skip(f"needs {(size + GIB) / GIB:.0f} GiB of disk")
    name = "model.safetensors" if make is one_tensor else "model.bin"
    source, bundle, out = make(tmp_path / name, size), tmp_path / "bundle", tmp_path / "out"
    manifest = build_bundle([source], model="big", release=1, suite=1, family_secret=FS, out=bundle)
    assert manifest.plain_size == size
    assert manifest.stored_size < 64 * _BLOCK, "equal pieces share one chunk"
    store = ObjectStore(bundle)
    table = stored_table(manifest, ck=bundle_content_key(bundle, FS), store=store)
    done: list[int] = []
    out.mkdir()
    unpack(table, suite=1, store=store, directory=out, workers=2, progress=done.append)
    assert sum(done) == size == (out / name).stat().st_size
    assert digest(out / name) == digest(source)
    (out / name).unlink()

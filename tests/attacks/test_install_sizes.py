"""Sizes around 2 GiB and 4 GiB, where 32-bit integers end: cut, sealed, unpacked and verified to the byte."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from edgeseal.install import stored_table, unpack
from edgeseal.store import ObjectStore
from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import bundle_content_key

if TYPE_CHECKING:
    from pathlib import Path

FS = bytes(range(32))
GIB = 2**30
_BLOCK = 2**20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def sparse(path: Path, size: int) -> Path:
    """A file of zeros with a mark at its start and at its very end."""
    with path.open("wb") as f:
        f.write(b"start")
        f.seek(size - 3)
        f.write(b"end")
    return path


def digest(path: Path) -> bytes:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


@pytest.mark.parametrize(
    "size", [2 * GIB - 1, 2 * GIB + 1, 4 * GIB - 1, 4 * GIB + 1], ids=["2G-1", "2G+1", "4G-1", "4G+1"]
)
def test_sizes_around_two_and_four_gib(tmp_path: Path, size: int) -> None:
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < size + GIB:
        pytest.skip(f"needs {(size + GIB) / GIB:.0f} GiB of disk")
    source, bundle, out = sparse(tmp_path / "model.bin", size), tmp_path / "bundle", tmp_path / "out"
    manifest = build_bundle([source], model="big", release=1, suite=1, family_secret=FS, out=bundle)
    assert manifest.plain_size == size
    assert manifest.stored_size < 64 * _BLOCK, "equal pieces share one chunk"
    store = ObjectStore(bundle)
    table = stored_table(manifest, ck=bundle_content_key(bundle, FS), store=store)
    done: list[int] = []
    out.mkdir()
    unpack(table, suite=1, store=store, directory=out, workers=2, progress=done.append)
    assert sum(done) == size == (out / "model.bin").stat().st_size
    assert digest(out / "model.bin") == digest(source)
    (out / "model.bin").unlink()

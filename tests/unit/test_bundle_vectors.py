"""The bundle vectors, case by case: edgeseal and a second reader, written from the specification, agree on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbor2
import pytest
from tests.unit import second_reader
from tests.vectors import make_bundle

from edgeseal.archive import Archive
from edgeseal.contentkey import check_commitment
from edgeseal.errors import EdgesealError
from edgeseal.install import fetch_chunks, fetch_table, missing, unpack
from edgeseal.manifest import Manifest
from edgeseal.store import ObjectStore
from edgeseal.transport.objects_archive import ArchiveObjects

DIRECTORY = Path(__file__).parents[1] / "vectors" / "bundle"
CASES = sorted(DIRECTORY.glob("*.cbor"), key=lambda p: (p.stem.startswith("ok"), p.stem))


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = cbor2.loads(path.read_bytes())
    return content


def ours(content: dict[str, Any], directory: Path) -> dict[str, bytes]:
    """Install a case as the agent does, from a directory."""
    import hashlib

    source = directory / "source"
    for kind, objects in (("tables", [content["table"]]), ("chunks", content["chunks"])):
        for data in objects:
            name = hashlib.sha256(data).hexdigest()
            place = source / kind / name[:2] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    manifest = Manifest.from_bytes(content["manifest"])
    check_commitment(content["ck"], manifest.ck_commitment, manifest.model, manifest.release)
    store, objects_ = ObjectStore(directory / "objects"), ArchiveObjects(Archive(source))
    table = fetch_table(manifest, ck=content["ck"], objects=objects_, store=store)
    fetch_chunks(table, missing(table, store), objects=objects_, store=store, workers=1, progress=lambda _: None)
    out = directory / "out"
    out.mkdir()
    unpack(table, suite=manifest.suite, store=store, directory=out, workers=1, progress=lambda _: None)
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def theirs(content: dict[str, Any]) -> dict[str, bytes]:
    import hashlib

    chunks = {hashlib.sha256(c).hexdigest(): c for c in content["chunks"]}
    return second_reader.read_bundle(content["manifest"], content["ck"], content["table"], chunks)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_both_readers_agree(path: Path, tmp_path: Path) -> None:
    content = load(path)
    assert content["case"] == path.stem
    if content["expect"] == "ok":
        assert ours(content, tmp_path) == content["files"] == theirs(content)
        return
    with pytest.raises(EdgesealError):
        ours(content, tmp_path)
    assert not list((tmp_path / "out").glob("*")), "plaintext is left"
    with pytest.raises((second_reader.Refused, second_reader.Incompatible, KeyError)):  # KeyError: no such chunk
        theirs(content)


def test_vectors_are_what_the_generator_makes() -> None:
    """Locks the bytes. Compressed frames may differ under another zstd; then only cases without one are compared."""
    made = make_bundle.everything()
    assert set(made) == {p.name for p in CASES}
    same = [name for name, data in made.items() if (DIRECTORY / name).read_bytes() == data]
    manifests = [n for n in made if load(DIRECTORY / n)["chunks"] == cbor2.loads(made[n])["chunks"]]
    assert set(same) == set(manifests)


def test_there_are_enough_faults() -> None:
    assert len(CASES) >= 40

"""The bundle vectors, case by case: edgeseal and a second reader, written from the specification, agree on each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit import second_reader
from tests.vectors import make_bundle

from edgeseal.archive import Archive
from edgeseal.chunks import check_stored, decode_chunk
from edgeseal.contentkey import check_commitment
from edgeseal.errors import EdgesealError, IncompatibleError, RefusedError
from edgeseal.install import fetch_chunks, fetch_table, missing, unpack
from edgeseal.manifest import Manifest
from edgeseal.runtime import engine_settings
from edgeseal.store import ObjectStore
from edgeseal.table import Record, open_pinned
from edgeseal.transport.objects_archive import ArchiveObjects

DIRECTORY = Path(__file__).parents[1] / "vectors" / "bundle"
Case = dict[str, Any]
CASES: dict[str, Case] = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(DIRECTORY.glob("*.json"))}
GOOD = [pytest.param(c, id=name) for name, c in CASES.items() if c["outcome"] == "opens"]
BROKEN = [pytest.param(c, id=name) for name, c in CASES.items() if c["outcome"] != "opens"]


def octets(case: Case, name: str) -> bytes:
    """Parts behind the step that refuses are not stored."""
    return bytes.fromhex(case.get(name, ""))


def ours(case: Case, at: list[str] | None = None) -> dict[str, bytes]:
    """Open a case with edgeseal's formats alone; `at` learns the steps."""
    steps = at if at is not None else []
    steps.append("manifest")
    manifest = Manifest.from_bytes(octets(case, "manifest"))
    steps.append("requirements")
    engine_settings.parse(manifest.requirements)
    steps.append("key")
    check_commitment(octets(case, "ck"), manifest.ck_commitment, manifest.model, manifest.release)
    steps.append("table")
    table = open_pinned(octets(case, "table"), manifest, ck=octets(case, "ck"))
    steps.append("chunk")
    return {f.path: b"".join(piece(r, manifest.suite, case) for r in table.pieces(f)) for f in table.files}


def piece(record: Record, suite: int, case: Case) -> bytes:
    out = bytearray(b"\xaa" * record.plain_length)
    stored = bytes.fromhex(case["chunks"][record.stored_sha256.hex()])
    errors: list[EdgesealError] = []
    try:
        check_stored(record, stored)
    except EdgesealError as e:
        errors.append(e)
    try:
        decode_chunk(record, stored, suite=suite, out=memoryview(out))
    except EdgesealError:
        assert not any(out), "unverified bytes are left in the buffer"
        raise
    assert not errors, "decoding accepts what is not the chunk"
    return bytes(out)


def installed(case: Case, directory: Path) -> dict[str, bytes]:
    """Install a good case as the agent does."""
    manifest = Manifest.from_bytes(octets(case, "manifest"))
    for kind, objects in (("tables", {manifest.table_sha256.hex(): case["table"]}), ("chunks", case["chunks"])):
        for name, data in objects.items():
            place = directory / "source" / kind / name[:2] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bytes.fromhex(data))
    store, source = ObjectStore(directory / "objects"), ArchiveObjects(Archive(directory / "source"))
    table = fetch_table(manifest, ck=octets(case, "ck"), objects=source, store=store)
    fetch_chunks(table, missing(table, store), objects=source, store=store, workers=1, progress=lambda _: None)
    out = directory / "out"
    out.mkdir()
    unpack(table, suite=manifest.suite, store=store, directory=out, workers=1, progress=lambda _: None)
    for entry in table.files:  # executable for whom, and readable for whom, is the model repository's business
        assert bool((out / entry.path).stat().st_mode & 0o100) == (entry.mode == 0o755)
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def theirs(case: Case) -> dict[str, bytes]:
    chunks = {name: bytes.fromhex(data) for name, data in case.get("chunks", {}).items()}
    return second_reader.read_bundle(octets(case, "manifest"), octets(case, "ck"), octets(case, "table"), chunks)


@pytest.mark.parametrize("case", GOOD)
def test_good_bundles_open(case: Case, tmp_path: Path) -> None:
    files = ours(case)
    assert files == theirs(case) == installed(case, tmp_path)
    found = {path: [len(data), hashlib.sha256(data).hexdigest()] for path, data in files.items()}
    assert found == {path: [size, sha256] for path, (_, size, sha256) in case["files"].items()}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_bundles_are_refused_where_the_fault_is(case: Case) -> None:
    expected = {"refused": RefusedError, "incompatible": IncompatibleError}[case["outcome"]]
    steps: list[str] = []
    with pytest.raises(expected):
        ours(case, steps)
    assert steps[-1] == case["at"]


@pytest.mark.parametrize("case", BROKEN)
def test_second_reader_refuses_broken_bundles(case: Case) -> None:
    expected = {"refused": second_reader.Refused, "incompatible": second_reader.Incompatible}[case["outcome"]]
    with pytest.raises(expected):
        theirs(case)


@pytest.mark.parametrize("case", GOOD)
def test_what_a_table_says_besides_files(case: Case) -> None:
    """Acceptance vectors, alternates: the same to both readers."""
    manifest = Manifest.from_bytes(octets(case, "manifest"))
    table = open_pinned(octets(case, "table"), manifest, ck=octets(case, "ck"))
    m = second_reader.read_manifest(octets(case, "manifest"))
    files, tests, records = second_reader.open_table(m, octets(case, "ck"), octets(case, "table"))
    assert tests == table.tests
    assert [f[0] for f in files] == [f.path for f in table.files]
    assert [(r.name, r.plain, r.codec, r.width) for r in records] == [
        (r.stored_sha256, r.plain_length, r.codec, r.width) for r in table.records
    ]
    assert manifest.to_bytes() == octets(case, "manifest")


def test_vectors_are_what_the_generator_makes() -> None:
    """Locks the bytes: a change of the format is a change of these files."""
    assert {p.name: p.read_text("utf-8") for p in DIRECTORY.iterdir()} == make_bundle.rendered()


def test_both_suites_and_all_codecs_are_among_the_good_ones() -> None:
    seen = set()
    for case in (c for c in CASES.values() if c["outcome"] == "opens"):
        manifest = Manifest.from_bytes(octets(case, "manifest"))
        table = open_pinned(octets(case, "table"), manifest, ck=octets(case, "ck"))
        seen |= {(manifest.suite, record.codec) for record in table.records}
        seen |= {(manifest.suite, a.codec) for alternates in table.alternates.values() for a in alternates}
    assert seen == {(suite, codec) for suite in (1, 2) for codec in range(4)}

"""A release from a real bundle over real HTTP into a directory, and what goes wrong on the way."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgeseal.archive import Archive
from edgeseal.errors import IntegrityError, NoSpaceError, TemporaryError
from edgeseal.install import fetch_chunks, fetch_table, missing, preflight, unpack
from edgeseal.store import ObjectStore
from edgeseal.transport.objects import HttpObjects
from edgeseal.transport.objects_archive import ArchiveObjects
from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import bundle_content_key
from edgeseal_host.testing.repository import HttpServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.install import Objects
    from edgeseal.manifest import Manifest
    from edgeseal.table import Table

FS = bytes(range(32))


class Release:
    """One built release and where it is served."""

    def __init__(self, directory: Path, *, suite: int = 1) -> None:
        self.source = directory / "source"
        self.source.mkdir()
        rng = random.Random(suite)
        (self.source / "model.onnx").write_bytes(rng.randbytes(3_500_000) + bytes(700_000))
        (self.source / "labels.txt").write_bytes(b"healthy\ninner\nouter\nball\n" * 50)
        self.bundle = directory / "bundle"
        self.manifest: Manifest = build_bundle(
            [self.source], model="bearing", release=1, suite=suite, family_secret=FS, out=self.bundle
        )
        self.ck = bundle_content_key(self.bundle, FS)
        self.files = {
            str(p.relative_to(self.bundle)): p.read_bytes()
            for kind in ("tables", "chunks")
            for p in (self.bundle / kind).rglob("*")
            if p.is_file()
        }

    def install(self, objects: Objects, store: ObjectStore, out: Path) -> Table:
        table = fetch_table(self.manifest, ck=self.ck, objects=objects, store=store)
        fetch_chunks(table, missing(table, store), objects=objects, store=store, workers=2, progress=lambda _: None)
        unpack(table, suite=self.manifest.suite, store=store, directory=out, workers=2, progress=lambda _: None)
        return table

    def same(self, out: Path) -> bool:
        return all((out / p.name).read_bytes() == p.read_bytes() for p in self.source.iterdir())


@pytest.fixture(params=[1, 2], ids=["suite-1", "suite-2"])
def release(tmp_path: Path, request: pytest.FixtureRequest) -> Release:
    return Release(tmp_path, suite=request.param)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


@pytest.fixture
def server(release: Release) -> Iterator[HttpServer]:
    with serving(release.files) as server:
        yield server


def test_install_over_http(release: Release, server: HttpServer, store: ObjectStore, out: Path) -> None:
    seen: list[int] = []
    objects = HttpObjects(server.base)
    table = fetch_table(release.manifest, ck=release.ck, objects=objects, store=store)
    wanted = missing(table, store)
    fetched = fetch_chunks(table, wanted, objects=objects, store=store, workers=2, progress=seen.append)
    assert fetched.bytes_fetched == sum(seen) == release.manifest.stored_size
    assert fetched.chunks_fetched == len(wanted)
    done: list[int] = []
    unpack(table, suite=release.manifest.suite, store=store, directory=out, workers=2, progress=done.append)
    assert sum(done) == release.manifest.plain_size
    assert release.same(out)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_flush_that_fails_leaves_no_file(
    release: Release, store: ObjectStore, out: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The kernel tells of a lost write once, and perhaps to the thread that flushes while others decrypt."""
    failed = threading.Event()

    def fail(_: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    def wait_for_it(done: int) -> None:
        assert call == "fsync" or failed.wait(30), done

    objects = ArchiveObjects(Archive(release.bundle))
    table = fetch_table(release.manifest, ck=release.ck, objects=objects, store=store)
    fetch_chunks(table, missing(table, store), objects=objects, store=store, workers=1, progress=lambda _: None)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error"):
        unpack(
            table,
            suite=release.manifest.suite,
            store=store,
            directory=out,
            workers=2,
            progress=wait_for_it,
            durable=True,
        )
    assert not list(out.iterdir())


def test_nothing_is_fetched_twice(release: Release, server: HttpServer, store: ObjectStore, out: Path) -> None:
    release.install(HttpObjects(server.base), store, out)
    server.log.clear()
    table = fetch_table(release.manifest, ck=release.ck, objects=HttpObjects(server.base), store=store)
    assert not missing(table, store)
    assert not server.log


def test_install_from_a_directory(release: Release, store: ObjectStore, out: Path) -> None:
    release.install(ArchiveObjects(Archive(release.bundle)), store, out)
    assert release.same(out)


@pytest.mark.parametrize("fault", ["flip", "truncate", "other", "empty"])
def test_damaged_chunk_on_the_server(
    release: Release, server: HttpServer, store: ObjectStore, out: Path, fault: str
) -> None:
    """Refused, nothing of it is kept, and the next pass needs only that chunk."""
    names = sorted(n for n in release.files if n.startswith("chunks/"))
    name, good = names[0], release.files[names[0]]
    spoilt = {
        "flip": bytes([good[0] ^ 1]) + good[1:],
        "truncate": good[:-1],
        "other": release.files[names[1]],
        "empty": b"",
    }
    release.files[name] = spoilt[fault]
    with pytest.raises((IntegrityError, TemporaryError)):
        release.install(HttpObjects(server.base), store, out)
    assert not list(out.iterdir())
    release.files[name] = good
    store.drop_partial("chunks", bytes.fromhex(Path(name).name))
    server.log.clear()
    release.install(HttpObjects(server.base), store, out)
    assert release.same(out)


def test_damaged_chunk_on_the_card_is_fetched_again(
    release: Release, server: HttpServer, store: ObjectStore, out: Path
) -> None:
    table = release.install(HttpObjects(server.base), store, out)
    record = table.records[1]
    path = store.path("chunks", record.stored_sha256)
    path.write_bytes(bytes(record.stored_length))
    again = out.parent / "again"
    again.mkdir()
    with pytest.raises(IntegrityError, match="card is damaged"):
        unpack(table, suite=release.manifest.suite, store=store, directory=again, workers=2, progress=lambda _: None)
    assert not list(again.iterdir())
    release.install(HttpObjects(server.base), store, again)
    assert release.same(again)


def test_no_room_is_said_before_the_first_byte(release: Release, server: HttpServer, store: ObjectStore) -> None:
    table = fetch_table(release.manifest, ck=release.ck, objects=HttpObjects(server.base), store=store)
    with pytest.raises(NoSpaceError, match="of memory"):
        preflight(table, missing(table, store), store=store, memory_free=1000)
    huge = {bytes(32): 2**62}
    with pytest.raises(NoSpaceError, match="on disk"):
        preflight(table, huge, store=store, memory_free=2**40)


def test_collect_keeps_what_is_wanted(release: Release, server: HttpServer, store: ObjectStore, out: Path) -> None:
    table = release.install(HttpObjects(server.base), store, out)
    kept = [("chunks", name) for name in list(table.chunks())[:2]]
    before = store.usage()
    freed = store.collect(kept)  # type: ignore[arg-type]
    assert freed == before - store.usage() > 0
    assert len(missing(table, store)) == len(table.chunks()) - 2

"""Whoever holds the server, the way or the card: chunks swapped, reordered, dropped, doubled, cut; hostile tables.

Two attackers. One changes bytes outside (server, network, card) and knows no key. The other knows the content key, as a
server or a leaving publisher may, and seals tables and chunks of his own, but cannot sign a manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import resource
import signal
import threading
from typing import TYPE_CHECKING

import pytest
import zstandard
from tests.unit.test_install import FS, Release

from edgeseal.archive import Archive
from edgeseal.chunks import encode_piece
from edgeseal.errors import (
    FormatError,
    IncompatibleError,
    IntegrityError,
    NoSpaceError,
    RefusedError,
    TemporaryError,
)
from edgeseal.install import _in_threads, fetch_chunks, fetch_table, missing, unpack
from edgeseal.store import ObjectStore
from edgeseal.suite import aead_encrypt
from edgeseal.table import _HEADER, CODEC_RAW, CODEC_ZSTD, FileEntry, Record, Table, table_key
from edgeseal.transport.objects import HttpObjects
from edgeseal.transport.objects_archive import ArchiveObjects
from edgeseal_host.build import build_bundle
from edgeseal_host.testing.repository import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgeseal.manifest import Manifest
    from edgeseal.store import Kind

CANARY = b"edgeseal-canary-" * 4096  # 64 KiB that compress into nothing a scan would miss


@pytest.fixture
def release(tmp_path: Path) -> Release:
    (tmp_path / "release").mkdir()
    return Release(tmp_path / "release")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def chunk_names(release: Release) -> list[str]:
    table = fetched_table(release)
    return [f"chunks/{r.stored_sha256.hex()[:2]}/{r.stored_sha256.hex()}" for r in table.records]


def fetched_table(release: Release) -> Table:
    objects = ArchiveObjects(Archive(release.bundle))
    return fetch_table(release.manifest, ck=release.ck, objects=objects, store=ObjectStore(release.bundle))


def regular(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.is_file() or p.is_symlink()]


# Somebody without a key ----------------------------------------------------------------------------------------------

Files = dict[str, bytes]


def swapped(files: Files, names: list[str]) -> None:
    files[names[0]], files[names[1]] = files[names[1]], files[names[0]]


def reordered(files: Files, names: list[str]) -> None:
    for name, data in zip(names, [files[n] for n in names[1:] + names[:1]], strict=True):
        files[name] = data


def dropped(files: Files, names: list[str]) -> None:
    del files[names[1]]


def doubled(files: Files, names: list[str]) -> None:
    files[names[1]] += files[names[1]]


def copied_over(files: Files, names: list[str]) -> None:
    files[names[1]] = files[names[0]]


def truncated(files: Files, names: list[str]) -> None:
    files[names[1]] = files[names[1]][:-1]


def emptied(files: Files, names: list[str]) -> None:
    files[names[1]] = b""


def tag_flipped(files: Files, names: list[str]) -> None:
    files[names[1]] = files[names[1]][:-1] + bytes([files[names[1]][-1] ^ 0x80])


FAULTS = [swapped, reordered, dropped, doubled, copied_over, truncated, emptied, tag_flipped]


@pytest.mark.parametrize("fault", FAULTS)
def test_chunks_on_the_server(
    release: Release, store: ObjectStore, out: Path, fault: Callable[[Files, list[str]], None]
) -> None:
    """Refused; no chunk is kept under a name that is not its hash; the honest server then completes it."""
    files = dict(release.files)
    fault(files, list(dict.fromkeys(chunk_names(release))))
    with serving(files) as server, pytest.raises((IntegrityError, TemporaryError)):
        release.install(HttpObjects(server.base), store, out)
    assert not regular(out)
    for path in regular(store.directory / "chunks"):
        assert path.suffix == ".part" or hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    with serving(release.files) as server:
        release.install(HttpObjects(server.base), store, out)
    assert release.same(out)


@pytest.mark.parametrize("fault", FAULTS)
def test_chunks_on_the_card(
    release: Release, store: ObjectStore, out: Path, fault: Callable[[Files, list[str]], None]
) -> None:
    """Somebody with the card in another computer: refused when decrypted, nothing is left, then fetched again."""
    objects = ArchiveObjects(Archive(release.bundle))
    table = fetch_table(release.manifest, ck=release.ck, objects=objects, store=store)
    fetch_chunks(table, missing(table, store), objects=objects, store=store, workers=2, progress=lambda _: None)
    names = list(dict.fromkeys(chunk_names(release)))
    files = {name: (store.directory / name).read_bytes() for name in names}
    fault(files, names)
    for name in names:
        (store.directory / name).unlink()
        if name in files:
            (store.directory / name).write_bytes(files[name])
    with pytest.raises((IntegrityError, TemporaryError)):
        unpack(table, suite=1, store=store, directory=out, workers=2, progress=lambda _: None)
    assert not regular(out)
    for _ in range(len(names) + 1):  # each pass finds what is damaged until nothing is
        try:
            release.install(objects, store, out)
            break
        except IntegrityError:
            assert not regular(out)
    assert release.same(out)


def test_chunk_of_another_release(release: Release, store: ObjectStore, out: Path, tmp_path: Path) -> None:
    """An older version of the same piece, genuine and of the same family, under the new one's name."""
    (tmp_path / "old").mkdir()
    data = (release.source / "model.onnx").read_bytes()
    (tmp_path / "old" / "model.onnx").write_bytes(data[:1_000_000] + bytes(4) + data[1_000_004:])
    build_bundle([tmp_path / "old"], model="bearing", release=2, suite=1, family_secret=FS, out=tmp_path / "b2")
    mine = set(chunk_names(release))
    foreign = next(
        p for p in (tmp_path / "b2" / "chunks").glob("*/*") if f"chunks/{p.parent.name}/{p.name}" not in mine
    )
    files = dict(release.files)
    victim = max(mine, key=lambda name: len(files[name]))
    files[victim] = foreign.read_bytes()
    with serving(files) as server, pytest.raises((IntegrityError, TemporaryError)):
        release.install(HttpObjects(server.base), store, out)
    assert not store.path("chunks", bytes.fromhex(victim[-64:])).exists()
    assert not regular(out)


def test_table_of_another_release_under_the_name(release: Release, store: ObjectStore, tmp_path: Path) -> None:
    other = build_bundle([release.source], model="bearing", release=2, suite=1, family_secret=FS, out=tmp_path / "b2")
    name = release.manifest.table_sha256.hex()
    table = (tmp_path / "b2" / "tables" / other.table_sha256.hex()[:2] / other.table_sha256.hex()).read_bytes()
    refused = pytest.raises((IntegrityError, TemporaryError))
    with serving({**release.files, f"tables/{name[:2]}/{name}": table}) as server, refused:
        fetch_table(release.manifest, ck=release.ck, objects=HttpObjects(server.base), store=store)
    assert not [p for p in regular(store.directory) if p.suffix != ".part"]


def test_content_key_of_another_release(release: Release, store: ObjectStore) -> None:
    with serving(release.files) as server, pytest.raises(IntegrityError, match="does not open with this content key"):
        fetch_table(release.manifest, ck=bytes(32), objects=HttpObjects(server.base), store=store)


# Somebody with the content key ---------------------------------------------------------------------------------------


def sealed(table: Table, release: Release) -> tuple[Manifest, bytes]:
    """Seal a table without asking whether it keeps the rules, and the manifest that would name it."""
    plain, salt = table.to_plaintext(), bytes(32)
    manifest = release.manifest
    header = _HEADER.pack(b"ESTB", 1, manifest.suite, 0, len(plain), salt)
    key = table_key(release.ck, salt, manifest.model, manifest.release)
    data = header + aead_encrypt(manifest.suite, key, header, plain)
    made = dataclasses.replace(
        manifest,
        table_sha256=hashlib.sha256(data).digest(),
        table_length=len(data),
        plain_size=table.plain_size,
        stored_size=sum(table.chunks().values()),
    )
    return made, data


class Held:
    """Objects in memory."""

    def __init__(self, *objects: bytes) -> None:
        self.objects = {hashlib.sha256(data).digest(): data for data in objects}

    def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
        assert kind in {"chunks", "tables"}
        assert length
        yield self.objects[sha256][offset:]


@pytest.mark.parametrize("change", ["reorder", "drop", "double"])
def test_resealed_table_is_not_the_signed_one(release: Release, store: ObjectStore, change: str) -> None:
    """All chunks genuine, the key right, the order his own: the signed manifest pins the table's hash."""
    table = fetched_table(release)
    records = list(table.records)
    model = max(table.files, key=lambda f: f.n_records)
    i = model.first_record
    if change == "reorder":
        records[i], records[i + 1] = records[i + 1], records[i]
    elif change == "double":
        records[i + 1] = records[i]
    else:
        records[i + 1 : i + 2] = []
    entries = [dataclasses.replace(table, records=records).files[0]]
    _, data = sealed(Table(entries, None, records), release)
    name = release.manifest.table_sha256.hex()
    refused = pytest.raises((IntegrityError, TemporaryError))
    with serving({**release.files, f"tables/{name[:2]}/{name}": data}) as server, refused:
        fetch_table(release.manifest, ck=release.ck, objects=HttpObjects(server.base), store=store)
    assert not [p for p in regular(store.directory) if p.suffix != ".part"]


def one_file(path: str, piece: bytes = b"payload") -> tuple[Table, bytes]:
    record, chunk = encode_piece(piece, fs=FS, suite=1)
    entry = FileEntry(path, len(piece), 0o644, hashlib.sha256(piece).digest(), 0, 1)
    return Table([entry], None, [record]), chunk


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "..",
        ".",
        "",
        "a//b",
        "./a",
        "a/",
        "a/./b",
        "a\\..\\evil",
        "a\0b",
        "a\nb",
        "x" * 256,
        "/".join(["d"] * 40),
    ],
)
def test_path_that_leaves_the_directory(release: Release, store: ObjectStore, out: Path, path: str) -> None:
    """Even a signed table cannot name it."""
    table, chunk = one_file(path)
    manifest, data = sealed(table, release)
    with pytest.raises(RefusedError):
        fetch_table(manifest, ck=release.ck, objects=Held(data, chunk), store=store)
    assert not regular(out)
    assert not (out.parent / "evil").exists()


def test_path_that_is_harmless_passes(release: Release, store: ObjectStore, out: Path) -> None:
    """The control for the test above: sealed and served the same way."""
    table, chunk = one_file("a/b/model.bin")
    manifest, data = sealed(table, release)
    objects = Held(data, chunk)
    found = fetch_table(manifest, ck=release.ck, objects=objects, store=store)
    fetch_chunks(found, missing(found, store), objects=objects, store=store, workers=1, progress=lambda _: None)
    unpack(found, suite=1, store=store, directory=out, workers=1, progress=lambda _: None)
    assert (out / "a/b/model.bin").read_bytes() == b"payload"


def test_link_planted_where_a_file_will_be(store: ObjectStore, out: Path, tmp_path: Path) -> None:
    """O_EXCL and O_NOFOLLOW: what lies outside is not written through it."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    table, chunk = one_file("model.bin")
    store.put("chunks", hashlib.sha256(chunk).digest(), chunk)
    (out / "model.bin").symlink_to(victim)
    with pytest.raises(OSError, match="exists"):
        unpack(table, suite=1, store=store, directory=out, workers=1, progress=lambda _: None)
    assert victim.read_bytes() == b"precious"


def hostile_chunk(frame: bytes, *, length: int, codec: int, piece: bytes) -> tuple[Record, bytes]:
    """Seal a frame under a key of the attacker's own."""
    key = hashlib.sha256(frame).digest()
    stored = aead_encrypt(1, key, None, frame)
    plain = hashlib.sha256(piece).digest()
    return Record(hashlib.sha256(stored).digest(), key, plain, length, len(stored), codec, 1), stored


def bombs() -> Iterator[tuple[str, bytes]]:
    """Frames of a few KB that would become a gigabyte, each in its own way."""
    chunk = bytes(2**20)

    def stream(size: int) -> bytes:
        compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size)
        return b"".join([*(compressor.compress(chunk) for _ in range(64)), compressor.flush()])

    whole = stream(64 * 2**20)
    yield "declares what it is", whole
    yield "declares nothing", stream(-1)
    one = zstandard.ZstdCompressor(level=1).compress(chunk)
    yield "many frames", one * 64
    yield "one good frame, then a bomb", one + whole
    yield "skippable frame first", b"\x50\x2a\x4d\x18\x04\0\0\0junk" + one
    # A frame header that declares 1 MiB before 64 MiB of blocks: single segment, 4-byte size.
    magic_and_flags = whole[:4] + bytes([0b10100000]) + (2**20).to_bytes(4, "little")
    blocks = whole[zstandard.frame_header_size(whole) :]
    yield "declares less", magic_and_flags + blocks
    yield "declares a window of 2 GiB", whole[:4] + bytes([0, 0xA8]) + blocks


@pytest.mark.parametrize(
    ("kind", "frame"), list(bombs()), ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else ""
)
def test_decompression_bomb(store: ObjectStore, out: Path, kind: str, frame: bytes) -> None:
    """Refused without the memory it asks for: the limit is what the signed table says."""
    piece = bytes(2**20)
    record, chunk = hostile_chunk(frame, length=len(piece), codec=CODEC_ZSTD, piece=piece)
    store.put("chunks", record.stored_sha256, chunk)
    table = Table([FileEntry("m", len(piece), 0o644, bytes(32), 0, 1)], None, [record])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RefusedError):
        unpack(table, suite=1, store=store, directory=out, workers=1, progress=lambda _: None)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 32, f"{kind}: {grown:.0f} MB"
    assert not regular(out)


def test_frame_that_is_no_bomb_passes(store: ObjectStore, out: Path) -> None:
    """The control: the same way, a frame of one honest piece."""
    piece = bytes(2**20)
    frame = zstandard.ZstdCompressor(level=1).compress(piece)
    record, chunk = hostile_chunk(frame, length=len(piece), codec=CODEC_ZSTD, piece=piece)
    store.put("chunks", record.stored_sha256, chunk)
    table = Table([FileEntry("m", len(piece), 0o644, bytes(32), 0, 1)], None, [record])
    unpack(table, suite=1, store=store, directory=out, workers=1, progress=lambda _: None)
    assert (out / "m").read_bytes() == piece


def test_right_key_wrong_piece(store: ObjectStore, out: Path) -> None:
    record, chunk = hostile_chunk(b"another", length=7, codec=CODEC_RAW, piece=b"payload")
    store.put("chunks", record.stored_sha256, chunk)
    table = Table([FileEntry("m", 7, 0o644, bytes(32), 0, 1)], None, [record])
    with pytest.raises(IntegrityError):
        unpack(table, suite=1, store=store, directory=out, workers=1, progress=lambda _: None)
    assert not regular(out)


# No plaintext left ---------------------------------------------------------------------------------------------------


def with_canary(store: ObjectStore) -> Table:
    """A file of eight pieces, each with a canary, the last one damaged on the card."""
    records = []
    pieces = [CANARY + random.Random(i).randbytes(500_000) for i in range(8)]
    for piece in pieces:
        record, chunk = encode_piece(piece, fs=FS, suite=1)
        store.put("chunks", record.stored_sha256, chunk)
        records.append(record)
    size = sum(map(len, pieces))
    digest = hashlib.sha256(b"".join(pieces)).digest()
    return Table([FileEntry("deep/er/model.bin", size, 0o644, digest, 0, 8)], None, records)


def leaks(directory: Path) -> list[Path]:
    return [p for p in regular(directory) if CANARY[:32] in p.read_bytes()]


def test_failure_leaves_no_plaintext(store: ObjectStore, out: Path, tmp_path: Path) -> None:
    table = with_canary(store)
    last = store.path("chunks", table.records[-1].stored_sha256)
    good = last.read_bytes()
    last.write_bytes(bytes(len(good)))
    written: list[int] = []
    with pytest.raises(IntegrityError):
        unpack(table, suite=1, store=store, directory=out, workers=2, progress=written.append)
    assert sum(written) > 2**20, "it failed late, after plaintext had been written"
    assert not list(out.iterdir())
    assert not leaks(tmp_path)
    last.write_bytes(good)
    unpack(table, suite=1, store=store, directory=out, workers=2, progress=lambda _: None)
    assert leaks(tmp_path) == [out / "deep/er/model.bin"], "the control: the scan sees a canary"


def test_interrupt_leaves_no_plaintext_and_no_writer(store: ObjectStore, out: Path, tmp_path: Path) -> None:
    """Ctrl-C while the other thread writes: it has stopped before the file is closed and removed."""
    table = with_canary(store)
    seen = 0

    def progress(n: int) -> None:
        nonlocal seen
        seen += n
        if seen > 2**20:
            signal.raise_signal(signal.SIGINT)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        unpack(table, suite=1, store=store, directory=out, workers=2, progress=progress)
    assert threading.active_count() == before
    assert not list(out.iterdir())
    assert not leaks(tmp_path)


def test_interrupt_while_waiting_for_the_other_thread() -> None:
    """The main thread is done and waits: a thread that goes on would write to a closed file, or to its successor."""
    running, other = threading.Event(), threading.Event()
    done: list[str] = []

    def work(item: int, _: int) -> None:
        if threading.current_thread() is threading.main_thread():
            running.wait(20)
            return
        running.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        other.wait(0.3)
        done.append(f"item {item} to its end")

    with pytest.raises(KeyboardInterrupt):
        _in_threads([0, 1], iter(range(2)), work)
    assert len(done) == 1


# No room -------------------------------------------------------------------------------------------------------------


def test_memory_is_full_in_the_middle(store: ObjectStore, out: Path) -> None:
    """A file system that refuses from some size on, here by the process's own limit."""
    table = with_canary(store)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(NoSpaceError, match=r"no room for the 4\.3 MiB of deep/er/model\.bin"):
            unpack(table, suite=1, store=store, directory=out, workers=2, progress=lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(out.iterdir())


def test_residual_is_refused_with_a_reason(store: ObjectStore, out: Path) -> None:
    record, chunk = encode_piece(b"payload" * 10, fs=FS, suite=1)
    store.put("chunks", record.stored_sha256, chunk)
    table = Table([FileEntry("m", 70, 0o644, bytes(32), 0, 1)], None, [dataclasses.replace(record, codec=3)])
    with pytest.raises((IncompatibleError, FormatError)):
        unpack(table, suite=1, store=store, directory=out, workers=1, progress=lambda _: None)
    assert not list(out.iterdir())

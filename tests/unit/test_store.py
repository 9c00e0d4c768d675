"""The store of encrypted objects: whole or absent, whatever the disk does."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal import store as store_module
from edgeseal.errors import IntegrityError, NoSpaceError, TemporaryError
from edgeseal.install import _fetch_object
from edgeseal.store import ObjectStore, object_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.store import Kind

DATA = random.Random(3).randbytes(5000)
NAME = hashlib.sha256(DATA).digest()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "state" / "objects")


def files(store: ObjectStore) -> list[str]:
    return sorted(str(p.relative_to(store.directory)) for p in store.directory.rglob("*") if p.is_file())


def test_object_lies_where_a_server_serves_it(store: ObjectStore) -> None:
    store.put("chunks", NAME, DATA)
    assert files(store) == [object_name("chunks", NAME)] == [f"chunks/{NAME.hex()[:2]}/{NAME.hex()}"]
    assert store.path("chunks", NAME).stat().st_mode & 0o777 == 0o600
    assert store.read("chunks", NAME, limit=len(DATA)) == DATA


def test_nothing_is_made_before_something_is_stored(store: ObjectStore) -> None:
    assert not store.has("chunks", NAME, len(DATA))
    assert (store.usage(), store.collect([]), store.free() > 0) == (0, 0, True)
    store.sweep()
    store.flush()
    assert not store.directory.exists()


def test_kinds_do_not_mix(store: ObjectStore) -> None:
    store.put("chunks", NAME, DATA)
    assert store.has("chunks", NAME, len(DATA))
    assert not store.has("tables", NAME, len(DATA))


@pytest.mark.parametrize("length", [0, len(DATA) - 1, len(DATA) + 1])
def test_object_of_another_length_is_not_had(store: ObjectStore, length: int) -> None:
    store.put("chunks", NAME, DATA)
    assert not store.has("chunks", NAME, length)


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"\0", bytes(len(DATA))])
def test_other_bytes_than_the_name_says(store: ObjectStore, data: bytes) -> None:
    with pytest.raises(IntegrityError, match=NAME.hex()):
        store.put("chunks", NAME, data)
    assert not store.directory.exists() or not files(store)


def test_wrong_bytes_leave_the_right_ones(store: ObjectStore) -> None:
    store.put("chunks", NAME, DATA)
    with pytest.raises(IntegrityError):
        store.put("chunks", NAME, DATA[1:])
    assert store.read("chunks", NAME, limit=len(DATA)) == DATA


def test_missing_object(store: ObjectStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("chunks", NAME, limit=10)
    with pytest.raises(FileNotFoundError):
        store.read_into("chunks", NAME, memoryview(bytearray(10)))
    store.discard("chunks", NAME)
    store.drop_partial("chunks", NAME)


@pytest.mark.parametrize("room", [0, 1, len(DATA) - 1, len(DATA), len(DATA) + 1])
def test_reading_stays_inside_the_buffer(store: ObjectStore, room: int) -> None:
    store.put("chunks", NAME, DATA)
    buffer = bytearray(room + 7)
    got = store.read_into("chunks", NAME, memoryview(buffer)[:room])
    assert got == min(room, len(DATA))
    assert buffer == DATA[:got] + bytes(room + 7 - got)


def test_reading_is_bounded(store: ObjectStore) -> None:
    """One byte more than allowed shows that there is more; never the whole of a huge file."""
    store.put("tables", NAME, DATA)
    assert store.read("tables", NAME, limit=100) == DATA[:101]


# Interrupted ---------------------------------------------------------------------------------------------------------


def test_part_goes_when_the_object_is_whole(store: ObjectStore) -> None:
    store.keep_partial("chunks", NAME, bytearray(DATA[:100]))
    assert store.partial("chunks", NAME, length=len(DATA)) == DATA[:100]
    assert not store.has("chunks", NAME, 100)
    store.put("chunks", NAME, DATA)
    assert files(store) == [object_name("chunks", NAME)]


@pytest.mark.parametrize("length", [0, 99, 100])
def test_part_that_is_longer_than_the_object_is_not_used(store: ObjectStore, length: int) -> None:
    store.keep_partial("chunks", NAME, bytearray(100))
    assert not store.partial("chunks", NAME, length=length)


def test_killed_while_storing(store: ObjectStore) -> None:
    """SIGKILL before the rename: no object, and the next start clears the leftovers away."""
    script = (
        "import os, sys, pathlib\n"
        "from edgeseal.store import ObjectStore\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "ObjectStore(pathlib.Path(sys.argv[1])).put('chunks', bytes.fromhex(sys.argv[2]), sys.stdin.buffer.read())\n"
    )
    command = [sys.executable, "-c", script, str(store.directory), NAME.hex()]
    assert subprocess.run(command, input=DATA, check=False).returncode == -9
    assert not store.has("chunks", NAME, len(DATA))
    assert len(files(store)) == 1, "the control: there was something to clear away"
    store.sweep()
    assert not files(store)


def test_same_object_from_many_threads(store: ObjectStore) -> None:
    errors: list[BaseException] = []

    def put() -> None:
        try:
            for _ in range(10):
                store.put("chunks", NAME, DATA)
                assert store.read("chunks", NAME, limit=len(DATA)) == DATA
        except BaseException as e:
            errors.append(e)
            raise

    threads = [threading.Thread(target=put) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert files(store) == [object_name("chunks", NAME)]


def test_content_is_flushed_before_the_name_and_names_by_flush(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order on the disk; what a power cut makes of it is tried in tests/sim."""
    events: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        events.append(f"flush {os.path.relpath(path, store.directory.parent)} {store.path('chunks', NAME).exists()}")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store.put("chunks", NAME, DATA)
    assert len(events) == 1
    assert ".tmp-" in events[0]
    assert events[0].endswith("False")
    store.flush()
    below = f"objects/chunks/{NAME.hex()[:2]}"
    assert {e.split()[1] for e in events[1:]} == {".", "objects", "objects/chunks", below}
    events.clear()
    store.flush()
    assert not events, "nothing new, nothing to flush"


# Housekeeping --------------------------------------------------------------------------------------------------------


def test_collect_leaves_what_is_kept_and_what_is_not_ours(store: ObjectStore) -> None:
    other = hashlib.sha256(b"other").digest()
    store.put("chunks", NAME, DATA)
    store.put("tables", NAME, DATA)
    store.put("chunks", other, b"other")
    store.keep_partial("chunks", bytes(32), bytearray(10))
    stranger = store.directory / "chunks" / "notes.txt"
    stranger.write_text("not ours")
    assert store.usage() == 2 * len(DATA) + 5 + 10
    wanted: list[tuple[Kind, bytes]] = [("chunks", NAME), ("tables", other)]
    assert store.collect(wanted) == len(DATA) + 5 + 10
    assert files(store) == sorted([object_name("chunks", NAME), "chunks/notes.txt"])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["chunks", "tables"]), st.binary(min_size=1, max_size=40)), max_size=8),
    st.data(),
)
def test_collect_is_exact(
    tmp_path_factory: pytest.TempPathFactory, put: list[tuple[Kind, bytes]], d: st.DataObject
) -> None:
    store = ObjectStore(tmp_path_factory.mktemp("collect"))
    names = {(kind, hashlib.sha256(data).digest()): len(data) for kind, data in put}
    for kind, data in put:
        store.put(kind, hashlib.sha256(data).digest(), data)
    keep = d.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    assert store.collect(keep) == sum(length for name, length in names.items() if name not in keep)
    assert {name for name, length in names.items() if store.has(*name, length)} == keep


# A disk that fails ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if mount is None or os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a tmpfs; test_file_size_limit covers the rest")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_disk_is_full(small: Path) -> None:
    """A clear error, what was stored stays, nothing half-written stays, and there is room again after clearing."""
    store = ObjectStore(small / "objects")
    store.put("chunks", NAME, DATA)
    large = random.Random(4).randbytes(400_000)
    name = hashlib.sha256(large).digest()
    with pytest.raises(NoSpaceError, match=f"no room on disk for chunk {name.hex()} of 400,000 bytes"):
        store.put("chunks", name, large)
    assert files(store) == [object_name("chunks", NAME)]
    assert store.read("chunks", NAME, limit=len(DATA)) == DATA
    fits = large[:150_000]
    store.put("chunks", hashlib.sha256(fits).digest(), fits)


class BreaksOff:
    """A source whose every connection breaks after the same number of bytes."""

    def __init__(self, data: bytes, after: int) -> None:
        self.data, self.after, self.asked = data, after, 0

    def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
        assert (kind, len(sha256), length) == ("chunks", 32, len(self.data))
        self.asked += 1
        yield self.data[offset : offset + self.after]
        raise TemporaryError("broken off")


def test_no_room_for_a_part_does_not_hide_why_it_broke_off(small: Path) -> None:
    store = ObjectStore(small / "objects")
    data = random.Random(5).randbytes(2**20)
    source = BreaksOff(data, 400_000)
    with pytest.raises(TemporaryError, match="broken off"):
        _fetch_object("chunks", hashlib.sha256(data).digest(), len(data), source, store)
    assert not files(store)


def test_full_disk_ends_it_at_once(small: Path) -> None:
    """Fetching the same object again would fill the same disk again."""
    store = ObjectStore(small / "objects")
    data = random.Random(6).randbytes(400_000)
    asked = 0

    class Source:
        def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
            nonlocal asked
            asked += 1
            assert (kind, sha256, length) == ("chunks", hashlib.sha256(data).digest(), len(data))
            yield data[offset:]

    with pytest.raises(NoSpaceError):
        _fetch_object("chunks", hashlib.sha256(data).digest(), len(data), Source(), store)
    assert asked == 1
    assert not files(store)


def test_file_size_limit(store: ObjectStore) -> None:
    """The same without root: the kernel refuses the write in the middle of the file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(NoSpaceError, match="no room on disk"):
            store.put("chunks", NAME, DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not files(store)


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
def test_bad_sector_is_a_damaged_object(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No disk here fails on demand; tests/sim does it with the real calls."""

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    store.put("chunks", NAME, DATA)
    monkeypatch.setattr(store_module.os, "readv", fails)  # type: ignore[attr-defined]
    with pytest.raises(IntegrityError, match=f"chunk {NAME.hex()} cannot be read"):
        store.read_into("chunks", NAME, memoryview(bytearray(100)))


def test_trouble_of_another_kind_is_not_called_damage(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process without file descriptors would throw good chunks away."""

    def fails(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    store.put("chunks", NAME, DATA)
    monkeypatch.setattr(store_module.os, "readv", fails)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="Too many open files"):
        store.read_into("chunks", NAME, memoryview(bytearray(100)))

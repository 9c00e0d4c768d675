"""Installing a release: the table, the chunks that are missing, the files.

    fetch_table   the sealed table, opened with the content key
    missing       which chunks are not on this disk yet
    preflight     is there room for all of it? asked before the first byte
    fetch_chunks  what is missing, with resume, stored durably while still encrypted
    unpack        decrypt and check piece by piece, into a directory in memory

Nothing decrypted touches a disk here; whatever fails, no plaintext and no temporary file is left (docs/spec/bundle.md).

Not here: whether the release may be installed (edgeseal.trust), and what happens to the files (edgeseal.runtime).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from edgeseal.chunks import ChunkDecoder
from edgeseal.durable import fsync_directory
from edgeseal.errors import EdgesealError, IntegrityError, NoSpaceError, TemporaryError
from edgeseal.manifest import CHUNK_MAX
from edgeseal.suite import TAG_LENGTH
from edgeseal.table import Record, Table, open_pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgeseal.manifest import Manifest
    from edgeseal.store import Kind, ObjectStore

S = TypeVar("S")
T = TypeVar("T")

DISK_RESERVE: Final = 16 * 2**20  # metadata, logs and the next refresh need room too
_FLUSH_EVERY: Final = 0.05  # seconds; a disk that needs longer is never idle
TRIES: Final = 3  # of one object within one pass; the next pass goes on where this one ended


class Objects(Protocol):
    """Where tables and chunks come from; safe to use from several threads."""

    def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of an object of `length` bytes from `offset` on.

        Raises TemporaryError.
        """


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did, in bytes and chunks. `reused` are chunks of the release that were there already."""

    bytes_fetched: int
    bytes_reused: int
    chunks_fetched: int


def fetch_table(manifest: Manifest, *, ck: bytes, objects: Objects, store: ObjectStore) -> Table:
    """Return the opened table of a release, from the store or else fetched into it.

    Raises IntegrityError or FormatError (wrong key, wrong table), TemporaryError.
    """
    name, length = manifest.table_sha256, manifest.table_length
    if store.has("tables", name, length):
        try:
            return stored_table(manifest, ck=ck, store=store)
        except IntegrityError:
            store.discard("tables", name)  # a damaged card; a wrong key fails again below
    _fetch_object("tables", name, length, objects, store)
    store.flush()
    return stored_table(manifest, ck=ck, store=store)


def stored_table(manifest: Manifest, *, ck: bytes, store: ObjectStore) -> Table:
    """Return the opened table of a release that is on this disk; no network.

    Raises TemporaryError if it is not there, IntegrityError, FormatError.
    """
    try:
        data = store.read("tables", manifest.table_sha256, limit=manifest.table_length)
    except FileNotFoundError:
        raise TemporaryError(
            f"the table of {manifest.model} release {manifest.release} is not on this device",
            hint="edgeseal-agent update fetches it",
        ) from None
    return open_pinned(data, manifest, ck=ck)


def missing(table: Table, store: ObjectStore) -> dict[bytes, int]:
    """Name and stored length of every chunk of the release that is not on this disk, each once."""
    return {name: length for name, length in table.chunks().items() if not store.has("chunks", name, length)}


def preflight(table: Table, wanted: Mapping[bytes, int], *, store: ObjectStore, memory_free: int) -> None:
    """Raise NoSpaceError unless disk and memory have room for the release, before anything is fetched."""
    need, have = sum(wanted.values()), store.free() - DISK_RESERVE
    if wanted and need > have:
        raise NoSpaceError(
            f"the release needs {_size(need)} more on disk, {_size(max(0, have))} are free",
            hint=f"free {_size(need - have)} below {store.directory}; what is installed keeps running",
        )
    if table.plain_size > memory_free:
        raise NoSpaceError(
            f"the release needs {_size(table.plain_size)} of memory, {_size(memory_free)} are free",
            hint="a smaller model, a larger board, or paths.models on an encrypted disk with runtime.allow_disk",
        )


def fetch_chunks(
    table: Table,
    wanted: Mapping[bytes, int],
    *,
    objects: Objects,
    store: ObjectStore,
    workers: int,
    progress: Callable[[int], None],
) -> Fetched:
    """Fetch `wanted` (see `missing`) into the store; `progress` is told bytes as they come.

    Raises TemporaryError or IntegrityError of the first object that failed; what has come stays for the next pass.
    """
    total = sum(table.chunks().values())
    names = iter(sorted(wanted.items()))
    counted = _Counter(progress)
    try:
        _in_threads(range(workers), names, lambda item, _: _fetch_object("chunks", *item, objects, store, counted))
    finally:
        store.flush()
    return Fetched(counted.total, total - sum(wanted.values()), len(wanted))


def unpack(
    table: Table,
    *,
    suite: int,
    store: ObjectStore,
    directory: Path,
    workers: int,
    progress: Callable[[int], None],
    durable: bool = False,
) -> None:
    """Decrypt all files of a release into the empty `directory`; nothing of it is left there after a failure.

    `durable`: flush, where `directory` is on a disk. `progress` is told plaintext bytes. Raises IntegrityError for a
    damaged chunk (it is removed, the next pass fetches it), NoSpaceError, TemporaryError for a missing one.
    """
    counted = _Counter(progress)
    spaces = [_Workspace(suite) for _ in range(workers)]

    def one(item: tuple[Record, int], space: _Workspace) -> None:
        _unpack_piece(*item, fd, space, store, counted)

    try:
        for entry in table.files:
            path = directory / entry.path
            fd = _create(path, entry.mode)
            try:
                _allocate(fd, entry.size, entry.path)
                # Each piece's hash is checked, and pieces add up to the file in the order of the sealed table: the
                # file's own SHA-256 would read everything a second time and say nothing new.
                with _flushing(fd) if durable else contextlib.nullcontext():
                    _in_threads(spaces[: entry.n_records], _places(table.pieces(entry)), one)
            finally:
                os.close(fd)
        if durable:
            for path in (directory, *(p for p in directory.rglob("*") if p.is_dir())):
                fsync_directory(path)
    except BaseException:
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


# One object ----------------------------------------------------------------------------------------------------------


def _fetch_object(
    kind: Kind, name: bytes, length: int, objects: Objects, store: ObjectStore, counted: _Counter | None = None
) -> None:
    """Fetch one object, going on after a broken connection, and store it if it is the right one."""
    for attempt in range(1, TRIES + 1):
        data = store.partial(kind, name, length=length)
        resumed = bool(data)
        try:
            _receive(kind, name, length, objects, data, counted)
            store.put(kind, name, data)
        except NoSpaceError:
            raise  # trying again would fill the disk again
        except TemporaryError:
            if data:
                store.keep_partial(kind, name, data)
            if attempt == TRIES:
                raise
        except IntegrityError as e:
            store.drop_partial(kind, name)
            if not resumed:  # else perhaps only what was kept is damaged
                raise IntegrityError(
                    e.message, hint="the server, somebody on the way or a cache changes data; nothing of it was kept"
                ) from e
        else:
            return
    raise IntegrityError(f"{kind[:-1]} {name.hex()} came damaged {TRIES} times", hint="check the server and the card")


def _receive(kind: Kind, name: bytes, length: int, objects: Objects, data: bytearray, counted: _Counter | None) -> None:
    """Append to `data` until it has `length` bytes."""
    offset = len(data)
    pieces = objects.fetch(kind, name, offset=offset, length=length)
    for piece in pieces:
        data += piece
        if counted:
            counted.add(len(piece))
        if len(data) > length:
            raise IntegrityError(f"{kind[:-1]} {name.hex()} is longer than its {length} bytes")
    if len(data) != length:
        raise TemporaryError(f"{kind[:-1]} {name.hex()} ended after {len(data)} of {length} bytes")


# One piece -----------------------------------------------------------------------------------------------------------


def _places(records: Iterator[Record]) -> Iterator[tuple[Record, int]]:
    """Yield each record with the offset of its piece in the file."""
    offset = 0
    for record in records:
        yield record, offset
        offset += record.plain_length


def _unpack_piece(
    record: Record, offset: int, fd: int, work: _Workspace, store: ObjectStore, counted: _Counter
) -> None:
    """Decrypt one piece and write it to its place. Buffers and decoder belong to the thread."""
    name = record.stored_sha256
    try:
        got = store.read_into("chunks", name, work.stored[: record.stored_length + 1])
        length = work.decoder.decode_into(record, work.stored[:got], work.plain)
    except FileNotFoundError:
        raise TemporaryError(
            f"chunk {name.hex()} is not on this device", hint="edgeseal-agent update fetches it"
        ) from None
    except IntegrityError as e:
        store.discard("chunks", name)
        raise IntegrityError(
            e.message, hint="the card is damaged; the chunk is fetched again at the next update"
        ) from e
    try:
        done = 0
        while done < length:
            done += os.pwrite(fd, work.plain[done:length], offset + done)
    except OSError as e:
        raise NoSpaceError(f"a file of the release could not be written to memory: {e.strerror}") from e
    counted.add(length)


class _Workspace:
    """One thread's buffers: one chunk in, one piece out."""

    def __init__(self, suite: int) -> None:
        self.decoder = ChunkDecoder(suite)
        self.stored = memoryview(bytearray(CHUNK_MAX + TAG_LENGTH + 1))
        self.plain = memoryview(bytearray(CHUNK_MAX))


def _create(path: Path, mode: int) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o700)
    except OSError as e:
        if e.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(f"no room for another file, {path.name}: {e.strerror}") from e
        raise


@contextlib.contextmanager
def _flushing(fd: int) -> Iterator[None]:
    """Flush a file while it is being written, so that disk and cipher work at the same time; in the end all of it.

    Raises the thread's errors: the kernel reports a lost write once, the last flush would not repeat it.
    """
    over = threading.Event()
    errors: list[BaseException] = []

    def flush() -> None:
        try:
            while not over.wait(_FLUSH_EVERY):
                os.fdatasync(fd)
        except OSError as e:
            errors.append(e)

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        _join(thread, errors)
    os.fsync(fd)
    if errors:
        raise errors[0]


def _allocate(fd: int, size: int, path: str) -> None:
    """Take the room first: a full memory shows before anything was decrypted."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        raise NoSpaceError(f"no room for the {_size(size)} of {path}: {e.strerror}") from e


# Threads -------------------------------------------------------------------------------------------------------------


class _Counter:
    """Adds up bytes from several threads and passes them on."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.total = 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, n: int) -> None:
        with self._lock:
            self.total += n
            self._progress(n)


def _in_threads(spaces: Sequence[S], items: Iterator[T], work: Callable[[T, S], None]) -> None:
    """Run `work` on every item, one thread for each of `spaces`; raise the first error after all have stopped.

    Hashing, ciphers and file calls release the interpreter's lock. The generator is advanced under a lock of its own.
    """
    lock = threading.Lock()
    errors: list[BaseException] = []

    def loop(space: S) -> None:
        try:
            while not errors:
                with lock:
                    item = next(items, None)
                if item is None:
                    return
                work(item, space)
        except BaseException as e:  # noqa: BLE001 - raised again by the caller's thread
            errors.append(e)

    threads = [threading.Thread(target=loop, args=(space,), daemon=True) for space in spaces[1:]]
    try:
        for thread in threads:
            thread.start()
        loop(spaces[0])
    except BaseException as e:  # noqa: BLE001 - no thread could be started, or an interrupt
        errors.append(e)
    for thread in threads:
        _join(thread, errors)
    if errors:
        raise _first(errors)


def _join(thread: threading.Thread, errors: list[BaseException]) -> None:
    """Wait until the thread has stopped, through interrupts: the caller closes the file that it writes to."""
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as e:  # noqa: BLE001 - KeyboardInterrupt, or a signal handler's SystemExit
            errors.append(e)


def _first(errors: list[BaseException]) -> BaseException:
    """Prefer an error of ours over its echo in another thread."""
    return next((e for e in errors if isinstance(e, EdgesealError)), errors[0])


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n:,} bytes"

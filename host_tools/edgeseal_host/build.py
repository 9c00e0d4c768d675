"""Build a bundle: cut a model's files, encrypt the pieces, seal the table, write the manifest.

Chunks depend on the files, the family secret and the previous release only: building again gives the same ones, so an
interrupted build is resumed by running it again. The content key and the table's salt are random.

Not here: what a bundle directory looks like (edgeseal_host.bundle), where files are cut (edgeseal_host.cutting), and
publishing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edgeseal import cbor
from edgeseal.chunks import FAMILY_SECRET_LENGTH, check_stored, encode_piece
from edgeseal.contentkey import CK_LENGTH, commitment
from edgeseal.durable import fsync_directory, locked, sweep, write_atomic
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, IntegrityError, RollbackError, UsageError
from edgeseal.manifest import MAX_HINTS, MAX_RELEASE, Manifest
from edgeseal.names import check_model_name
from edgeseal.runtime import engine_settings, tflite_file
from edgeseal.suite import suite as known_suite
from edgeseal.table import FileEntry, Record, Table, seal_table
from edgeseal_host.bundle import (
    CONTENT_KEY,
    MANIFEST,
    BundleDirectory,
    bundle_content_key,
    fsync_file,
    open_content_key,
    read_bounded,
)
from edgeseal_host.cutting import Gear, cut, external_runs, tensors
from edgeseal_host.sources import Source, collect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from edgeseal_host.cutting import Run

__all__ = ["build_bundle", "bundle_content_key"]


WORKERS: Final = min(4, os.cpu_count() or 1)  # hashing, zstd and the AEAD release the interpreter's lock
_LOCK: Final = ".lock"
_MAX_KEY_FILE: Final = 4096


@dataclass(frozen=True, slots=True)
class Previous:
    """An earlier release of the same family: its records by piece, and its directory."""

    manifest: Manifest
    bundle: BundleDirectory
    records: Mapping[tuple[bytes, int], Record]

    @staticmethod
    def load(directory: Path, *, fs: bytes, model: str, release: int, suite: int) -> Previous:
        """Open an earlier bundle.

        Raises UsageError for another model, RollbackError if it is no earlier release.
        """
        bundle = BundleDirectory(directory)
        manifest = bundle.manifest()
        if manifest.model != model:
            raise UsageError(f"--previous is a bundle of {manifest.model!r}, this is {model!r}")
        if manifest.release >= release:
            raise RollbackError(
                f"release {release} does not follow release {manifest.release} of {model}",
                hint=f"give a release number above {manifest.release}",
            )
        records: dict[tuple[bytes, int], Record] = {}
        if manifest.suite == suite:
            table = bundle.table(manifest, bundle.content_key(manifest, fs))
            records = {(r.plain_sha256, r.width): r for r in table.records}
        return Previous(manifest, bundle, records)

    @property
    def hints(self) -> list[bytes]:
        """Table hashes to name in the next manifest, nearest release first."""
        return list(dict.fromkeys([self.manifest.table_sha256, *self.manifest.hints]))[:MAX_HINTS]

    def chunk(self, piece: bytes, width: int) -> tuple[Record, bytes] | None:
        """Return record and chunk of the same piece if this release has it whole.

        Encoding it again would give the same chunk, unless zstd has changed in between: then it keeps the old one.
        """
        record = self.records.get((hashlib.sha256(piece).digest(), width))
        if record is None:
            return None
        try:
            stored = read_bounded(self.bundle.object_path("chunks", record.stored_sha256), record.stored_length)
            check_stored(record, stored)
        except (OSError, EdgesealError):
            return None  # chunks that were cleared away or damaged cost a delta, never the build
        return record, stored


@dataclass(frozen=True, slots=True)
class _Extras:
    """What a bundle carries for others: edgeseal.runtime, the publisher, auditors."""

    requirements: dict[str, object]
    provenance: dict[str, object]
    tests: object

    def check(self) -> None:
        """Raise UsageError for a value that the format cannot carry, or that every device would refuse."""
        try:
            engine_settings.parse(self.requirements)
        except (FormatError, IncompatibleError) as e:
            raise UsageError(e.message, hint="see --threads, --prepacking, --spinning and --provider") from e
        for name in ("requirements", "provenance", "tests"):
            try:
                cbor.encode(getattr(self, name))
            except ValueError as e:
                raise UsageError(f"{name} cannot be written as deterministic CBOR: {e}") from e


@dataclass(slots=True)
class _Build:
    """One build under way."""

    bundle: BundleDirectory
    fs: bytes = field(repr=False)
    suite: int
    gear: Gear
    previous: Previous | None
    progress: Callable[[int], None]
    records: list[Record] = field(default_factory=list)
    written: set[Path] = field(default_factory=set)

    def add(self, source: Source, known: Sequence[Run], pool: ThreadPoolExecutor) -> FileEntry:
        """Cut, encode and store one file."""
        first, digest, size = len(self.records), hashlib.sha256(), 0
        pending: deque[Future[tuple[Record, Path]]] = deque()
        with mapped(source.path) as data:
            for piece in cut(data, self.gear, known=known):
                content = data[piece.offset : piece.offset + piece.length]
                pending.append(pool.submit(self._store, content, piece.width))
                digest.update(content)
                size += len(content)
                if len(pending) > 2 * WORKERS:
                    self._take(pending)
        while pending:
            self._take(pending)
        return FileEntry(source.name, size, source.mode, digest.digest(), first, len(self.records) - first)

    def _store(self, piece: bytes, width: int) -> tuple[Record, Path]:
        found = self.previous.chunk(piece, width) if self.previous else None
        record, stored = found or encode_piece(piece, fs=self.fs, suite=self.suite, width=width)
        return record, self.bundle.put("chunks", record.stored_sha256, stored)

    def _take(self, pending: deque[Future[tuple[Record, Path]]]) -> None:
        record, path = pending.popleft().result()
        self.records.append(record)
        self.written.add(path)
        self.progress(record.plain_length)

    def finish(self, manifest: Manifest, sealed: bytes) -> None:
        """Make everything durable, then write the manifest that says it is there."""
        data = manifest.to_bytes()
        self.written.add(self.bundle.put("tables", manifest.table_sha256, sealed))
        _drop_leftovers(self.bundle, self.written)
        self._flush()
        write_atomic(self.bundle.root / MANIFEST, data, mode=0o644)

    def _flush(self) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(fsync_file, self.written))
        for directory in {p.parent for p in self.written} | {p.parent.parent for p in self.written}:
            fsync_directory(directory)
        fsync_directory(self.bundle.root)


def build_bundle(  # noqa: PLR0913 - one keyword for each thing a release has; all but the first few optional
    paths: Iterable[Path],
    *,
    model: str,
    release: int,
    suite: int,
    family_secret: bytes,
    previous: Path | None = None,
    tests: object = None,
    requirements: Mapping[str, object] | None = None,
    provenance: Mapping[str, object] | None = None,
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Build release `release` of `model` from files and directories into the directory `out`.

    `previous` is an earlier bundle's directory; `progress` is told plaintext bytes as they are done. An interrupted
    build is resumed by the same call. Raises UsageError for inputs that cannot be built, before anything is written.
    """
    _check_arguments(model, release, suite, family_secret)
    sources = collect(paths)
    earlier = None
    if previous:
        earlier = Previous.load(previous, fs=family_secret, model=model, release=release, suite=suite)
    bundle = BundleDirectory(out)
    if bundle.has_manifest():
        raise UsageError(
            f"{out} already holds a complete bundle; a release never changes once it is built",
            hint="give another --out and the next release number",
        )
    extras = _Extras({"format": _format(sources), **(requirements or {})}, dict(provenance or {}), tests)
    extras.check()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / _LOCK):
        _sweep(bundle)
        ck = _content_key(bundle, family_secret, suite, model, release)
        work = _Build(bundle, family_secret, suite, Gear(family_secret), earlier, progress or _ignore)
        table = Table(tuple(_add_all(work, sources)), tests, work.records)
        sealed = seal_table(table, ck=ck, suite=suite, model=model, release=release, salt=secrets.token_bytes(32))
        manifest = Manifest(
            model=model,
            release=release,
            suite=suite,
            ck_commitment=commitment(ck, model, release),
            table_sha256=hashlib.sha256(sealed).digest(),
            table_length=len(sealed),
            plain_size=table.plain_size,
            stored_size=sum(table.chunks().values()),
            requirements=extras.requirements,
            hints=earlier.hints if earlier else [],
            provenance=extras.provenance,
        )
        work.finish(manifest, sealed)
    (out / _LOCK).unlink(missing_ok=True)
    return manifest


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file for reading: a model of any size costs address space, not memory."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _add_all(work: _Build, sources: Sequence[Source]) -> Iterator[FileEntry]:
    known = _external(sources)
    with ThreadPoolExecutor(WORKERS) as pool:
        for source in sources:
            yield work.add(source, known.get(source.name, ()), pool)


def _external(sources: Sequence[Source]) -> dict[str, Sequence[Run]]:
    """Return the tensors that ONNX models of this build say lie in other files of it."""
    known: dict[str, Sequence[Run]] = {}
    for source in sources:
        if source.path.suffix == ".onnx":
            folder = source.name.rpartition("/")[0]
            with mapped(source.path) as data:
                runs = external_runs(data)
            known |= {f"{folder}/{location}" if folder else location: found for location, found in runs.items()}
    return known


def _format(sources: Sequence[Source]) -> str:
    """Return what the first file with tensors is; "unknown" if none has any."""
    for source in sources:
        with mapped(source.path) as data:
            if data[4:8] == tflite_file.IDENTIFIER:
                return "tflite"
            name, _ = tensors(data)
        if name != "unknown":
            return name
    return "unknown"


def _content_key(bundle: BundleDirectory, fs: bytes, suite: int, model: str, release: int) -> bytes:
    """Return the key of an interrupted build of the same release, else a fresh one."""
    try:
        sealed = read_bounded(bundle.root / CONTENT_KEY, _MAX_KEY_FILE)
    except FileNotFoundError:
        ck = secrets.token_bytes(CK_LENGTH)
        bundle.write_content_key(ck, fs=fs, suite=suite, model=model, release=release)
        return ck
    try:
        return open_content_key(sealed, fs=fs, model=model, release=release)
    except IntegrityError:
        raise UsageError(
            f"{bundle.root} holds an interrupted build of another release or family",
            hint="remove that directory or give another --out",
        ) from None


def _sweep(bundle: BundleDirectory) -> None:
    sweep(bundle.root)
    for kind in ("tables", "chunks"):
        for directory in (bundle.root / kind).glob("*"):
            sweep(directory)


def _drop_leftovers(bundle: BundleDirectory, wanted: set[Path]) -> None:
    """Remove objects of an interrupted build whose input has changed since."""
    for path in (*bundle.objects("tables"), *bundle.objects("chunks")):
        if path not in wanted:
            path.unlink()


def _check_arguments(model: str, release: int, suite: int, family_secret: bytes) -> None:
    check_model_name(model)
    known_suite(suite)
    if not 1 <= release <= MAX_RELEASE:
        raise UsageError(f"release {release} is not between 1 and 2^63 - 1")
    if len(family_secret) != FAMILY_SECRET_LENGTH:
        raise UsageError(f"a family secret has {FAMILY_SECRET_LENGTH} bytes, this one has {len(family_secret)}")


def _ignore(_done: int) -> None:
    pass

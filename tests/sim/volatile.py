"""A file system that forgets: nothing is durable before fsync, and every crash state of one run is recorded.

    with mounted(tmp_path / "disk") as disk:
        run the code under test in another process, below disk.mountpoint
    for crash in disk.crashes: crash.write(directory); check that the directory can be recovered from

Strict on purpose: data of a file become durable by fsync of the file, names by fsync of their directory, as POSIX
promises and no more. Before each durable operation the states that a power cut could leave are kept:

    lost   only what was flushed                      kept   everything, as if the cache had just been written
    torn   all names, but only flushed data           half   all names, half of the data that was not flushed

Not here: disks that lie about a flush, except on request (`ignore`), which is the negative control of every test.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import mfusepy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Variant: TypeAlias = Literal["lost", "kept", "torn", "half"]
VARIANTS: Final[tuple[Variant, ...]] = ("lost", "kept", "torn", "half")
Tree: TypeAlias = "dict[str, Tree | bytes | str]"  # directory, file, symbolic link


@dataclass
class _File:
    mode: int
    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def state(self, variant: Variant) -> bytes:
        if variant == "kept" or self.live == self.durable:
            return bytes(self.live)
        return bytes(self.live[: len(self.live) // 2]) if variant == "half" else self.durable


@dataclass
class _Link:
    target: str
    mode: int = stat.S_IFLNK | 0o777


@dataclass
class _Directory:
    mode: int = stat.S_IFDIR | 0o700
    live: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)

    def state(self, variant: Variant) -> Tree:
        entries = self.durable if variant == "lost" else self.live
        return {name: _state(node, variant) for name, node in entries.items()}


_Node: TypeAlias = "_File | _Link | _Directory"


def _state(node: _Node, variant: Variant) -> Tree | bytes | str:
    return node.target if isinstance(node, _Link) else node.state(variant)


@dataclass(frozen=True)
class Crash:
    """One state that a power cut just before the durable operation number `point` could have left."""

    point: int
    before: str
    variant: Variant
    tree: Tree
    elsewhere: object

    def write(self, directory: Path) -> None:
        """Lay the state out below an empty directory."""
        _write(self.tree, directory)

    def __str__(self) -> str:
        return f"power cut {self.point}, before {self.before}, {self.variant}"


def _write(tree: Tree, directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, node in tree.items():
        if isinstance(node, dict):
            _write(node, directory / name)
        elif isinstance(node, str):
            (directory / name).symlink_to(node)
        else:
            (directory / name).write_bytes(node)
            (directory / name).chmod(0o600)


class Disk(mfusepy.Operations):  # type: ignore[misc]
    """The file system; `crashes` grows while it is used."""

    use_ns = True

    def __init__(self, mountpoint: Path, ignore: Callable[[str], bool], elsewhere: Callable[[], object]) -> None:
        """`ignore(path)`: whether a flush of that path is promised and not done. `elsewhere` is asked at each cut."""
        self.mountpoint = mountpoint
        self.crashes: list[Crash] = []
        self.recording = False
        self._ignore = ignore
        self._elsewhere = elsewhere
        self._root = _Directory()
        self._points = 0
        self._open: dict[int, _File] = {}
        self._next = 1
        self._lock = threading.RLock()

    # Recording -----------------------------------------------------------------------------------------------------

    def load(self, directory: Path) -> None:
        """Copy a real directory in, as durable."""
        self._root = _loaded(directory)

    def record(self) -> None:
        """Start to keep crash states."""
        self.recording = True

    def finish(self) -> None:
        """Keep the states of a cut after everything, and stop."""
        self._cut("the end")
        self.recording = False

    def _cut(self, before: str) -> None:
        if self.recording:
            self._points += 1
            other = self._elsewhere()
            self.crashes += [Crash(self._points, before, v, self._root.state(v), other) for v in VARIANTS]

    # Lookup --------------------------------------------------------------------------------------------------------

    def _node(self, path: str) -> _Node:
        node: _Node = self._root
        for part in path.split("/"):
            if not part:
                continue
            if not isinstance(node, _Directory):
                raise mfusepy.FuseOSError(errno.ENOTDIR)
            if part not in node.live:
                raise mfusepy.FuseOSError(errno.ENOENT)
            node = node.live[part]
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._node(path)
        if not isinstance(node, _Directory):
            raise mfusepy.FuseOSError(errno.ENOTDIR)
        return node

    def _file(self, path: str, handle: int | None = None) -> _File:
        if handle in self._open:
            return self._open[handle]
        node = self._node(path)
        if not isinstance(node, _File):
            raise mfusepy.FuseOSError(errno.EISDIR)
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        directory, _, name = path.rpartition("/")
        return self._directory(directory), name

    def _add(self, path: str, node: _Node) -> None:
        directory, name = self._parent(path)
        if name in directory.live:
            raise mfusepy.FuseOSError(errno.EEXIST)
        directory.live[name] = node

    # File system operations, as libfuse calls them -----------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self._lock:
            node = self._open.get(fh or 0) or self._node(path)
            size = len(node.live) if isinstance(node, _File) else 0
            links = 2 if isinstance(node, _Directory) else 1
            return {"st_mode": node.mode, "st_size": size, "st_nlink": links, "st_uid": os.getuid()}

    def readdir(self, path: str, fh: int) -> list[str]:
        del fh
        with self._lock:
            return [".", "..", *self._directory(path).live]

    def readlink(self, path: str) -> str:
        with self._lock:
            node = self._node(path)
            if not isinstance(node, _Link):
                raise mfusepy.FuseOSError(errno.EINVAL)
            return node.target

    def statfs(self, path: str) -> dict[str, int]:
        del path
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 2**22, "f_bfree": 2**21, "f_bavail": 2**21}

    def create(self, path: str, mode: int, fi: object = None) -> int:
        del fi
        with self._lock:
            node = _File(stat.S_IFREG | mode & 0o777)
            self._add(path, node)
            return self._handle(node)

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            node = self._file(path)
            if flags & os.O_TRUNC:
                node.live.clear()
            return self._handle(node)

    def _handle(self, node: _File) -> int:
        self._next += 1
        self._open[self._next] = node
        return self._next

    def release(self, path: str, fh: int) -> int:
        del path
        with self._lock:
            self._open.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            return bytes(self._file(path, fh).live[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            live = self._file(path, fh).live
            live.extend(bytes(max(0, offset - len(live))))
            live[offset : offset + len(data)] = data
            return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self._lock:
            live = self._file(path, fh).live
            del live[length:]
            live.extend(bytes(length - len(live)))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        del datasync
        with self._lock:
            self._cut(f"fsync {path}")
            if not self._ignore(path):
                node = self._file(path, fh)
                node.durable = bytes(node.live)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        del datasync, fh
        with self._lock:
            self._cut(f"fsync of directory {path}")
            if not self._ignore(path + "/"):
                node = self._directory(path)
                node.durable = dict(node.live)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        with self._lock:
            self._add(path, _Directory(stat.S_IFDIR | mode & 0o777))
        return 0

    def symlink(self, target: str, source: str) -> int:
        with self._lock:
            self._add(target, _Link(source))
        return 0

    def unlink(self, path: str) -> int:
        with self._lock:
            directory, name = self._parent(path)
            self._node(path)
            del directory.live[name]
        return 0

    def rmdir(self, path: str) -> int:
        with self._lock:
            if self._directory(path).live:
                raise mfusepy.FuseOSError(errno.ENOTEMPTY)
            directory, name = self._parent(path)
            del directory.live[name]
        return 0

    def rename(self, old: str, new: str) -> int:
        with self._lock:
            node = self._node(old)
            source, name = self._parent(old)
            target, other = self._parent(new)
            there = target.live.get(other)
            if isinstance(there, _Directory) and there.live:
                raise mfusepy.FuseOSError(errno.ENOTEMPTY)
            del source.live[name]
            target.live[other] = node
        return 0

    def chmod(self, path: str, mode: int) -> int:
        with self._lock:
            node = self._node(path)
            node.mode = stat.S_IFMT(node.mode) | mode & 0o777
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        del uid, gid
        self._node(path)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        del times
        self._node(path)
        return 0


def _loaded(path: Path) -> _Directory:
    out = _Directory(stat.S_IFDIR | stat.S_IMODE(path.stat().st_mode))
    for entry in path.iterdir():
        if entry.is_symlink():
            out.live[entry.name] = _Link(str(entry.readlink()))
        elif entry.is_dir():
            out.live[entry.name] = _loaded(entry)
        elif entry.is_file():
            data = entry.read_bytes()
            out.live[entry.name] = _File(stat.S_IFREG | stat.S_IMODE(entry.stat().st_mode), bytearray(data), data)
    out.durable = dict(out.live)
    return out


@contextmanager
def mounted(
    mountpoint: Path,
    *,
    ignore: Callable[[str], bool] = lambda _: False,
    elsewhere: Callable[[], object] = lambda: None,
) -> Iterator[Disk]:
    """Mount an empty disk; code under test must run in another process, since this one answers for the kernel.

    What `elsewhere` returns at each cut is kept with the crash state: what the far end knew at that moment.
    """
    mountpoint.mkdir(parents=True)
    disk = Disk(mountpoint, ignore, elsewhere)
    options = {"foreground": True, "nothreads": True, "attr_timeout": 0, "entry_timeout": 0, "direct_io": True}
    thread = threading.Thread(target=mfusepy.FUSE, args=(disk, str(mountpoint)), kwargs=options, daemon=True)
    thread.start()
    _await(mountpoint.is_mount)
    try:
        yield disk
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=True, capture_output=True)
        thread.join(10)
        # libfuse leaves SIGPIPE at its default (fuse_remove_signal_handlers): the next test whose peer hangs up would
        # end the whole process without a word.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _await(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("the FUSE file system was not mounted within 10 s")
        time.sleep(0.01)

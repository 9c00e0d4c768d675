"""What a disk may hold after a power cut, computed from a trace of the system calls that changed it.

Every write is volatile until its file is flushed, every new, removed or renamed name until its directory is. After each
call of the trace there are three disks: everything unflushed lost, everything kept, and the last unflushed write of
each file torn in half. Files that were there before are on disk. Not here: memory maps (SQLite's -shm file, which it
rebuilds).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

STRACE: Final = (
    "-y",
    "-xx",
    "-s",
    "1000000",
    "-e",
    "trace=openat,pwrite64,write,ftruncate,fsync,fdatasync,unlink,rename",
)
VARIANTS: Final = ("lost", "kept", "torn")
_LINE: Final = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)(?:<(.*)>)?")
_FD: Final = re.compile(r"^(\d+)<([^>]*)>(?:, )?(.*)$")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class _File:
    live: bytearray
    flushed: bytes = b""
    named: bool = False  # whether its name is on disk
    torn: bytes | None = None

    def write(self, at: int, data: bytes) -> None:
        self.live.extend(bytes(max(0, at + len(data) - len(self.live))))
        self.torn = bytes(self.live[:at]) + data[: len(data) // 2] + bytes(self.live[at + len(data) // 2 :])
        self.live[at : at + len(data)] = data


@dataclass
class Disk:
    """A folder of files, and what was written to descriptor 1 so far."""

    folder: Path
    files: dict[str, _File] = field(default_factory=dict)
    removed: dict[str, bytes] = field(default_factory=dict)  # names that are on disk still
    said: bytes = b""
    sent: bytes = b""  # to a terminal, where that is a serial line

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """Take the files that lie there now."""
        found = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        return cls(folder, {name: _File(bytearray(data), data, named=True) for name, data in found.items()})

    def replay(self, trace: Path) -> Iterator[str]:
        """Follow the trace; yields the name of each call that changed something, after it."""
        for line in trace.read_text().splitlines():
            match = _LINE.match(line)
            if match and int(match[3]) >= 0 and self._apply(match[1], match[2]):
                yield match[1]

    def image(self, variant: str, place: Path) -> None:
        """Write the files as a power cut may leave them now."""
        place.mkdir()
        for name, data in self._files(variant):
            (place / name).write_bytes(data)

    def _files(self, variant: str) -> Iterator[tuple[str, bytes]]:
        if variant == "lost":
            yield from self.removed.items()
        for name, file in self.files.items():
            if variant == "kept" or (variant == "torn" and file.torn is None):
                yield name, bytes(file.live)
            elif variant == "torn":
                yield name, file.torn or b""
            elif file.named:
                yield name, file.flushed

    def _apply(self, call: str, rest: str) -> bool:
        if call in {"openat", "unlink", "rename"}:
            return self._name_changed(call, rest)
        match = _FD.match(rest)
        if match is None:
            return False
        if call == "write" and match[1] == "1":
            self.said += _data(match[3])
            return True
        path = _path(match[2])
        if call == "write" and path.startswith("/dev/pts/"):
            self.sent += _data(match[3])
            return True
        if call in {"fsync", "fdatasync"} and Path(path) == self.folder:
            self._directory_flushed()
            return True
        file = self.files.get(self._named(path))
        return file is not None and _changed(file, call, match[3])

    def _name_changed(self, call: str, rest: str) -> bool:
        names = [self._named(bytes.fromhex(text.replace("\\x", "")).decode()) for text in _TEXT.findall(rest)[:2]]
        if not names or not all(names):
            return False
        if call == "rename":
            return self._renamed(*names)
        return self._created(names[0], rest) if call == "openat" else self._unlinked(names[0])

    def _named(self, path: str) -> str:
        return Path(path).name if path and Path(path).parent == self.folder else ""

    def _created(self, name: str, rest: str) -> bool:
        if name in self.files and "O_TRUNC" in rest:
            self.files[name].live.clear()
            return True
        if name in self.files or "O_CREAT" not in rest:
            return False
        self.files[name] = _File(bytearray())
        return True

    def _renamed(self, old: str, new: str) -> bool:
        """The new name leads to the new file at once, on disk to the former one until the directory is flushed."""
        if old not in self.files:
            return False
        self._unlinked(new)
        file = self.files.pop(old)
        if file.named:
            self.removed[old] = file.flushed
        self.files[new] = file
        file.named = False
        return True

    def _unlinked(self, name: str) -> bool:
        file = self.files.pop(name, None)
        if file is not None and file.named:
            self.removed[name] = file.flushed
        return file is not None

    def _directory_flushed(self) -> None:
        self.removed.clear()
        for file in self.files.values():
            file.named = True


def _changed(file: _File, call: str, rest: str) -> bool:
    if call in {"fsync", "fdatasync"}:
        file.flushed, file.torn = bytes(file.live), None
    elif call == "ftruncate":
        size = int(rest)
        file.live[size:] = bytes(max(0, size - len(file.live)))
    elif call == "write":  # from the beginning on, as whole files are written here
        file.write(len(file.live), _data(rest))
    elif call == "pwrite64":
        file.write(int(rest.rsplit(", ", 1)[1]), _data(rest))
    else:
        return False
    return True


def _data(rest: str) -> bytes:
    found = _TEXT.search(rest)
    return bytes.fromhex(found[1].replace("\\x", "")) if found else b""


def _path(text: str) -> str:
    """Path behind a descriptor; strace writes it in hex as it does data."""
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


def images(disk: Disk, trace: Path, place: Path) -> Iterator[tuple[str, bytes, Path]]:
    """Yield (what happened last, what had been said, a folder) for every call and variant."""
    for number, call in enumerate(disk.replay(trace)):
        for variant in VARIANTS:
            folder = place / f"{number}-{variant}"
            disk.image(variant, folder)
            yield f"cut after {call} number {number}, {variant}", disk.said, folder

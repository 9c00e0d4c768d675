"""The model repository: decrypted releases in memory, in the layout that Triton, OVMS and others watch.

    <root>/<model>/<release>/model.onnx …      one directory per release, named by its number
    <root>/<model>/<release>/.engine.json      how it asks to be run (edgeseal.runtime.engine_settings), if it does
    <root>/<model>/current -> <release>        replaced atomically: a reader sees the old or the new release
    <root>/<model>/shadow -> <release>         to be tried on copies of live requests (edgeseal.runtime.shadow)
    <root>/<model>/.staged-<release>/          being written, readable by the agent only

Names are checked and links never followed: whoever can write beside us must not be able to turn a removal or a change
of mode against other files. It must be a file system in memory: after a power cut nothing decrypted is anywhere. Where
memory is too small, an encrypted disk can be allowed on purpose; `on_disk` then says so in the agent's status.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, UsageError
from edgeseal.names import check_model_name, is_model_name

if TYPE_CHECKING:
    from collections.abc import Mapping

CURRENT: Final = "current"
SHADOW: Final = "shadow"
_ORDER: Final = ".shadow.json"
_NOTES: Final = ".notes.json"
_STAGED: Final = ".staged-"
_NEXT: Final = ".next-"
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOUNTS: Final = Path("/proc/self/mounts")
_MEMINFO: Final = Path("/proc/meminfo")
_MEMORY_RESERVE: Final = 64 * 2**20  # for the agent and the system while a model is unpacked


class ModelRepository:
    """The releases below one root. One agent writes; any number of runtimes read."""

    def __init__(self, root: Path, *, group: str = "", allow_disk: bool = False) -> None:
        """`group`: who may read models (a runtime's group). Nothing is touched before `prepare`."""
        self.root = root
        self._group = group
        self._allow_disk = allow_disk

    def prepare(self) -> None:
        """Make the root, private to the agent and the group.

        Raises IncompatibleError if it would lie on a disk or is somebody else's, UsageError for an unknown group.
        """
        if not os.path.lexists(self.root):
            self.root.mkdir(mode=0o700, parents=True)
        _check_ours(self.root)
        if self.on_disk and not self._allow_disk:
            raise IncompatibleError(
                f"{self.root} is on a disk; decrypted models belong in memory only",
                hint="put paths.models below /run or /dev/shm, or set runtime.allow_disk for an encrypted disk",
            )
        self._own(self.root, 0o750 if self._group else 0o700)

    @property
    def on_disk(self) -> bool:
        """Whether the root is on something else than a file system in memory."""
        return _file_system(self.root) not in _IN_MEMORY

    def free(self) -> int:
        """Return the bytes a new release may take: what the file system and the memory both have."""
        place = self.root
        while not place.exists():
            place = place.parent
        room = shutil.disk_usage(place).free
        return room if self.on_disk else min(room, max(0, memory_available() - _MEMORY_RESERVE))

    # Releases ------------------------------------------------------------------------------------------------------

    def stage(self, model: str, release: int) -> Path:
        """Return an empty private directory to write a release into."""
        path = self._model(model) / f"{_STAGED}{release}"
        if not os.path.lexists(path.parent):
            path.parent.mkdir(mode=0o700)
        _check_ours(path.parent)
        self._own(path.parent, 0o750 if self._group else 0o700)
        _remove(path)
        path.mkdir(mode=0o700)
        return path

    def publish(self, model: str, release: int) -> Path:
        """Give a staged release its name and let the group read it; it is not `current` yet."""
        staged, path = self._model(model) / f"{_STAGED}{release}", self.path(model, release)
        for found in (staged, *staged.rglob("*")):
            if found.is_symlink():
                raise FormatError(f"{found.name} in the release is a link; releases hold plain files only")
            executable = found.is_dir() or found.stat().st_mode & 0o100
            self._own(found, (0o550 if executable else 0o440) if self._group else (0o500 if executable else 0o400))
        self.remove(model, release)
        staged.chmod(0o750 if self._group else 0o700)  # a directory without write permission cannot be renamed
        staged.rename(path)
        return path

    def path(self, model: str, release: int) -> Path:
        """Return where a release lies or would lie."""
        return self._model(model) / str(release)

    def switch(self, model: str, release: int) -> None:
        """Make a published release `current`, atomically."""
        self._link(model, CURRENT, release)

    def withdraw(self, model: str) -> None:
        """Point runtimes at nothing: whoever follows `current` stops serving this model."""
        (self._model(model) / CURRENT).unlink(missing_ok=True)

    def current(self, model: str) -> int | None:
        """Return the release that runtimes are pointed at and that is there, None if there is none."""
        return self._linked(model, CURRENT)

    def releases(self, model: str) -> list[int]:
        """Return the published releases, oldest first."""
        directory = self._model(model)
        if not directory.is_dir():
            return []
        return sorted(int(p.name) for p in directory.iterdir() if _is_release(p))

    def models(self) -> list[str]:
        """Return the models that have a directory here; whatever else lies there is nobody's model."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if is_model_name(p.name) and _is_directory(p))

    def remove(self, model: str, release: int) -> None:
        """Remove a release; whoever has its files open or mapped keeps them until it lets go."""
        _remove(self.path(model, release))

    def retire(self, model: str) -> None:
        """Remove a model and its `current` link."""
        self.withdraw(model)
        _remove(self._model(model))

    # Shadow --------------------------------------------------------------------------------------------------------

    def shadow(self, model: str, release: int, order: bytes) -> None:
        """Point at a published release that is to be tried on copies of live requests; `order` says how."""
        self._write(model, _ORDER, order)
        self._link(model, SHADOW, release)

    def unshadow(self, model: str) -> None:
        """Take that back; of no effect where there is nothing to take back."""
        for name in (SHADOW, _ORDER):
            (self._model(model) / name).unlink(missing_ok=True)

    def shadowed(self, model: str) -> tuple[int, bytes] | None:
        """Return the release that is to be tried and the order for it, None if there is none."""
        release = self._linked(model, SHADOW)
        if release is None:
            return None
        try:
            return release, (self._model(model) / _ORDER).read_bytes()
        except OSError:
            return None

    # Notes for people ----------------------------------------------------------------------------------------------

    def note(self, model: str, about: Mapping[str, Any]) -> None:
        """Leave something for runtimes' pages beside a model: its gate's figures, its last rollback. Nothing secret."""
        self._write(model, _NOTES, json.dumps(about).encode())

    def notes(self, model: str) -> dict[str, Any]:
        """Return what was left beside a model; nothing if there is nothing that can be read."""
        try:
            found = json.loads((self._model(model) / _NOTES).read_text("utf-8"))
        except (OSError, ValueError, EdgesealError):
            return {}
        return found if isinstance(found, dict) else {}

    def sweep(self) -> None:
        """Remove what a killed process left: staged releases, half-made links, a shadow that nobody waits for."""
        for model in self.models():
            for leftover in (self.root / model).glob(f"{_STAGED}*"):
                _remove(leftover)
            for name in (CURRENT, SHADOW):
                (self.root / model / (_NEXT + name)).unlink(missing_ok=True)
            self.unshadow(model)

    def _link(self, model: str, name: str, release: int) -> None:
        """Point a link at a published release, atomically."""
        if not self.path(model, release).is_dir():
            raise EdgesealError(f"{model} release {release} is not in the model repository")
        link = self._model(model) / (_NEXT + name)
        link.unlink(missing_ok=True)
        link.symlink_to(str(release))
        link.replace(self._model(model) / name)

    def _linked(self, model: str, name: str) -> int | None:
        """Return the release that a link names and that is there."""
        try:
            target = str((self._model(model) / name).readlink())
        except OSError:
            return None
        path = self._model(model) / target
        return int(target) if path.name == target and _is_release(path) else None

    def _write(self, model: str, name: str, data: bytes) -> None:
        """Replace a small file beside a model, for whoever may read models."""
        path = self._model(model) / name
        temporary = path.with_name(path.name + ".next")
        temporary.write_bytes(data)
        self._own(temporary, 0o640 if self._group else 0o600)
        temporary.replace(path)  # in memory: nothing to flush

    def _model(self, model: str) -> Path:
        check_model_name(model)
        return self.root / model

    def _own(self, path: Path, mode: int) -> None:
        if self._group:
            try:
                shutil.chown(path, group=self._group)
            except LookupError:
                raise UsageError(
                    f"runtime.group: there is no group {self._group!r}", hint="create it, or leave the key out"
                ) from None
            except PermissionError:
                raise UsageError(
                    f"runtime.group: this user may not give files to the group {self._group!r}",
                    hint="make the agent's user a member of it, or leave the key out",
                ) from None
        path.chmod(mode)  # last: the bits are for the group that is there now


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_release(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdecimal() and str(int(name)) == name and _is_directory(path)


def _check_ours(directory: Path) -> None:
    """Raise IncompatibleError unless this is a real directory of this user.

    Below /dev/shm anybody can make it first and would own, and read, what is put into it. Root may act for the agent's
    user, but not where anybody could have made the directory.
    """
    found = directory.lstat()
    anybody = directory.parent.stat().st_mode & stat.S_IWOTH
    if not stat.S_ISDIR(found.st_mode):
        raise IncompatibleError(
            f"{directory} is not a directory (a link is not followed)", hint="remove it, or set another paths.models"
        )
    if found.st_uid != os.geteuid() and (os.geteuid() or anybody):
        raise IncompatibleError(
            f"{directory} belongs to user {found.st_uid}; decrypted models would be that user's to read",
            hint="remove it, or set another paths.models",
        )


def _remove(directory: Path) -> None:
    """Remove a tree whose directories may be read-only; a link goes, what it points at stays."""
    if directory.is_symlink() or directory.is_file():
        directory.unlink(missing_ok=True)
        return
    for found in (directory, *directory.rglob("*")):
        if found.is_dir() and not found.is_symlink():
            found.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`: the mount whose path is its longest prefix."""
    while not path.exists():
        path = path.parent
    real, best = path.resolve(), ("", "unknown")
    with contextlib.suppress(OSError):
        for line in _MOUNTS.read_text("utf-8", "replace").splitlines():
            _, mount, kind, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            if real.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]


def memory_available() -> int:
    """Return MemAvailable in bytes; unlimited where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 2**62

"""The model repository: decrypted releases in memory, in the layout that Triton, OVMS and others watch.

    <root>/<model>/<release>/model.onnx …      one directory per release, named by its number
    <root>/<model>/current -> <release>        replaced atomically: a reader sees the old or the new release
    <root>/<model>/.staged-<release>/          being written, readable by the agent only

It must be a file system in memory: after a power cut nothing decrypted is anywhere. Where memory is too small, an
encrypted disk can be allowed on purpose; `on_disk` then says so in the agent's status.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from edgeseal.errors import EdgesealError, IncompatibleError, UsageError
from edgeseal.names import check_model_name

CURRENT: Final = "current"
_STAGED: Final = ".staged-"
_NEXT: Final = ".next-current"
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

        Raises IncompatibleError if it would lie on a disk, UsageError for an unknown group.
        """
        if not self.root.exists():
            self.root.mkdir(mode=0o700, parents=True)
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
        return room if self.on_disk else min(room, max(0, _memory_available() - _MEMORY_RESERVE))

    # Releases ------------------------------------------------------------------------------------------------------

    def stage(self, model: str, release: int) -> Path:
        """Return an empty private directory to write a release into."""
        path = self._model(model) / f"{_STAGED}{release}"
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
        self._own(path.parent, 0o750 if self._group else 0o700)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def publish(self, model: str, release: int) -> Path:
        """Give a staged release its name and let the group read it; it is not `current` yet."""
        staged, path = self._model(model) / f"{_STAGED}{release}", self.path(model, release)
        for found in (staged, *staged.rglob("*")):
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
        if not self.path(model, release).is_dir():
            raise EdgesealError(f"{model} release {release} is not in the model repository")
        link = self._model(model) / _NEXT
        link.unlink(missing_ok=True)
        link.symlink_to(str(release))
        link.replace(self._model(model) / CURRENT)

    def current(self, model: str) -> int | None:
        """Return the release that runtimes are pointed at and that is there, None if there is none."""
        try:
            name = str((self._model(model) / CURRENT).readlink())
        except OSError:
            return None
        return int(name) if name.isdecimal() and (self._model(model) / name).is_dir() else None

    def releases(self, model: str) -> list[int]:
        """Return the published releases, oldest first."""
        directory = self._model(model)
        if not directory.is_dir():
            return []
        return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir())

    def models(self) -> list[str]:
        """Return the models that have a directory here."""
        return sorted(p.name for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []

    def remove(self, model: str, release: int) -> None:
        """Remove a release; whoever has its files open or mapped keeps them until it lets go."""
        _remove(self.path(model, release))

    def retire(self, model: str) -> None:
        """Remove a model and its `current` link."""
        (self._model(model) / CURRENT).unlink(missing_ok=True)
        _remove(self._model(model))

    def sweep(self) -> None:
        """Remove what a killed process left: staged releases and half-made links."""
        for model in self.models():
            for leftover in (self.root / model).glob(f"{_STAGED}*"):
                _remove(leftover)
            (self.root / model / _NEXT).unlink(missing_ok=True)

    def _model(self, model: str) -> Path:
        check_model_name(model)
        return self.root / model

    def _own(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if self._group:
            try:
                shutil.chown(path, group=self._group)
            except LookupError:
                raise UsageError(
                    f"runtime.group: there is no group {self._group!r}", hint="create it, or leave the key out"
                ) from None


def _remove(directory: Path) -> None:
    """Remove a tree whose directories may be read-only."""
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


def _memory_available() -> int:
    """MemAvailable in bytes; unlimited where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 2**62


def run_quietly(words: list[str], *, stdin: bytes = b"", timeout: float) -> tuple[int, str]:
    """Run a command of the owner's; return exit code and the end of what it said.

    A command that hangs is killed and counts as failed.
    """
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout, check=False, env=_environment())
    except subprocess.TimeoutExpired:
        return 124, f"did not end within {timeout:.0f} s"
    except OSError as e:
        return 127, f"cannot be started: {e.strerror}"
    return done.returncode, (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-300:]


def _environment() -> dict[str, str]:
    """Nothing of the agent's own environment but the path: it may hold credentials' places."""
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8"}

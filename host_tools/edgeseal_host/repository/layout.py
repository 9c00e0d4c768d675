"""A repository directory on a workstation: what was published, and what is staged to be signed.

    published/metadata/…  published/targets/…     as devices see them, written after the server has accepted them
    staged/<role>.json                            being signed; a role that is not here does not change
    staged/targets/<path>                         new target files

Signing is asynchronous: the directory may be carried from person to person. Nothing in it is secret, and nothing in it
is believed without its signatures.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import Metadata, Root, T, Targets

from edgeseal.durable import fsync_directory, locked, write_atomic
from edgeseal.errors import FormatError, UsageError
from edgeseal.names import is_model_name
from edgeseal_host.repository import metadata, selection
from edgeseal_host.repository.verify import Publication, Published

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgeseal_host.repository.verify import Verified

_FORMER: Final = ".staged-before"
_VERSIONED: Final = re.compile(r"([0-9]+)\.(.+)\.json")


class RepositoryDirectory:
    """One repository directory."""

    def __init__(self, path: Path) -> None:
        """Nothing is touched before the first call."""
        self.path = path
        self.published_path = path / "published"
        self.staged_path = path / "staged"

    def create(self) -> None:
        """Make an empty repository.

        Raises UsageError if something is there.
        """
        if self.staged_path.exists() or self.published_path.exists():
            raise UsageError(f"{self.path} holds a repository already", hint="edgeseal repo status shows it")
        self.staged_path.mkdir(parents=True)
        fsync_directory(self.path)

    def check(self) -> None:
        """Raise UsageError unless this is a repository directory."""
        if not self.staged_path.is_dir() and not self.published_path.is_dir():
            raise UsageError(f"{self.path} is no repository directory", hint="edgeseal repo init makes one")

    def locked(self) -> AbstractContextManager[None]:
        """Hold the directory: two commands at once would lose each other's changes."""
        self.check()
        return locked(self.path / ".lock")

    # Published -----------------------------------------------------------------------------------------------------

    def roots(self) -> dict[int, bytes]:
        """Return every published root by version."""
        return dict(self._versions("root").items())

    def current(self, role: str) -> bytes | None:
        """Return the newest published metadata of a role, None if there is none."""
        versions = self._versions(role)
        return versions[max(versions)] if versions else None

    def published(self) -> Published | None:
        """Return the published state, None before the first publication."""
        root = self.current("root")
        if root is None:
            return None
        roles = {role: self.current(role) for role in self.published_roles() if role.startswith("model-")}
        return Published(root, self.current("targets"), {r: d for r, d in roles.items() if d is not None})

    def has_file(self, path: str, sha256: str) -> bool:
        """Whether a target was published with that content."""
        return (self.published_path / metadata.target_file(path, sha256)).is_file()

    def mark_published(self, verified: Verified) -> None:
        """Note what the server has accepted, then clear what of it was staged; what still waits stays."""
        for name, data in verified.files().items():
            place = self.published_path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, data, mode=0o644)
        root = self.published_path / metadata.metadata_file("root", verified.root.signed.version)
        if not root.exists():
            write_atomic(root, verified.data["root"], mode=0o644)
        waiting = {role for role, data in self.staged().items() if verified.data.get(role) != data}
        if not waiting:
            self.clear()
            return
        for path in self.staged_files():
            if path in verified.listed and self.has_file(
                path, digest((self.staged_path / "targets" / path).read_bytes())
            ):
                (self.staged_path / "targets" / path).unlink()
        for role in set(self.staged()) - waiting:
            (self.staged_path / f"{role}.json").unlink()
        fsync_directory(self.staged_path)

    # Staged --------------------------------------------------------------------------------------------------------

    def staged(self) -> dict[str, bytes]:
        """Return the staged metadata by role.

        Raises FormatError for a file that is no role people sign: it would be neither signed nor published.
        """
        places = {p.name.removesuffix(".json"): p for p in sorted(self.staged_path.glob("*.json"))}
        for role, place in places.items():
            of_model = role.startswith("model-") and is_model_name(role.removeprefix("model-"))
            if role not in {"root", "targets"} and not of_model:
                raise FormatError(f"{place} is staged, but there is no such role to sign", hint="remove that file")
        return {role: place.read_bytes() for role, place in places.items()}

    def staged_files(self) -> dict[str, bytes]:
        """Return the staged target files by path."""
        directory = self.staged_path / "targets"
        return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}

    def stage(self, role: str, data: bytes) -> None:
        """Write staged metadata of a role."""
        self.staged_path.mkdir(exist_ok=True)
        write_atomic(self.staged_path / f"{role}.json", data, mode=0o644)

    def stage_file(self, path: str, data: bytes) -> None:
        """Write a staged target file."""
        place = self.staged_path / "targets" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, data, mode=0o644)

    def unstage_file(self, path: str) -> None:
        """Forget a staged target file; nothing happens if there is none."""
        (self.staged_path / "targets" / path).unlink(missing_ok=True)

    @contextmanager
    def changing(self, *, afresh: bool = False) -> Iterator[None]:
        """Make all the changes of the block or none: what was staged comes back if it fails.

        With `afresh` the block begins with nothing staged.
        """
        former = self.path / _FORMER
        shutil.rmtree(former, ignore_errors=True)
        self.staged_path.mkdir(exist_ok=True)
        shutil.copytree(self.staged_path, former)
        if afresh:
            self.clear()
        try:
            yield
        except BaseException:
            shutil.rmtree(self.staged_path, ignore_errors=True)
            former.rename(self.staged_path)
            fsync_directory(self.path)
            raise
        shutil.rmtree(former, ignore_errors=True)

    def clear(self) -> None:
        """Forget everything staged."""
        shutil.rmtree(self.staged_path, ignore_errors=True)
        self.staged_path.mkdir()
        fsync_directory(self.path)

    def publication(self) -> Publication:
        """Return what of the staged is ready, as it goes to a server; roots that a server may have missed go along.

        Raises RefusedError if something is staged and nothing of it is ready.
        """
        ready = selection.select(self).publication if self.staged() else Publication(files=self.staged_files())
        roots = [*(data for _, data in sorted(self.roots().items())), *ready.roots]
        return replace(ready, roots=tuple(roots[-2:]))

    # What a role will be -------------------------------------------------------------------------------------------

    def next_root(self) -> Root:
        """Return the root as it will be: staged, or else published."""
        root: Root = self._next("root", Root).signed
        return root

    def next_targets(self) -> Targets:
        """Return the targets role as it will be."""
        targets: Targets = self._next("targets", Targets).signed
        return targets

    def _next(self, role: str, kind: type[T]) -> Metadata[T]:
        data = self.staged().get(role) or self.current(role)
        if data is None:
            raise UsageError(f"there is no {role} metadata in {self.path}", hint="edgeseal repo init, then stage")
        return metadata.read(data, kind, what=f"{role}.json")

    def _versions(self, role: str) -> dict[int, bytes]:
        found = {}
        for path in (self.published_path / "metadata").glob(f"*.{role}.json"):
            match = _VERSIONED.fullmatch(path.name)
            if match and match[2] == role:
                found[int(match[1])] = path.read_bytes()
        return found

    def published_roles(self) -> set[str]:
        """Return the name of every role that was ever published."""
        found = (_VERSIONED.fullmatch(p.name) for p in (self.published_path / "metadata").glob("*.json"))
        return {match[2] for match in found if match}


def digest(data: bytes) -> str:
    """Lower-hex SHA-256."""
    return hashlib.sha256(data).hexdigest()

"""Is this directory fit to be served? Owner, modes, free space, nobody else at it: said before anything starts.

A copy from a backup, a `sudo` too many or a full disk are what happens to operators. Not here: whether the contents are
right (data_key.py, restored.py); the checks of single files where they are read.
"""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from edgeseal.durable import locked
from edgeseal.errors import NoSpaceError, NotAuthorisedError, TemporaryError
from edgeseal_host.fleet.objects import SPARE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal_host.fleet.data import DataDirectory

LOCK: Final = "serve.lock"


@contextmanager
def alone(data: DataDirectory) -> Iterator[None]:
    """Hold the directory as its only server, or to change what a running server would not notice.

    Raises TemporaryError if somebody else does, UsageError if it is no fleet server's, NotAuthorisedError if it may not
    be written.
    """
    check_access(data)
    data.url()
    try:
        with locked(data.path / LOCK):
            yield
    except TemporaryError as e:
        if not e.message.startswith(LOCK):
            raise  # something else, inside
        raise TemporaryError(
            f"{data.path} is in use: a fleet server, or another command that needs it for itself",
            hint="one directory has one server: stop the other, or give this one a --data of its own",
        ) from e


def check_access(data: DataDirectory) -> None:
    """Raise NotAuthorisedError unless this user may use every file, and nobody else may read the secret ones."""
    if not data.path.exists():
        return  # `DataDirectory.url` says what that means
    secret = [data.secrets, *sorted(data.secrets.glob("*")), data.database, data.admin_token]
    for place in (data.path, data.path / "objects", *secret):
        if place.exists():
            _check_usable(place)
    for place in secret:
        if place.exists() and (mode := stat.S_IMODE(place.stat().st_mode)) & 0o077:
            raise NotAuthorisedError(
                f"{place} is open to other users (mode {mode:04o})",
                hint=f"chmod -R go= {data.secrets} {data.database}* {data.admin_token}; were they copied around?",
            )


def check_space(data: DataDirectory) -> None:
    """Raise NoSpaceError if the disk is so full that the database could not grow."""
    found = os.statvfs(data.path)
    free = found.f_bavail * found.f_frsize
    if free < SPARE:
        raise NoSpaceError(
            f"{free} bytes are free below {data.path}; a fleet server needs {SPARE} for its database",
            hint="free some space: what devices report would be lost",
        )


def _check_usable(place: Path) -> None:
    want = os.R_OK | os.W_OK | (os.X_OK if place.is_dir() else 0)
    if os.access(place, want):
        return
    if os.access(place, want & ~os.W_OK) and _read_only(place):
        raise NotAuthorisedError(f"{place} is on a file system that is mounted read-only", hint="look at the disk")
    raise NotAuthorisedError(
        f"{_user(os.geteuid())} may not use {place}, which belongs to {_user(place.stat().st_uid)}",
        hint="run the server as the user who made the directory, or: chown -R USER DIR",
    )


def _read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"

"""Objects from removable media: a directory or tar that somebody else prepared."""

from __future__ import annotations

import hashlib
import os
import random
import tarfile
from typing import TYPE_CHECKING

import pytest

from edgeseal.archive import Archive
from edgeseal.errors import FormatError, IntegrityError, TemporaryError
from edgeseal.install import _fetch_object
from edgeseal.store import ObjectStore, object_name
from edgeseal.transport.objects_archive import ArchiveObjects

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(7).randbytes(2_500_000)
NAME = hashlib.sha256(DATA).digest()
PATH = object_name("chunks", NAME)


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    directory = tmp_path / "medium"
    (directory / PATH).parent.mkdir(parents=True)
    (directory / PATH).write_bytes(DATA)
    return directory


def packed(medium: Path) -> Path:
    path = medium.with_suffix(".tar")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(medium, arcname=".")
    return path


def fetch(path: Path, offset: int = 0, length: int = len(DATA)) -> bytes:
    return b"".join(ArchiveObjects(Archive(path)).fetch("chunks", NAME, offset=offset, length=length))


@pytest.mark.parametrize("tar", [False, True], ids=["directory", "tar"])
@pytest.mark.parametrize("offset", [0, 1, 2**20, len(DATA) - 1])
def test_from_any_offset(medium: Path, offset: int, *, tar: bool) -> None:
    assert fetch(packed(medium) if tar else medium, offset) == DATA[offset:]


@pytest.mark.parametrize("tar", [False, True], ids=["directory", "tar"])
@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA) + 1])
def test_object_of_another_length(medium: Path, length: int, *, tar: bool) -> None:
    with pytest.raises(TemporaryError, match=f"has {len(DATA)} bytes in the archive; {length} were expected"):
        fetch(packed(medium) if tar else medium, length=length)


@pytest.mark.parametrize("tar", [False, True], ids=["directory", "tar"])
def test_object_is_not_there(medium: Path, *, tar: bool) -> None:
    (medium / PATH).rename(medium / "elsewhere")
    with pytest.raises(TemporaryError, match="not in the archive"):
        fetch(packed(medium) if tar else medium)


@pytest.mark.parametrize("where", ["file", "directory above"])
def test_link_to_the_device_s_own_files_is_not_followed(medium: Path, tmp_path: Path, where: str) -> None:
    real = tmp_path / "real"
    moved = medium / PATH if where == "file" else (medium / PATH).parent
    moved.rename(real)
    moved.symlink_to(real)
    with pytest.raises(TemporaryError):
        fetch(medium)


def test_link_in_a_tar(medium: Path) -> None:
    (medium / "link").symlink_to("/etc/passwd")
    with pytest.raises(FormatError, match="no links"):
        fetch(packed(medium))


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_object_that_is_no_regular_file(medium: Path, kind: str) -> None:
    """A FIFO must not hang the agent either."""
    (medium / PATH).unlink()
    os.mkfifo(medium / PATH) if kind == "fifo" else (medium / PATH).mkdir()
    with pytest.raises(TemporaryError):
        fetch(medium)


def test_other_bytes_on_the_medium(medium: Path, tmp_path: Path) -> None:
    (medium / PATH).write_bytes(bytes(len(DATA)))
    store = ObjectStore(tmp_path / "objects")
    with pytest.raises(IntegrityError):
        _fetch_object("chunks", NAME, len(DATA), ArchiveObjects(Archive(medium)), store)
    assert not [p for p in store.directory.rglob("*") if p.is_file()]


def test_tar_cut_short_after_it_was_indexed(medium: Path) -> None:
    """The stick was pulled: what is missing is said, not made up."""
    archive = Archive(packed(medium))
    archive.index()
    os.truncate(archive.path, 1_000_000)
    got = b"".join(ArchiveObjects(archive).fetch("chunks", NAME, offset=0, length=len(DATA)))
    assert DATA.startswith(got)
    assert len(got) < len(DATA)

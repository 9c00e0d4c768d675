"""Tools that tests in this folder need: missing, they skip with a reason, and in CI they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.needed import mark_below, missing

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is `sim`."""
    mark_below(Path(__file__).parent, items, pytest.mark.sim)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: faults are injected into calls, so the disk below need not be slow."""
    yield from _in_memory(tmp_path)


@pytest.fixture(scope="module")
def memory_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for all tests of a module."""
    yield from _in_memory(tmp_path_factory.mktemp("place"))


def _in_memory(on_disk: Path) -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        yield on_disk
        return
    with tempfile.TemporaryDirectory(prefix="edgeseal-test-", dir="/dev/shm", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def fuse() -> None:
    """FUSE, usable by this user."""
    if shutil.which("fusermount3") is None:
        missing("needs fusermount3 (apt-get install fuse3)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("needs /dev/fuse")


@pytest.fixture(scope="session")
def strace() -> None:
    """strace, allowed to trace."""
    if shutil.which("strace") is None:
        missing("needs strace (apt-get install strace)")
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False).returncode:
        missing("strace is not allowed to trace here (ptrace)")


@pytest.fixture(scope="session")
def tmux() -> None:
    """A real terminal on which screens are looked at."""
    if shutil.which("tmux") is None:
        missing("needs tmux (apt-get install tmux)")

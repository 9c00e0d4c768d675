"""Tools that tests in this folder need: missing, they skip with a reason, and in CI they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is `sim`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.sim)


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def fuse() -> None:
    """FUSE, usable by this user."""
    if shutil.which("fusermount3") is None:
        _missing("needs fusermount3 (apt-get install fuse3)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        _missing("needs /dev/fuse")


@pytest.fixture(scope="session")
def strace() -> None:
    """strace, allowed to trace."""
    if shutil.which("strace") is None:
        _missing("needs strace (apt-get install strace)")
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False).returncode:
        _missing("strace is not allowed to trace here (ptrace)")

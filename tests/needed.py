"""What a machine must have for a test: elsewhere it skips with the reason, in CI it fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def missing(reason: str) -> NoReturn:
    """Skip this test, or fail it where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)


def mark_below(folder: Path, items: Iterable[pytest.Item], mark: pytest.MarkDecorator) -> None:
    """Mark every test below a folder."""
    for item in items:
        if folder in item.path.parents:
            item.add_marker(mark)

"""A real Chromium for tests in this folder: missing, they skip with a reason, and in CI they fail."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.needed import mark_below, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

# Debian's headless shell needs 60 MB and no display; any other Chromium does as well.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is `browser`."""
    mark_below(Path(__file__).parent, items, pytest.mark.browser)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module: while it runs, the thread has an event loop that other tests must not meet."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("needs playwright (pip install playwright; it downloads no browser by itself)")
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        missing("needs Chromium (apt-get install chromium-headless-shell)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found)
        yield running
        running.close()

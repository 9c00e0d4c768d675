"""Fixtures that several test files share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit import agent_world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[agent_world.Fleet, agent_world.Device]]:
    """A fleet with release 1 assigned, and an enrolled device."""
    with agent_world.world(tmp_path) as made:
        yield made

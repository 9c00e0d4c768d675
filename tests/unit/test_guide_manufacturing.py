"""The guide of the manufacturing line says what the code does: every failure, word, column, size and the picture.

Its commands are checked by test_documents.py, its picture by tests/sim/test_station_screen.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeseal.provisioning import REMEDIES, Code
from edgeseal_host.station import batch, exports, labels
from edgeseal_host.station.lane import OVER, Phase

pytestmark = pytest.mark.unit
GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "manufacturing.md").read_text()


def failures(text: str) -> dict[int, str]:
    """The table's codes with what to do."""
    return {int(code): remedy for code, remedy in re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", text, re.MULTILINE)}


def test_every_failure_is_there_with_the_screens_own_remedy() -> None:
    assert failures(GUIDE) == {int(code): remedy for code, remedy in REMEDIES.items()}
    assert set(REMEDIES) == set(Code)


@pytest.mark.parametrize("change", [("replace the SD card", "shake the SD card"), ("| 137 |", "| 999 |")])
def test_a_table_that_went_stale_would_be_found(change: tuple[str, str]) -> None:
    assert failures(GUIDE.replace(*change)) != failures(GUIDE)


def test_every_word_a_line_can_say_is_explained() -> None:
    explained = set(re.findall(r"^\| `?([\w ]+?)`? (?:and other small words )?\|", GUIDE, re.MULTILINE))
    assert {str(phase) for phase in Phase if phase is not Phase.TALKING} <= explained
    assert {str(phase) for phase in OVER} <= explained


def test_every_column_of_an_export_is_explained() -> None:
    table = GUIDE.split("| column | what |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table.replace("`granted`, `provisioned`, `locked`", ""))) == sorted(
        exports.COLUMNS
    )


def test_the_batch_file_is_one_and_has_the_examples_keys() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    shown = batch.parse(block.encode(), name="manufacturing.md")
    assert shown.batch.entropy == "require"
    keys = set(re.findall(r"^(\w+) = ", block, re.MULTILINE))
    assert keys == set(re.findall(r"^(\w+) = ", batch.EXAMPLE, re.MULTILINE))


def test_sizes_of_labels() -> None:
    assert f"one label of {labels.WIDTH:g} by {labels.HEIGHT:g} millimetres" in GUIDE
    assert f"with {labels.ACROSS * labels.DOWN} of them" in GUIDE
    assert (labels.ACROSS, labels.EDGE) == (4, 5.0), "four across, a margin of five"

"""Two slots when the card fails in the middle of a process; everything else about them is in test_at_rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from edgeseal import slots
from edgeseal.errors import TemporaryError

if TYPE_CHECKING:
    from pathlib import Path


def pair(directory: Path) -> slots.TwoSlots:
    return slots.TwoSlots(directory, "x", wrap=lambda n, p: bytes([n]) + p, unwrap=lambda data: (data[0], data[1:]))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files whose blocks cannot be read."""
    names: set[str] = set()
    real = slots._bounded

    def bounded(path: Path) -> bytes:
        if path.name in names:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(slots, "_bounded", bounded)
    return names


def newest(found: slots.Slot | None) -> Any:
    return found and (found.sequence, found.payload)


def test_a_new_process_goes_on_from_the_copy_before(tmp_path: Path, failing: set[str]) -> None:
    both = pair(tmp_path)
    both.write(b"a")
    both.write(b"b")
    failing.add("x.0")
    found = pair(tmp_path).read()
    assert found == slots.Slot(1, b"a", damaged=True)


def test_a_read_error_does_not_undo_what_this_process_wrote(tmp_path: Path, failing: set[str]) -> None:
    both = pair(tmp_path)
    both.write(b"a")
    both.write(b"b")
    failing.add("x.0")
    with pytest.raises(TemporaryError, match="written last cannot be read"):
        both.read()
    failing.clear()
    assert newest(both.read()) == (2, b"b")


def test_writing_anew_over_an_unreadable_copy_still_counts_as_newest(tmp_path: Path, failing: set[str]) -> None:
    both = pair(tmp_path)
    both.write(b"a")
    both.write(b"b")
    failing |= {"x.0"}
    both.write(b"c")
    failing.clear()
    assert newest(pair(tmp_path).read()) == (3, b"c")


def test_removal_starts_from_nothing(tmp_path: Path) -> None:
    both = pair(tmp_path)
    both.write(b"a")
    both.remove()
    assert both.read() is None
    both.write(b"b")
    assert newest(both.read()) == (1, b"b")

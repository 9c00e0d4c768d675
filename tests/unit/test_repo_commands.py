"""`edgeseal repo` as a person types it: what is refused before anybody signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.publisher_world import Publisher, edgeseal, ok, refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("repo"))
    made.make()
    return made


def files(place: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@settings(max_examples=25, deadline=None)
@given(text=st.text(min_size=1).filter(lambda t: not t.startswith("-")))
@example("bearing/" + "9" * 5000)
@example("bearing/\N{ARABIC-INDIC DIGIT THREE}")
@example("bearing/0")
@example("bearing/007")
@example("../x/1")
@example("bearing/1")
def test_no_text_after_retire_is_a_traceback_or_changes_anything(staged: Publisher, text: str) -> None:
    before = files(staged.repo)
    result = edgeseal("repo", "stage", staged.repo, "--retire", text, *staged.keys)
    assert result.exit_code in {2, 3}, (result.output, result.exception)
    assert files(staged.repo) == before


@pytest.mark.parametrize(("roots", "threshold"), [(3, 1), (3, 3), (2, 2), (3, 0), (3, 4)])
def test_a_root_that_one_person_or_one_lost_key_decides_is_refused(
    staged: Publisher, tmp_path: Path, roots: int, threshold: int
) -> None:
    named = [x for n in ("alice", "bob", "carol")[:roots] for x in ("--root-key", n)]
    how = ("--fleet", staged.public, *named, "--threshold", threshold, "--targets-key", "targets", *staged.keys)
    refused(2, "repo", "init", tmp_path / "r", *how)
    assert not (tmp_path / "r").exists()


def test_a_key_that_nobody_names_signs_nothing(staged: Publisher) -> None:
    before = files(staged.repo)
    refused(4, "repo", "sign", staged.repo, "--key", "stranger", *staged.keys)
    assert files(staged.repo) == before


def test_what_is_staged_again_must_be_signed_again(tmp_path: Path) -> None:
    made = Publisher(tmp_path)
    made.make()
    assert ok("repo", "status", made.repo)["ready"] is True
    found = ok("repo", "stage", made.repo, "--renew", "root", *made.keys)
    assert found["ready"] is False
    assert [s["signed"] for s in found["signatures"] if s["role"] == "root"] == [[]]

"""Whoever can write beside the model repository must not be able to turn it against other files, or read models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.runtime.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of somebody else's that must stay as it is."""
    place = tmp_path / "victim"
    place.mkdir(mode=0o755)
    (place / "file").write_text("precious")
    (place / "file").chmod(0o644)
    yield place
    assert (place / "file").read_text() == "precious"
    assert (place.stat().st_mode & 0o777, (place / "file").stat().st_mode & 0o777) == (0o755, 0o644)
    assert [p.name for p in place.iterdir()] == ["file"]


@pytest.fixture
def models(tmp_path: Path) -> ModelRepository:
    found = ModelRepository(tmp_path / "models", allow_disk=True)
    found.prepare()
    return found


def test_the_root_is_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "root").symlink_to(victim)
    with pytest.raises(IncompatibleError, match="is not a directory"):
        ModelRepository(tmp_path / "root", allow_disk=True).prepare()


def test_the_root_is_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IncompatibleError, match="is not a directory"):
        ModelRepository(tmp_path / "root", allow_disk=True).prepare()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory of somebody else's")
def test_the_root_was_made_by_somebody_else_first(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "models").mkdir()
    os.chown(shared / "models", 12345, 12345)
    with pytest.raises(IncompatibleError, match="belongs to user 12345"):
        ModelRepository(shared / "models", allow_disk=True).prepare()
    shared.chmod(0o755)  # the negative control: here nobody else could have made it, root acts for the agent's user
    ModelRepository(shared / "models", allow_disk=True).prepare()


def test_a_model_is_a_link(models: ModelRepository, victim: Path) -> None:
    (models.root / "m").symlink_to(victim)
    with pytest.raises(IncompatibleError, match="is not a directory"):
        models.stage("m", 1)
    models.sweep()
    assert models.models() == []
    models.retire("m")


def test_a_staged_release_is_a_link(models: ModelRepository, victim: Path) -> None:
    (models.root / "m").mkdir()
    (models.root / "m" / ".staged-1").symlink_to(victim)
    staged = models.stage("m", 1)
    assert not staged.is_symlink()
    (models.root / "m" / ".staged-2").symlink_to(victim)
    models.sweep()
    assert not (models.root / "m" / ".staged-2").is_symlink()


def test_a_release_is_a_link(models: ModelRepository, victim: Path) -> None:
    (models.root / "m").mkdir()
    (models.root / "m" / "1").symlink_to(victim)
    assert models.releases("m") == []
    (models.root / "m" / "current").symlink_to("1")
    assert models.current("m") is None
    models.remove("m", 1)


@pytest.mark.parametrize("target", ["/", "..", "../victim", "./1", "1/", "01", "\u0661", "1/../1", ""])
def test_current_leads_elsewhere(models: ModelRepository, target: str, victim: Path) -> None:
    (models.stage("m", 1) / "f").write_text("x")
    models.publish("m", 1)
    link = models.root / "m" / "current"
    link.symlink_to(target or ".")
    assert models.current("m") in {None, 1}  # "1/" is 1 to the kernel too
    models.switch("m", 1)
    assert str(link.readlink()) == "1"
    assert victim.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../m", "a/b", "/etc", "M", ".m", "m.", "a\0b", "m\n", "x" * 65, "root"]
)
def test_a_model_name_leads_out(models: ModelRepository, name: str) -> None:
    for act in (
        lambda: models.stage(name, 1),
        lambda: models.publish(name, 1),
        lambda: models.switch(name, 1),
        lambda: models.current(name),
        lambda: models.releases(name),
        lambda: models.remove(name, 1),
        lambda: models.retire(name),
        lambda: models.withdraw(name),
    ):
        with pytest.raises(FormatError, match="is not allowed"):
            act()


def test_strange_things_beside_the_models(models: ModelRepository) -> None:
    for name in ("lost+found", "UPPER", ".hidden"):
        (models.root / name).mkdir()
    (models.root / "file").write_text("x")
    models.sweep()
    assert models.models() == []

"""The model repository: what runtimes see at every moment, who may read it, and names and links that lead elsewhere."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, UsageError
from edgeseal.runtime.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit


@pytest.fixture
def models(tmp_path: Path) -> ModelRepository:
    found = ModelRepository(tmp_path / "models", allow_disk=True)
    found.prepare()
    return found


def _release(models: ModelRepository, release: int, text: str = "weights") -> Path:
    (models.stage("m", release) / "model.onnx").write_text(text)
    return models.publish("m", release)


def test_a_release_is_seen_whole_or_not_at_all(models: ModelRepository) -> None:
    staged = models.stage("m", 1)
    (staged / "model.onnx").write_text("weights")
    assert (models.releases("m"), models.current("m")) == ([], None)
    models.publish("m", 1)
    assert (models.releases("m"), models.current("m")) == ([1], None)
    models.switch("m", 1)
    assert models.current("m") == 1
    assert (models.root / "m" / "current" / "model.onnx").read_text() == "weights"


def test_releases_are_ordered_as_numbers(models: ModelRepository) -> None:
    for release in (10, 9, 1):
        _release(models, release)
    assert models.releases("m") == [1, 9, 10]


def test_current_is_never_missing_while_it_is_switched(models: ModelRepository) -> None:
    _release(models, 1)
    _release(models, 2)
    models.switch("m", 1)
    seen: set[int | None] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(models.current("m"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(300):
        models.switch("m", 2)
        models.switch("m", 1)
    done.set()
    watcher.join()
    assert seen <= {1, 2}


def test_whoever_has_a_removed_release_open_keeps_it(models: ModelRepository) -> None:
    path = _release(models, 1)
    with (path / "model.onnx").open() as f:
        models.remove("m", 1)
        assert f.read() == "weights"
    assert models.releases("m") == []


def test_a_switch_to_nothing_is_refused(models: ModelRepository) -> None:
    with pytest.raises(EdgesealError, match="m release 4 is not in the model repository"):
        models.switch("m", 4)


def test_withdraw_leaves_the_releases(models: ModelRepository) -> None:
    _release(models, 1)
    models.switch("m", 1)
    models.withdraw("m")
    assert (models.current("m"), models.releases("m")) == (None, [1])


def test_a_link_to_a_release_that_is_gone_is_no_release(models: ModelRepository) -> None:
    _release(models, 1)
    models.switch("m", 1)
    models.remove("m", 1)
    assert models.current("m") is None


def test_a_killed_agents_leftovers_are_swept(models: ModelRepository) -> None:
    _release(models, 1)
    models.switch("m", 1)
    (models.stage("m", 2) / "model.onnx").write_text("half")
    (models.root / "m" / ".next-current").symlink_to("2")
    models.sweep()
    assert sorted(p.name for p in (models.root / "m").iterdir()) == ["1", "current"]


def test_a_release_can_be_published_again(models: ModelRepository) -> None:
    _release(models, 1, "old")
    models.switch("m", 1)
    _release(models, 1, "new")
    assert (models.root / "m" / "current" / "model.onnx").read_text() == "new"


def test_retire_leaves_nothing(models: ModelRepository) -> None:
    _release(models, 1)
    models.switch("m", 1)
    models.retire("m")
    assert list(models.root.iterdir()) == []


# Who may read --------------------------------------------------------------------------------------------------------


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_a_group_the_agent_alone_reads(models: ModelRepository) -> None:
    path = _release(models, 1)
    assert [_mode(p) for p in (models.root, path.parent, path, path / "model.onnx")] == [0o700, 0o700, 0o700, 0o400]


def test_the_group_reads_what_is_published_and_nothing_else(tmp_path: Path) -> None:
    models = ModelRepository(tmp_path / "models", group=str(_group()), allow_disk=True)
    models.prepare()
    staged = models.stage("m", 1)
    (staged / "model.onnx").write_text("weights")
    assert _mode(staged) == 0o700
    path = models.publish("m", 1)
    assert [_mode(p) for p in (models.root, path.parent, path, path / "model.onnx")] == [0o750, 0o750, 0o750, 0o440]
    assert (path / "model.onnx").stat().st_gid == path.stat().st_gid


def _group() -> str:
    import grp

    return grp.getgrgid(os.getegid()).gr_name


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    models = ModelRepository(tmp_path / "models", group="no-such-group", allow_disk=True)
    with pytest.raises(UsageError, match="no group 'no-such-group'"):
        models.prepare()


# Where it may be -----------------------------------------------------------------------------------------------------


def test_a_disk_is_refused_unless_allowed() -> None:
    place = Path("/var/tmp/edgeseal-test-disk")
    models = ModelRepository(place)
    if not models.on_disk:
        pytest.skip("/var/tmp is in memory here")
    try:
        with pytest.raises(IncompatibleError, match="is on a disk; decrypted models belong in memory only"):
            models.prepare()
    finally:
        if place.exists():
            place.rmdir()


@pytest.fixture
def shm() -> Iterator[Path]:
    place = Path("/dev/shm") / f"edgeseal-test-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


def test_memory_is_accepted(shm: Path) -> None:
    models = ModelRepository(shm / "models")
    models.prepare()
    assert not models.on_disk
    assert models.free() > 0


def test_an_import_is_light() -> None:
    """`status` runs on every poll of a person's eye; it must not pay for an engine."""
    code = (
        "import sys, edgeseal.runtime.repository, edgeseal.runtime.contract\n"
        "heavy = {'numpy', 'onnxruntime', 'starlette', 'uvicorn', 'subprocess', 'edgeseal.cbor'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_link_in_a_staged_release_is_refused(models: ModelRepository) -> None:
    (models.stage("m", 1) / "model.onnx").symlink_to("/etc/passwd")
    with pytest.raises(FormatError, match="plain files only"):
        models.publish("m", 1)
    assert models.releases("m") == []

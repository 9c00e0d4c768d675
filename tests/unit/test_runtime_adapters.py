"""Handing over by command and by unit: what they are told, in which order, and what happens when they fail."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent_world import MODEL, Device, Fleet
from tests.unit.runtime_world import until

from edgeseal.device import update
from edgeseal.errors import UsageError
from edgeseal.runtime import adapters, child
from edgeseal.runtime.contract import ActivationError, Adapter, Candidate, make_adapter
from edgeseal.runtime.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.unit


@pytest.fixture
def models(tmp_path: Path) -> ModelRepository:
    found = ModelRepository(tmp_path / "models", allow_disk=True)
    found.prepare()
    return found


def _candidate(models: ModelRepository, release: int) -> Candidate:
    (models.stage("m", release) / "model.onnx").write_text("weights")
    return Candidate("m", release, models.publish("m", release), models.current("m"))


def _program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return str(path)


def _steps(adapter: Adapter, candidate: Candidate, *names: str) -> None:
    for name in names:
        getattr(adapter, name)(candidate)


# The link ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["serve", "none"])
def test_commit_leaves_one_release(models: ModelRepository, kind: Any) -> None:
    adapter = make_adapter(kind, repository=models, probe=False)
    assert adapter.name == kind
    for release in (1, 2):
        _steps(adapter, _candidate(models, release), "prepare", "probe", "activate", "commit")
    assert (models.current("m"), models.releases("m")) == (2, [2])


def test_rollback_before_activate_leaves_what_served(models: ModelRepository) -> None:
    adapter = make_adapter("none", repository=models, probe=False)
    _steps(adapter, _candidate(models, 1), "activate", "commit")
    _steps(adapter, _candidate(models, 2), "rollback")
    assert (models.current("m"), models.releases("m")) == (1, [1])


def test_rollback_of_the_first_release_leaves_nothing(models: ModelRepository) -> None:
    adapter = make_adapter("none", repository=models, probe=False)
    _steps(adapter, _candidate(models, 1), "activate", "rollback")
    assert (models.current("m"), models.releases("m")) == (None, [])
    assert not (models.root / "m" / "current").is_symlink()


def test_rollback_to_itself_keeps_it(models: ModelRepository) -> None:
    adapter = make_adapter("none", repository=models, probe=False)
    _steps(adapter, _candidate(models, 1), "activate")
    _steps(adapter, Candidate("m", 1, models.path("m", 1), 1), "rollback")
    assert models.current("m") == 1


@pytest.mark.parametrize(
    ("kind", "more", "key"),
    [("exec", {}, "runtime.command"), ("systemd", {}, "runtime.unit"), ("systemd", {"unit": "--now"}, "runtime.unit")],
)
def test_incomplete_settings_name_the_key(models: ModelRepository, kind: Any, more: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=key):
        make_adapter(kind, repository=models, probe=False, **more)


# A unit --------------------------------------------------------------------------------------------------------------


def _systemctl(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A systemctl of our own: nothing here has systemd as its first process."""
    _program(directory / "systemctl", code)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_a_unit_is_reloaded_after_the_switch(
    models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    link = models.root / "m" / "current"
    _systemctl(
        tmp_path,
        monkeypatch,
        f"import os, sys\nopen({str(log)!r}, 'a').write(' '.join([*sys.argv[1:], os.readlink({str(link)!r})]) + '\\n')",
    )
    adapter = make_adapter("systemd", repository=models, unit="triton.service", probe=False)
    _steps(adapter, _candidate(models, 1), "prepare", "activate", "commit")
    _steps(adapter, _candidate(models, 2), "activate", "rollback")
    asked = [f"--no-ask-password reload-or-restart triton.service {n}" for n in (1, 2, 1)]
    assert log.read_text().splitlines() == asked


def test_a_unit_that_does_not_start(models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _systemctl(tmp_path, monkeypatch, "import sys; sys.exit('Unit x.service not found.')")
    adapter = make_adapter("systemd", repository=models, unit="x.service", probe=False)
    with pytest.raises(ActivationError, match=r"Unit x.service not found\.") as caught:
        adapter.activate(_candidate(models, 1))
    assert (caught.value.hint or "").startswith("journalctl -u x.service")


@pytest.mark.parametrize(
    ("shown", "serving", "failed", "crashes"),
    [
        ("ActiveState=active\nNRestarts=0", True, "", 0),
        ("ActiveState=reloading\nNRestarts=3", True, "", 3),
        ("ActiveState=activating\nNRestarts=4", False, "", 4),
        ("ActiveState=inactive\nNRestarts=", False, "", 0),
        ("ActiveState=failed\nNRestarts=5", False, "the unit has failed", 5),
        ("NRestarts=x\nActiveState=active", True, "", 0),
    ],
)
def test_how_a_unit_does(
    models: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shown: str,
    serving: bool,
    failed: str,
    crashes: int,
) -> None:
    _systemctl(
        tmp_path,
        monkeypatch,
        "import sys\nassert sys.argv[1:] == ['show', '--property=ActiveState,NRestarts', 'x.service']\n"
        f"print({shown!r})",
    )
    health = make_adapter("systemd", repository=models, unit="x.service", probe=False).health("m", 1)
    assert health is not None
    assert (health.serving, health.failed, health.crashes) == (serving, failed, crashes)


@pytest.mark.parametrize("code", ["", "print('what?')", "import sys; print('ActiveState=active'); sys.exit(1)"])
def test_a_systemctl_that_says_nothing_useful_is_nobody_to_ask(
    models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    _systemctl(tmp_path, monkeypatch, code)
    assert make_adapter("systemd", repository=models, unit="x.service", probe=False).health("m", 1) is None


def test_a_systemctl_that_hangs_is_ended(
    models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "COMMAND_SECONDS", 1.0)
    _systemctl(tmp_path, monkeypatch, "import time; time.sleep(300)")
    adapter = make_adapter("systemd", repository=models, unit="x.service", probe=False)
    with pytest.raises(ActivationError, match=r"exit code 124: did not end within 1 s"):
        adapter.activate(_candidate(models, 1))
    assert adapter.health("m", 1) is None


def test_the_real_systemctl_where_there_is_no_such_unit(models: ModelRepository) -> None:
    """Whatever systemd does here, running or not: a unit that nobody has is an error with systemctl's own words."""
    if shutil.which("systemctl") is None:
        pytest.skip("needs systemctl (apt-get install systemd)")
    adapter = make_adapter("systemd", repository=models, unit="edgeseal-nobody-has-this.service", probe=False)
    with pytest.raises(ActivationError, match=r"edgeseal-nobody-has-this\.service ended with exit"):
        adapter.activate(_candidate(models, 1))
    health = adapter.health("m", 1)
    assert health is None or not health.serving


def test_the_agent_gives_back_what_makes_a_unit_fail(
    world: tuple[Fleet, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit reloads, runs for a moment and then fails with release 2."""
    fleet, device = world
    code = (
        "import os, pathlib, sys\n"
        f"looked = pathlib.Path({str(tmp_path / 'looked')!r})\n"
        f"second = os.readlink({str(device.models / MODEL / 'current')!r}) == '2'\n"
        "print('ActiveState=' + ('failed' if second and looked.exists() else 'active'))\n"
        "looked.touch() if second and sys.argv[1] == 'show' else None"
    )
    _systemctl(tmp_path, monkeypatch, code)
    device.write_config(runtime={"adapter": "systemd", "unit": "x.service", "watch_seconds": 60})
    assert update.run(device.agent()).errors == []
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    (error,) = update.run(device.agent()).errors
    assert "the unit has failed" in str(error)
    assert device.serving() == 1


def test_without_any_systemctl(models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    adapter = make_adapter("systemd", repository=models, unit="x.service", probe=False)
    with pytest.raises(ActivationError, match="exit code 127: cannot be started"):
        adapter.activate(_candidate(models, 1))
    assert adapter.health("m", 1) is None


# Running a program ---------------------------------------------------------------------------------------------------


def _run(words: Sequence[str], **more: Any) -> child.Ended:
    return child.run(words, **{"stdin": b"", "seconds": 60, "environment": {"PATH": "/usr/bin:/bin"}, **more})


def test_input_and_both_outputs() -> None:
    code = "import sys; d = sys.stdin.buffer.read(); print(len(d)); print(d[:3].decode(), file=sys.stderr); sys.exit(7)"
    ended = _run([sys.executable, "-c", code], stdin=b"abc" + bytes(2**20))
    assert ended == child.Ended(7, b"1048579\n", b"abc\n", timed_out=False)


def test_only_the_end_of_the_output_is_kept() -> None:
    ended = _run([sys.executable, "-c", "print('x' * 10_000_000); print('end')"])
    assert len(ended.stdout) == child.MAX_OUTPUT
    assert ended.stdout.endswith(b"end\n")


def test_a_daemon_does_not_hold_us_and_lives(tmp_path: Path) -> None:
    """A command may start the runtime and end: it is not waited for, and not killed."""
    pid = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {pid}; echo started"
    ended = _run(["sh", "-c", script], kill_group=False)
    daemon = int(pid.read_text())
    try:
        assert (ended.code, ended.stdout) == (0, b"started\n")
        os.kill(daemon, 0)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_timeout_ends_all_that_was_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    ended = _run(["sh", "-c", f"sleep 300 & echo $! > {pid}; wait"], seconds=1, kill_group=False)
    assert ended.timed_out
    assert ended.code == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{pid.read_text().strip()}/exe").exists(), "its child is gone")


def test_no_descriptor_is_left() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    _run(["true"])
    with pytest.raises(FileNotFoundError):
        _run(["/no/such/program"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before

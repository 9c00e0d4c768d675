"""Handing over by command and by unit: what they are told, in which order, and what happens when they fail."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.runtime_world import until

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


# A command -----------------------------------------------------------------------------------------------------------

_RECORDS = """import sys, os
open(LOG, 'a').write(sys.stdin.read() + '\\n')
open(LOG + '.env', 'w').write(repr(dict(os.environ)))"""


def test_a_command_is_told_every_step(models: ModelRepository, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [_program(tmp_path / "program", _RECORDS.replace("LOG", repr(str(log))))]
    adapter = make_adapter("exec", repository=models, command=command, probe=False)
    _steps(adapter, _candidate(models, 1), "prepare", "activate", "commit")
    _steps(adapter, _candidate(models, 2), "activate", "rollback")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(t["step"], t["release"], t["previous"]) for t in told] == [
        ("prepare", 1, None),
        ("activate", 1, None),
        ("commit", 1, None),
        ("activate", 2, 1),
        ("rollback", 2, 1),
    ]
    assert told[1]["directory"] == str(models.root / "m" / "1")
    assert told[1]["current"] == str(models.root / "m" / "current")


def test_a_command_gets_nothing_of_the_agents_environment(
    models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/edgeseal")
    log = tmp_path / "log"
    command = [_program(tmp_path / "program", _RECORDS.replace("LOG", repr(str(log))))]
    make_adapter("exec", repository=models, command=command, probe=False).prepare(_candidate(models, 1))
    assert "CREDENTIALS" not in (tmp_path / "log.env").read_text()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('the line is running')", "ended with exit code 1 at step activate: the line is running"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9 at step activate: no output"),
        (
            "import time; print(1, flush=True); time.sleep(300)",
            "exit code 124 at step activate: did not end within 1 s",
        ),
    ],
)
def test_a_command_that_fails(
    models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    monkeypatch.setattr(adapters, "COMMAND_SECONDS", 1.0)
    adapter = make_adapter("exec", repository=models, command=[_program(tmp_path / "program", code)], probe=False)
    with pytest.raises(ActivationError) as caught:
        adapter.activate(_candidate(models, 1))
    assert reason in caught.value.message
    assert caught.value.exit_code == 5


def test_a_command_that_is_not_there(models: ModelRepository) -> None:
    adapter = make_adapter("exec", repository=models, command=["/no/such/program"], probe=False)
    with pytest.raises(ActivationError, match="cannot be started: No such file"):
        adapter.prepare(_candidate(models, 1))


def test_a_rollback_whose_command_fails_leaves_the_link_right(models: ModelRepository, tmp_path: Path) -> None:
    make_adapter("none", repository=models, probe=False).activate(_candidate(models, 1))
    adapter = make_adapter(
        "exec", repository=models, command=[_program(tmp_path / "p", "import sys; sys.exit(1)")], probe=False
    )
    candidate = _candidate(models, 2)
    for step in ("activate", "rollback"):
        with pytest.raises(ActivationError):
            _steps(adapter, candidate, step)
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
    assert log.read_text().splitlines() == [f"reload-or-restart triton.service {n}" for n in (1, 2, 1)]


def test_a_unit_that_does_not_start(models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _systemctl(tmp_path, monkeypatch, "import sys; sys.exit('Unit x.service not found.')")
    adapter = make_adapter("systemd", repository=models, unit="x.service", probe=False)
    with pytest.raises(ActivationError, match=r"Unit x.service not found\.") as caught:
        adapter.activate(_candidate(models, 1))
    assert caught.value.hint == "journalctl -u x.service"


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

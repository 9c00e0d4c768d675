"""Handing over by a command: what it is told, what its exit code and output mean, and what it must not get."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.agent_world import MODEL, Device, Fleet
from tests.unit.test_runtime_adapters import _candidate, _program, _steps, models

from edgeseal.device import update, watch
from edgeseal.errors import EdgesealError, TemporaryError, UsageError
from edgeseal.runtime import adapter_exec
from edgeseal.runtime.adapter_exec import Exec
from edgeseal.runtime.contract import ActivationError, Health, make_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.runtime.contract import Adapter
    from edgeseal.runtime.repository import ModelRepository

pytestmark = pytest.mark.unit
__all__ = ["models"]

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
    monkeypatch.setattr(adapter_exec, "COMMAND_SECONDS", 1.0)
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


def _exec(models: ModelRepository, tmp_path: Path, code: str) -> Adapter:
    return make_adapter("exec", repository=models, command=[_program(tmp_path / "program", code)], probe=False)


# Exit codes and output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["prepare", "activate", "commit", "rollback"])
def test_not_now_is_no_fault_of_the_release(models: ModelRepository, tmp_path: Path, step: str) -> None:
    adapter = _exec(models, tmp_path, f"import os, sys; print('the press is running'); sys.exit({os.EX_TEMPFAIL})")
    with pytest.raises(TemporaryError, match=f"at step {step}: not now: the press is running") as caught:
        _steps(adapter, _candidate(models, 1), step)
    assert not isinstance(caught.value, ActivationError)  # which would be held against it


def test_garbage_in_the_output_does_not_reach_a_terminal(models: ModelRepository, tmp_path: Path) -> None:
    code = "import sys; sys.stdout.buffer.write(b'\\x1b[2J\\x00\\xff\\x07 bad news' * 100); sys.exit(1)"
    with pytest.raises(ActivationError) as caught:
        _exec(models, tmp_path, code).prepare(_candidate(models, 1))
    assert caught.value.message.endswith("bad news")
    assert "\x1b" not in caught.value.message
    assert "\x00" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_command_that_does_not_read_its_input(models: ModelRepository, tmp_path: Path) -> None:
    adapter = _exec(models, tmp_path, "import os; os.close(0)")
    _steps(adapter, _candidate(models, 1), "prepare", "activate", "commit")
    assert models.current("m") == 1


def test_a_command_that_floods_its_output(models: ModelRepository, tmp_path: Path) -> None:
    adapter = _exec(models, tmp_path, "print('x' * 20_000_000)")
    _steps(adapter, _candidate(models, 1), "prepare", "activate")
    assert models.current("m") == 1


def test_a_commit_that_fails_keeps_what_rollback_needs(models: ModelRepository, tmp_path: Path) -> None:
    make_adapter("none", repository=models, probe=False).activate(_candidate(models, 1))
    adapter = _exec(models, tmp_path, "import json, sys; sys.exit(json.load(sys.stdin)['step'] == 'commit')")
    candidate = _candidate(models, 2)
    _steps(adapter, candidate, "prepare", "activate")
    with pytest.raises(ActivationError, match="at step commit"):
        adapter.commit(candidate)
    assert models.releases("m") == [1, 2]
    adapter.rollback(candidate)
    assert models.current("m") == 1


# Health --------------------------------------------------------------------------------------------------------------

_SAYS = """import json, sys
asked = json.load(sys.stdin)
if asked["step"] == "health":
    second = asked["release"] == 2
    print(json.dumps({"serving": second, "requests": 40, "errors": 30 * second, "median_ms": 1.5}))"""


def test_a_command_may_say_how_a_release_does(models: ModelRepository, tmp_path: Path) -> None:
    adapter = _exec(models, tmp_path, _SAYS)
    health = adapter.health("m", 2)
    assert health is not None
    assert (health.serving, health.requests, health.errors, health.median_ms) == (True, 40, 30, 1.5)
    assert watch.judge(health, None, watch.Limits(0.05)) == "30 of 40 answers failed; 5.0% are allowed"
    first = adapter.health("m", 1)
    assert first is not None
    assert not first.serving


@pytest.mark.parametrize(
    "code", ["", "import sys; sys.exit('no such step')", "print()", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_command_that_says_nothing_is_nobody_to_ask(models: ModelRepository, tmp_path: Path, code: str) -> None:
    assert _exec(models, tmp_path, code).health("m", 1) is None


def test_a_command_that_hangs_at_health_is_nobody_to_ask(
    models: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_exec, "HEALTH_SECONDS", 1.0)
    adapter = _exec(models, tmp_path, "import time; print('{\"serving\": true}', flush=True); time.sleep(300)")
    assert adapter.health("m", 1) is None


def test_without_the_command_there_is_nobody_to_ask(models: ModelRepository) -> None:
    adapter = make_adapter("exec", repository=models, command=["/no/such/program"], probe=False)
    assert adapter.health("m", 1) is None


@pytest.mark.parametrize(
    "said",
    [
        "OK",
        "[]",
        "{}",
        '{"serving": "yes"}',
        '{"serving": true, "errors": -1}',
        '{"serving": true, "eror": 1}',
        "[" * 9999,
    ],
)
def test_a_health_that_is_none_is_an_error_with_an_example(models: ModelRepository, tmp_path: Path, said: str) -> None:
    with pytest.raises(UsageError, match="at step health what is no health") as caught:
        _exec(models, tmp_path, f"print({said!r})").health("m", 1)
    assert '{"serving": true' in (caught.value.hint or "")


_NAME = st.sampled_from(["serving", "instance", "failed", "requests", "median_ms", "other"])
_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)


def _dumped(value: object) -> bytes:
    return json.dumps(value).encode()


@given(st.binary(max_size=80) | st.recursive(_LEAF, lambda v: st.dictionaries(_NAME, v)).map(_dumped))
@settings(max_examples=60)
def test_any_output_is_a_health_or_an_error(said: bytes) -> None:
    try:
        found = adapter_exec.parse(said)
    except EdgesealError:
        return
    assert found is None or isinstance(found, Health)


def test_nothing_is_started_before_the_first_step(models: ModelRepository) -> None:
    assert Exec(models, None, ["/no/such/program"]).name == "exec"


# With the agent ------------------------------------------------------------------------------------------------------


def test_the_agent_tries_again_what_was_not_now(world: tuple[Fleet, Device], tmp_path: Path) -> None:
    _, device = world
    busy = tmp_path / "busy"
    code = (
        "import json, os, sys\n"
        f"refused = json.load(sys.stdin)['step'] == 'prepare' and os.path.exists({str(busy)!r})\n"
        f"sys.exit({os.EX_TEMPFAIL} if refused else 0)"
    )
    command = [_program(tmp_path / "program", code)]
    device.write_config(runtime={"adapter": "exec", "command": command})
    busy.touch()
    (error,) = update.run(device.agent()).errors
    assert "not now" in str(error)
    model = device.agent().state().model(MODEL)
    assert (device.serving(), model.failed, model.trial) == (None, [], None)
    busy.unlink()
    assert update.run(device.agent()).errors == []
    assert device.serving() == 1


def test_the_agent_gives_back_what_the_command_says_is_failing(world: tuple[Fleet, Device], tmp_path: Path) -> None:
    fleet, device = world
    assert update.run(device.agent()).errors == []
    fleet.publish(2, size=200_000)
    fleet.assigned = 2
    started_anew = _SAYS.replace('"requests"', '"instance": os.getpid(), "requests"').replace(
        "json, sys", "json, os, sys"
    )
    command = [_program(tmp_path / "p", started_anew)]
    device.write_config(runtime={"adapter": "exec", "command": command, "watch_seconds": 60})
    (error,) = update.run(device.agent()).errors
    assert "release 2 turned bad after the switch: 30 of 40 answers failed" in str(error)
    assert device.serving() == 1

"""What `doctor` says of each kind of runtime: there, not there, there and not well."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import agent_world
from tests.unit.test_adapter_oip import http, scripted

from edgeseal.device import doctor
from edgeseal.runtime import serve_status
from edgeseal.runtime.serve_status import ModelStatus, ServeStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.agent_world import Device

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with agent_world.world(tmp_path_factory.mktemp("device")) as (_, device):
        yield device


def says(device: Device, verdict: str, detail: str, **runtime: Any) -> None:
    """The finding on the runtime is as expected, and says what to do unless all is well."""
    device.write_config(runtime=runtime)
    found = next(f for f in doctor.examine(device.agent()) if f.check == "runtime")
    assert (found.verdict, detail in found.detail) == (verdict, True), found
    assert found.verdict == "ok" or found.hint, found


def test_nobody_to_tell(installed: Device) -> None:
    says(installed, "ok", "a runtime follows `current` below", adapter="none")


def test_edgeseal_serve(installed: Device, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    said = {"adapter": "serve", "status_file": str(path)}
    says(installed, "warning", "switched without a watch", **said)
    serve_status.write(path, ServeStatus(2**22 - 1, serve_status.boot_id()))  # no such process
    says(installed, "warning", "switched without a watch", **said)
    serve_status.write(path, ServeStatus(os.getpid(), serve_status.boot_id()))
    says(installed, "ok", "nothing to serve yet", **said)
    serve_status.write(path, ServeStatus(os.getpid(), serve_status.boot_id(), {"bearing": ModelStatus(serving=7)}))
    says(installed, "ok", "edgeseal-serve runs: bearing release 7", **said)


@pytest.mark.parametrize(
    ("shown", "verdict", "detail"),
    [
        ("ActiveState=active", "ok", "x.service is active"),
        ("ActiveState=inactive", "warning", "x.service is not active"),
        ("", "failed", "systemctl says nothing of x.service"),
    ],
)
def test_a_unit(
    installed: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, verdict: str, detail: str
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\necho '{shown}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    says(installed, verdict, detail, adapter="systemd", unit="x.service")


def test_a_server(installed: Device) -> None:
    with scripted(lambda _path, _: http("404 Not Found")) as server:
        url = server.url
        says(installed, "ok", "answers", adapter="oip-http", url=url)
    says(installed, "failed", "does not answer", adapter="oip-http", url=url)


def test_a_command(installed: Device, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "hand-over"
    said = {"adapter": "exec", "command": [str(program), "--line"]}
    says(installed, "failed", "hand-over is not there", **said)
    program.write_text(f"#!{sys.executable}\nopen({str(ran)!r}, 'w')\n")
    program.chmod(0o644)
    says(installed, "failed", "may not be executed by this user", **said)
    program.chmod(0o755)
    says(installed, "ok", "is told of every step", **said)
    assert not ran.exists()  # looked for, never run


@pytest.mark.parametrize("runtime", [{"adapter": "exec"}, {"adapter": "systemd"}, {"adapter": "oip-http"}])
def test_settings_that_are_incomplete(installed: Device, runtime: dict[str, Any]) -> None:
    device = installed
    device.write_config(runtime={"command": [], "unit": "", **runtime})
    found = next(f for f in doctor.examine(device.agent()) if f.check == "runtime")
    assert found.verdict == "failed"
    assert "runtime." in found.detail

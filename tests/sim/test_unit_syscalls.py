"""Every system call that the agent, its probe and edgeseal-serve make is one that their units let through.

A filter that is too narrow shows on the device only, as EPERM in some library; strace shows it here.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.attacks import bad_models, release_world
from tests.needed import missing
from tests.sim.test_system_files import SYSTEM, _allowed
from tests.unit import runtime_world
from tests.unit.agent_world import Device, Fleet
from tests.unit.test_serve_switch import _ask

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sim


@pytest.fixture(autouse=True)
def _tools() -> None:
    for name in ("strace", "systemd-analyze"):
        if shutil.which(name) is None:
            missing(f"needs {name} (apt-get install strace systemd)")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device to which release 1, a real model with acceptance vectors, is assigned."""
    fleet = Fleet.make(tmp_path)
    with runtime_world.repository() as models:
        found = Device(fleet, tmp_path / "device", models.root)
        found.directory.mkdir()
        made = release_world.World(fleet, found, tmp_path / "status.json", release_world.recorded(tmp_path))
        made.publish(1, bad_models.classifier)
        fleet.repository.publish()
        fleet.assigned = 1
        with fleet.serving():
            made.configure()
            found.enrol()
            yield found


def traced(trace: Path, *words: object) -> list[str]:
    return ["strace", "-f", "-qq", "-o", str(trace), sys.executable, *map(str, words)]


def called(trace: Path) -> set[str]:
    lines = trace.read_text(errors="replace").splitlines()
    return {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}


def beyond(trace: Path, unit: str) -> set[str]:
    """Return the calls that a unit's filter would have refused."""
    return called(trace) - _allowed((SYSTEM / unit).read_text())


def test_a_pass_of_the_agent_with_its_probe(device: Device, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    words = traced(trace, "-m", "edgeseal.device.cli", "--config", device.config_file, "update")
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
    assert "passed the gate (3 cases" in done.stderr, done.stderr
    assert beyond(trace, "edgeseal-agent.service") == set()
    assert {"landlock_restrict_self", "unshare"} <= called(trace)  # the probe is in the trace


def test_a_call_that_a_unit_refuses_would_be_found(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    subprocess.run(traced(trace, "-c", "import ctypes; ctypes.CDLL(None).swapoff(b'/no/such/file')"), check=True)
    assert "swapoff" in beyond(trace, "edgeseal-agent.service")


def test_edgeseal_serve_over_a_switch(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with runtime_world.repository() as models:
        runtime_world.publish(models, "m", 1, 1.0)
        models.switch("m", 1)
        ready = tmp_path / "ready"
        words = ["--models", models.root, "--listen", "127.0.0.1:0", "--ready-file", ready]
        words += ["--status-file", tmp_path / "status.json"]
        process = subprocess.Popen(traced(trace, "-m", "edgeseal.runtime.serve", *words), stderr=subprocess.DEVNULL)
        try:
            runtime_world.until(ready.exists, "it serves", seconds=90)
            runtime_world.publish(models, "m", 2, 2.0)
            models.switch("m", 2)
            address = ready.read_text().removeprefix("http://")
            runtime_world.until(lambda: _version(address) == "2", "release 2 serves", seconds=90)
        finally:
            end(process)
    assert beyond(trace, "edgeseal-serve.service") == set()
    assert {"accept4", "listen"} <= called(trace)


def end(strace: subprocess.Popen[bytes]) -> None:
    """End what is traced, in order; strace itself would only let go of it."""
    children = Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    strace.wait(60)


def _version(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        return _ask(connection)[1]
    finally:
        connection.close()

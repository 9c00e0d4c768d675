"""A running service and `rng` beside it: the service owns the device, everybody else asks the service."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edgeseal.entropy import published

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.agent_world import Device, Fleet

pytestmark = pytest.mark.unit
FRAMES = 400


def recording(place: Path) -> Path:
    """A stick's raw samples in a file, which a lab accepts as a source."""
    r = random.Random(11)
    samples = array("H", [int(r.gauss(2048.5, 68)) for _ in range(480 * FRAMES)])
    if sys.byteorder == "big":
        samples.byteswap()
    place.write_bytes(samples.tobytes())
    return place


@contextmanager
def service(device: Device) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(device.config_file), "run"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.kill()


def status(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(device.run("rng", "status", "--json").stdout)
    return found


def test_status_report_and_doctor_speak_for_the_running_service(world: tuple[Fleet, Device]) -> None:
    fleet, device = world
    source = f"file:{recording(device.directory.parent / 'lab.u16')}"
    device.write_config(entropy={"sources": [source], "lab": True})
    place = device.models.parent / published.NAME
    with service(device) as running:
        ends = time.monotonic() + 60
        while (found := status(device))["from"] != "service" or found["sources"][0]["state"] != "healthy":
            assert time.monotonic() < ends, found
            time.sleep(0.2)
        assert found["sources"][0]["name"] == source
        assert found["sources"][0]["source_class"] == "unknown"
        assert found["age_seconds"] < 60
        assert device.run("rng", "status").returncode == 0
        watched = device.run("rng", "watch", "--count", "2", "--interval", "0")
        assert watched.stdout.count("healthy") == 2
        findings = json.loads(device.run("doctor", "--json").stdout)["findings"]
        assert [f["verdict"] for f in findings if f["check"] == f"noise source {source}"] == ["ok"]
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert not place.exists()  # it speaks for nobody any more
    assert status(device)["from"] == "here"
    assert {s.name for report in fleet.reports for s in report.sources} == {source[:128]}

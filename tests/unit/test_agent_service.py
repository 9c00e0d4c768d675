"""The service loop as systemd sees it: ready, passes in children, a clean end; and its back-off."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from edgeseal.device.service import Service

if TYPE_CHECKING:
    import pytest
    from tests.unit.agent_world import Device, Fleet

World = tuple["Fleet", "Device"]


def receive_until(listener: socket.socket, wanted: bytes) -> list[bytes]:
    """Return the datagrams up to the one that has `wanted`; a time-out fails the test."""
    found: list[bytes] = []
    while not found or wanted not in found[-1]:
        found.append(listener.recv(4096))
    return found


def test_service_is_ready_installs_and_ends_cleanly_on_sigterm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device = world
    address = device.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(device.config_file), "run"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as service:
            assert receive_until(listener, b"READY=1")
            receive_until(listener, b"last pass ended with exit code 0")
            assert device.serving() == 1
            service.send_signal(signal.SIGTERM)
            receive_until(listener, b"STOPPING=1")
            assert service.wait(60) == 0
    assert not device.plaintext_outside()


def test_failures_back_off_to_the_ceiling_and_a_revoked_device_polls_slowest(world: World) -> None:
    _, device = world
    device.write_config(service={"jitter": 0.0, "backoff_seconds": 30, "backoff_max_seconds": 600})
    agent = device.agent()
    service = Service(agent, device.config_file)
    waits = []
    for failures in (1, 2, 3, 10, 10_000):
        service._failures = failures
        waits.append(service.delay())
    assert waits == [30, 60, 120, 600, 600]
    service._failures = 0
    agent.state_file.write(msgspec.structs.replace(agent.state(), revoked=True))
    assert service.delay() == 86_400


def test_jitter_spreads_polls(world: World) -> None:
    _, device = world
    device.write_config(service={"jitter": 0.5}, fleet={"poll_seconds": 100})
    service = Service(device.agent(), None)
    waits = {service.delay() for _ in range(50)}
    assert len(waits) > 10
    assert all(50 <= wait <= 150 for wait in waits)

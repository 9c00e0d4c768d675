"""`provision`: answer a manufacturing station on this device's serial lines until it has locked the device.

One process for all lines. Not here: what is said (edgeseal.provisioning) and what is kept (edgeseal.device.line_home).
"""

from __future__ import annotations

import os
import platform
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from edgeseal import __version__
from edgeseal.device.line_home import DeviceHome, write_lock
from edgeseal.device.ports import Port
from edgeseal.durable import locked
from edgeseal.errors import NotAuthorisedError, UsageError
from edgeseal.provisioning import Device, Dialogue, Stage
from edgeseal.smp import OsGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal.device.agent import Agent

RETRY: Final = 1.0  # seconds between two looks for a port that is not there
_TICK: Final = 0.5


class Provisioning:
    """The loop of one device over its ports."""

    def __init__(self, agent: Agent, ports: Sequence[str], *, baud: int, linger: float) -> None:
        """Finish what a power cut left; nothing is opened before `run`."""
        self._agent = agent
        self._home = DeviceHome(agent)
        self._dialogue = Dialogue(self._home, random=os.urandom, clock=time.monotonic, say=agent.say)
        self._ports = [Port(name, baud=baud) for name in ports]
        self._devices = [Device(self._dialogue, os_group(self._home)) for _ in ports]
        self._linger = linger
        self._heard_at = time.monotonic()
        self._stopping = False

    def check(self, *, for_reset: bool) -> None:
        """Refuse to start on a device that is locked, unless a factory reset is what is waited for.

        Raises NotAuthorisedError.
        """
        if self._home.stage() is not Stage.LOCKED:
            return
        with self._agent.locked():
            write_lock(self._agent)  # enrolled by hand: now the unit's condition says so too
        if not for_reset:
            raise NotAuthorisedError(
                "this device is provisioned and locked",
                hint="only a factory reset by its own station opens it: edgeseal-agent provision --reset",
            )

    def run(self) -> Stage:
        """Serve until locked, until standard input ends, or until SIGTERM; return how far the device is."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        if self._home.stage() is Stage.FRESH:
            for source in self._agent.sources:
                source.start()  # its start-up test is over by the time a station calls
        looked_at = -RETRY
        while not self._over():
            now = time.monotonic()
            if now - looked_at >= RETRY:
                looked_at = now
                self._open()
            self._serve(_TICK)
        for port in self._ports:
            port.close()
        return self._home.stage()

    def _over(self) -> bool:
        if self._stopping or all(p.ended for p in self._ports):
            return True
        return self._dialogue.locked and time.monotonic() - self._heard_at > self._linger

    def _open(self) -> None:
        for port in self._ports:
            if not port.is_open and port.open():
                self._agent.say(f"listening on {port.name}")

    def _serve(self, seconds: float) -> None:
        """Wait for bytes at most that long, and answer them."""
        open_ports = [(p, d) for p, d in zip(self._ports, self._devices, strict=True) if p.is_open]
        reads = [p.descriptors[0] for p, _ in open_ports]
        writes = [p.descriptors[1] for p, _ in open_ports if p.waiting]
        readable, writable, _ = select.select(reads, writes, [], seconds)
        for port, device in open_ports:
            came, goes = port.descriptors
            if came in readable and (data := port.read()):
                self._heard_at = time.monotonic()
                device.feed(data)
            if port.is_open and ((out := device.outgoing()) or goes in writable):
                port.write(out)

    def _stop(self, *_: object) -> None:
        self._stopping = True


def lock(agent: Agent) -> None:
    """End provisioning by hand.

    Raises UsageError if there is nothing to lock.
    """
    home = DeviceHome(agent)
    if home.stage() is Stage.FRESH:
        raise UsageError("this device has no identity yet", hint="provision or enrol it first")
    with agent.locked():
        write_lock(agent)


def run(agent: Agent, ports: Sequence[str], *, baud: int, linger: float, for_reset: bool) -> Stage:
    """Provision this device; one process at a time. `linger` in seconds.

    Raises NotAuthorisedError if it is locked, TemporaryError if another process does it.
    """
    agent.make_directory()
    with locked(agent.directory / "provision.lock"):
        provisioning = Provisioning(agent, ports, baud=baud, linger=linger)
        provisioning.check(for_reset=for_reset)
        return provisioning.run()


def os_group(home: DeviceHome) -> OsGroup:
    """Return what `smpmgr` and its like are told: nothing that is not on a label or in a login banner."""
    system = platform.uname()
    return OsGroup(
        kernel=system.system,
        node=home.serial,
        release=system.release,
        version=f"edgeseal {__version__}",
        build="-",
        machine=system.machine,
        processor=system.machine,
        platform=home.hardware or "unknown",
        system="edgeseal",
    )

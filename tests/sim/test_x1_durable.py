"""A counter that was answered is never forgotten: kills, failing disks and power cuts of the server during X1."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.sim import crash_images, injected
from tests.sim.x1_once import step
from tests.unit import fleet_world

from edgeseal.enrolment import Record
from edgeseal.errors import TemporaryError
from edgeseal.session.messages import Flags, PendingRequest, Status
from edgeseal.suite import PrivateKey, PublicKey
from edgeseal.transport.x1 import FleetExchange
from edgeseal_host.fleet.data import DataDirectory

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

SCRIPT = "tests.sim.x1_once"
DEVICES = 3
pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.timeout(300)]


@dataclass
class Fleet:
    """A fleet directory, and one request of each device."""

    data: Path
    template: Path
    requests: Path
    pending: list[PendingRequest]

    @classmethod
    def make(cls, place: Path) -> Fleet:
        data = DataDirectory(place / "fleet")
        public = data.create("http://127.0.0.1:1", now=0)
        keys, psks = [PrivateKey(1, os.urandom(32)) for _ in range(DEVICES)], [os.urandom(32) for _ in range(DEVICES)]
        with data.open() as fleet:
            for n, (key, psk) in enumerate(zip(keys, psks, strict=True)):
                record = Record.make(
                    device=f"d{n}", serial="", hardware="pi", group="g", key=key.public, psk=psk, enrol=public.enrol
                )
                fleet.registry.enrol(record, psk, now=0)
        server = PublicKey(1, public.session[0].public)
        pending = [
            PendingRequest(
                server=server,
                device=key,
                psk=psk,
                e_seed=os.urandom(32),
                s1=os.urandom(32),
                ctr=7,
                flags=Flags.NONE,
                body=fleet_world.report(),
            )
            for key, psk in zip(keys, psks, strict=True)
        ]
        made = cls(data.path, place / "template", place / "requests", pending)
        made.requests.write_text("\n".join(p.m1.hex() for p in pending))
        shutil.copytree(made.data, made.template)
        return made

    def restore(self) -> None:
        shutil.rmtree(self.data)
        shutil.copytree(self.template, self.data)

    def answered(self, text: bytes) -> list[int]:
        """Numbers of the devices that got an answer, which must be a good one."""
        lines = text.split(b"\n")[:-1]
        for n, line in enumerate(lines):
            assert self.pending[n].open_reply(bytes.fromhex(line.decode())).status is Status.OK
        return list(range(len(lines)))


def forgotten(database: Path, answered: list[int]) -> list[str]:
    """What is wrong with a database after a fault: damaged, or a counter that was answered and is gone."""
    connection = sqlite3.connect(database)
    try:
        if (found := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            return [f"damaged: {found}"]
        counters = [row[0] for row in connection.execute("SELECT ctr FROM device ORDER BY name")]
    except sqlite3.DatabaseError as e:
        return [f"unreadable: {e}"]
    finally:
        connection.close()
    out = [f"d{n} was answered and its counter is {counters[n]}" for n in answered if counters[n] != 7]
    if set(counters) - {0, 7}:
        out.append(f"counters {counters}")
    return out


@pytest.fixture(scope="module")
def fleet(memory_place: Path) -> Fleet:
    return Fleet.make(memory_place)


def zygote(fleet: Fleet, mode: str, place: Path) -> AbstractContextManager[injected.Zygote]:
    return injected.zygote([sys.executable, "-m", SCRIPT, fleet.data, fleet.requests, mode], place / "out")


@pytest.mark.parametrize("kind", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_fault_at_every_call_of_a_group_forgets_no_answered_counter(fleet: Fleet, tmp_path: Path, kind: str) -> None:
    wrong: list[str] = []
    spoilt = 0
    with zygote(fleet, "as built", tmp_path) as ready:
        fleet.restore()
        calls = [c for c in ready.count(tmp_path / "calls") if "fleet.db" in c.file and c.name in injected.CHANGING]
        assert {"pwrite64", "fdatasync"} <= {c.name for c in calls}
        for fault in injected.faults(calls):
            if fault.what == kind:
                fleet.restore()
                done = ready.inject(fault)
                said = (tmp_path / "out").read_bytes().partition(b"Traceback")[0]
                answered = fleet.answered(said)
                spoilt += len(answered) < DEVICES
                wrong += [f"{fault}: {w}" for w in forgotten(fleet.data / "fleet.db", answered)]
                assert step(fleet.data, fleet.requests, "as built") == 0, f"{fault}: {done.stderr}"
    assert not wrong, "\n".join(wrong)
    assert spoilt, "no fault was felt"


def power_cuts(fleet: Fleet, mode: str, place: Path) -> list[str]:
    """Cut the power after every call of one group of exchanges; returns what was forgotten."""
    fleet.restore()
    disk = crash_images.Disk.of(fleet.data)
    with zygote(fleet, mode, place) as ready:
        done = ready._run([*crash_images.STRACE, "-o", str(place / "trace")])
        assert done.returncode == 0, done.stderr
    wrong = []
    answered: list[int] = []
    for what, said, folder in crash_images.images(disk, place / "trace", place):
        answered = fleet.answered(said)
        wrong += [f"{what}: {w}" for w in forgotten(folder / "fleet.db", answered)]
        shutil.rmtree(folder)
    assert len(answered) == DEVICES
    return wrong


def test_power_cut_after_every_call_forgets_no_answered_counter(fleet: Fleet, tmp_path: Path) -> None:
    assert power_cuts(fleet, "as built", tmp_path) == []


@pytest.mark.parametrize("mode", ["unflushed", "early"])
def test_power_cut_is_felt_without_the_flush_or_with_an_early_answer(fleet: Fleet, tmp_path: Path, mode: str) -> None:
    assert any("was answered and its counter is 0" in w for w in power_cuts(fleet, mode, tmp_path))


# The server process ------------------------------------------------------------------------------------------------


def exchange_traced(fleet: Fleet, options: list[str]) -> list[int]:
    """Start a server, attach strace, send one request; returns the numbers of the devices that got an answer."""
    fleet.restore()
    with fleet_world.serving(fleet.data) as server:
        words = ["strace", "-f", *options, "-p", str(server.process.pid)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            assert "attached" in tracer.stderr.readline()
            try:
                reply = FleetExchange(server.base)(fleet.pending[0].m1)
            except TemporaryError:
                return []
            finally:
                server.kill()
                tracer.communicate(timeout=30)
    return fleet.answered(reply.hex().encode() + b"\n")


@pytest.mark.slow
def test_kill_of_the_server_process_at_every_write_and_flush_forgets_no_answered_counter(
    fleet: Fleet, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    assert exchange_traced(fleet, ["-y", "-e", "trace=pwrite64,fdatasync,fsync", "-o", str(log)]) == [0]
    names = [line.split("(")[0].split()[-1] for line in log.read_text().splitlines() if "fleet.db" in line]
    counts = Counter(names)
    assert counts["pwrite64"]
    assert counts["fdatasync"]
    for call, count in counts.items():
        for nth in range(1, count + 1):
            inject = ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={nth}"]
            answered = exchange_traced(fleet, inject)
            assert forgotten(fleet.data / "fleet.db", answered) == [], (call, nth)
            assert answered == [], f"{call} number {nth} came after the answer"

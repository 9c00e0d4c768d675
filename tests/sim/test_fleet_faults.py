"""SIGKILL, EIO and ENOSPC at every call that changes the fleet's directory: publications, new keys. Nothing is half."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.sim import injected
from tests.sim.fleet_once import REPORTED, act
from tests.unit.fleet_world import World, make_bundle
from tests.unit.served_files import assert_consistent

from edgeseal.enrolment import Record
from edgeseal.errors import RefusedError
from edgeseal.suite import PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.unit.fleet_world import Bundle

    from edgeseal_host.fleet.data import DataDirectory
    from edgeseal_host.fleet.public import FleetPublic

DEVICES = 3
ACTIONS = ["publish", "rotate-data-key", "rotate-online-keys", "rotate-wrap"]
pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Fleet:
    """A fleet with devices and release 1; a publication of release 2 waits in a file."""

    data: DataDirectory
    template: Path
    publication: dict[str, Any]
    file: Path
    psks: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def make(cls, place: Path) -> Fleet:
        world = World.make(place)
        one, two = make_bundle("bearing", 1), make_bundle("bearing", 2)
        for bundle in (one, two):
            _place(bundle, world)
        world.publisher.list_release(one)
        psks = {f"d{n}": os.urandom(32) for n in range(DEVICES)}
        with world.data.open() as fleet:
            fleet.publisher.publish(world.publisher.publication(), world.envelope(one))
            for name, psk in psks.items():
                fleet.registry.enrol(_record(name, psk, world.data.public()), psk, now=0)
        world.publisher.list_release(two)
        body = world.publisher.publication().to_json()
        body["envelopes"] = {p: base64.b64encode(e).decode() for p, e in world.envelope(two).items()}
        file = place / "publication.json"
        file.write_text(json.dumps(body))
        shutil.copytree(world.data.path, place / "template")
        return cls(world.data, place / "template", body, file, psks)

    def restore(self) -> None:
        shutil.rmtree(self.data.path)
        shutil.copytree(self.template, self.data.path)


def _place(bundle: Bundle, world: World) -> None:
    for kind, files in bundle.files(world.scratch).items():
        for name, file in files.items():
            place = world.data.path / "objects" / kind / name.hex()[:2] / name.hex()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())


def _record(name: str, psk: bytes, public: FleetPublic) -> Record:
    key = PrivateKey(2, os.urandom(64)).public
    return Record.make(device=name, serial="", hardware="pi", group="g", key=key, psk=psk, enrol=public.enrol)


@pytest.fixture(scope="module")
def fleet(memory_place: Path) -> Fleet:
    return Fleet.make(memory_place)


@pytest.mark.parametrize("action", ACTIONS)
def test_fault_at_every_call_leaves_the_old_or_the_new_state_and_can_be_done_again(
    fleet: Fleet, tmp_path: Path, action: str
) -> None:
    fleet.restore()
    wrong: list[str] = []
    codes: Counter[int] = Counter()
    words = [sys.executable, "-m", "tests.sim.fleet_once", action, fleet.data.path, fleet.file]
    with injected.zygote(words, tmp_path / "out") as ready:
        calls = [c for c in ready.count(tmp_path / "calls") if c.name in injected.CHANGING]
        for fault in faults(calls):
            fleet.restore()
            done = ready.inject(fault)
            codes[done.returncode] += 1
            if done.returncode not in {-9, 0, REPORTED} or "Traceback" in done.stderr:
                wrong.append(f"{fault}: {done.returncode}: {done.stderr}")
            wrong += [f"{fault}: {problem}" for problem in problems(fleet, action)]
    assert not wrong, "\n".join(wrong)
    assert codes[-9] > 5
    assert codes[REPORTED] > 5


def faults(calls: Sequence[injected.Call]) -> Iterator[injected.Fault]:
    """Yield a kill at every call, and EIO or ENOSPC in turn: a server meets both with the same handler."""
    for number, call in enumerate(calls):
        for what in ("signal=SIGKILL", ("error=EIO", "error=ENOSPC")[number % 2]):
            yield injected.Fault(call.name, call.nth, what, call.file)


def problems(fleet: Fleet, action: str) -> list[str]:
    """What is wrong right after a fault, and after the action was repeated."""
    objects = fleet.data.path / "objects"
    try:
        assert_consistent(objects)  # what devices see in this moment
        _check_opens(fleet)
        _again(fleet, action)
        _check_opens(fleet)
        versions = assert_consistent(objects)
        assert action != "publish" or versions["model-bearing.json"] == 2
        public = fleet.data.public()
        assert public.timestamp.keyid == fleet.data.online_keys.announced("timestamp").keyid
        assert public.wrap.raw == fleet.data.ring("wrap").slot("current")[0].key.public.raw
    except Exception as e:  # noqa: BLE001 - all that is wrong, in one run
        return [f"{type(e).__name__}: {e}"]
    return []


def _again(fleet: Fleet, action: str) -> None:
    """Do it again, as a person would, and start the server."""
    try:
        act(action, fleet.data, fleet.publication)
    except RefusedError as e:  # it had been done, but for the last flush: one rotation is enough
        if action != "rotate-online-keys" or "wait already" not in e.message:
            raise
    fleet.data.announce()


def _check_opens(fleet: Fleet) -> None:
    """Every secret opens, and the server could sign."""
    with fleet.data.open() as opened:
        opened.publisher.recover()
        for name, psk in fleet.psks.items():
            assert opened.registry.current_generation(name).psk == psk
        with opened.registry.read() as connection:
            sealed = connection.exec_driver_sql("SELECT path, ck FROM release WHERE ck IS NOT NULL").all()
        assert sealed
        for path, ck in sealed:
            opened.vault.open(b"content key", path.encode(), ck)
        opened.publisher.publish(_nothing(), {})


def _nothing() -> Any:
    from edgeseal_host.repository.verify import Publication

    return Publication()

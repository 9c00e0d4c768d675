"""SIGKILL, EIO and ENOSPC at every call that changes something while records are imported, or their receipt taken."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.sim import injected
from tests.sim.records_once import REPORTED, act
from tests.unit.enrol_world import Records

from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.station import chain, receipts
from edgeseal_host.station.devices import to_send
from edgeseal_host.station.directory import StationDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DEVICES = 2
pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(memory_place: Path) -> Records:
    """Devices that left the line; their records on a stick, in front of a fleet server that trusts the station."""
    found = Records.make(memory_place / "template", DEVICES)
    found.trust()
    (found.world.place / "stick").write_bytes(found.carried())
    return found


@pytest.mark.parametrize("action", ["import", "acknowledge"])
def test_fault_at_every_call_and_the_same_once_more_is_complete(made: Records, tmp_path: Path, action: str) -> None:
    template, place = made.world.place, made.world.place.with_name(action)
    if action == "acknowledge":
        template = template.with_name("imported")
        fresh(made.world.place, template)
        act("import", template)
    wrong: list[str] = []
    codes: Counter[int] = Counter()
    words = [sys.executable, "-m", "tests.sim.records_once", action, place]
    with injected.zygote(words, tmp_path / "out") as ready:
        fresh(template, place)
        calls = [c for c in ready.count(tmp_path / "calls") if c.name in injected.CHANGING]
        for fault in faults(calls):
            fresh(template, place)
            done = ready.inject(fault)
            codes[done.returncode] += 1
            if done.returncode not in {-9, 0, REPORTED} or "Traceback" in done.stderr:
                wrong.append(f"{fault}: {done.returncode}: {done.stderr}")
            wrong += [f"{fault}: {problem}" for problem in problems(made, place, action)]
    assert not wrong, "\n".join(wrong)
    assert codes[-9] > 5
    assert codes[REPORTED] > 3


def fresh(template: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)


def faults(calls: Sequence[injected.Call]) -> Iterator[injected.Fault]:
    """Yield a kill at every call, and EIO or ENOSPC in turn: a command meets both with the same handler."""
    for number, call in enumerate(calls):
        for what in ("signal=SIGKILL", ("error=EIO", "error=ENOSPC")[number % 2]):
            yield injected.Fault(call.name, call.nth, what, call.file)


def problems(made: Records, place: Path, action: str) -> list[str]:
    """What is wrong right after a fault, and after the action was repeated."""
    directory = StationDirectory(place / "station", KeyDirectory(place / "keys"))
    world = replace(made.world, place=place, directory=directory, data=DataDirectory(place / "fleet"))
    found = Records(world, [], [])
    try:
        assert len(found.devices()) <= DEVICES
        act(action, place)
        assert list(found.devices()) == ["press-0001", "press-0002"]
        with found.world.journal() as journal:  # checks chain and head
            waiting = len(list(to_send(journal)))
            assert waiting == (0 if action == "acknowledge" else DEVICES)
            assert journal.count(chain.UPLOADED) == DEVICES - waiting, "each once"
    except Exception as e:  # noqa: BLE001 - all that is wrong, in one run
        return [f"{type(e).__name__}: {e}"]
    return []


def test_a_receipt_that_names_nothing_would_be_found(made: Records) -> None:
    """Negative control of `problems`."""
    place = made.world.place.with_name("control")
    fresh(made.world.place, place)
    act("import", place)
    (place / "receipt").write_bytes(receipts.write([]))
    assert problems(made, place, "acknowledge")

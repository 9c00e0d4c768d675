"""The power is cut before every durable operation of a dialogue and of a factory reset: one identity, or none.

The device's memory is lost with the power; the station's journal is what it was at that moment.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.sim.line_process import converse, device
from tests.sim.serial_line import bench
from tests.sim.volatile import Crash, mounted
from tests.unit.line_card import Card, check, copied
from tests.unit.line_world import SIGNER, Line, order, public

from edgeseal.errors import EdgesealError
from edgeseal.provisioning import CONTEXT, Conversation, FactoryReset, Stage, Station
from edgeseal_host.testing.provisioning import MemoryBook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("fuse"), pytest.mark.timeout(300)]
FAST = 2_000_000


def record(
    tmp_path: Path,
    station: Conversation,
    elsewhere: Callable[[], object],
    *,
    ignore: Callable[[str], bool] = lambda _: False,
    begin: Path | None = None,
) -> list[Crash]:
    """Run one dialogue with a device whose card records; `begin` is what is on the card before."""
    with mounted(tmp_path / "disk", ignore=ignore, elsewhere=elsewhere) as disk, bench(baud=FAST) as (line,):
        if begin is not None:
            disk.load(begin)
        disk.record()
        with device(tmp_path / "device", line.device, state=disk.mountpoint / "state") as agent:
            agent.start("--reset")
            assert converse(station, line.station).passed
            agent.stop()
        disk.finish()
    return disk.crashes


def distinct(crashes: list[Crash]) -> list[Crash]:
    """Leave out states that differ in nothing."""
    return list({repr((c.tree, c.elsewhere)): c for c in crashes}.values())


def provisioned(tmp_path: Path, *, ignore: Callable[[str], bool] = lambda _: False) -> list[Crash]:
    book = MemoryBook()
    station = Station(order(floors={"root": 1}), book, random=os.urandom, clock=time.monotonic)
    return record(tmp_path, station, lambda: copied(book), ignore=ignore)


def recover(crashes: list[Crash], tmp_path: Path) -> set[str]:
    """Complete the dialogue from every state; return how many times the station was asked to name a device."""
    stages = set()
    for number, crash in enumerate(distinct(crashes)):
        card, book = Card(tmp_path / f"after-{number}"), crash.elsewhere
        assert isinstance(book, MemoryBook)
        crash.write(card.directory)
        stages.add(f"{card.home().stage()}, {len(book.offers)} offered, {len(book.done)} done")
        try:
            check(card, copied(book))
        except (AssertionError, EdgesealError, ValueError) as e:
            raise AssertionError(f"{crash}: {e}") from e
    return stages


def test_power_cut_at_every_durable_operation_of_a_dialogue(tmp_path: Path) -> None:
    crashes = provisioned(tmp_path)
    assert len(crashes) > 40
    stages = recover(crashes, tmp_path)
    assert {"fresh, 0 offered, 0 done", "fresh, 1 offered, 0 done", "locked, 1 offered, 1 done"} <= stages


def test_card_that_does_not_flush_the_keys_is_caught(tmp_path: Path) -> None:
    """Negative control: some cut leaves a device whose key is not the one that was offered."""
    crashes = provisioned(tmp_path, ignore=lambda path: path.startswith("/state/keys"))
    with pytest.raises(AssertionError, match="power cut"):
        recover(crashes, tmp_path)


def test_power_cut_at_every_durable_operation_of_a_factory_reset(tmp_path: Path) -> None:
    """Either the identity is whole, or nothing of it is left once the agent has started again."""
    line = Line()
    before = Card(tmp_path / "before")
    before.directory.mkdir()
    assert before.provision(line, order(floors={"root": 1})).passed
    station = FactoryReset(
        public=public(SIGNER),
        sign=lambda message: SIGNER.sign(message, CONTEXT),
        expect=lambda kid, _serial: line.book.offers[kid].commitment,
        random=os.urandom,
        clock=time.monotonic,
    )
    crashes = record(tmp_path, station, lambda: None, begin=before.directory)
    found = set()
    for number, crash in enumerate(distinct(crashes)):
        card = Card(tmp_path / f"after-{number}")
        crash.write(card.directory)
        stage = card.home().stage()
        found.add(stage)
        if stage is Stage.FRESH:
            left = {p.name for p in (card.directory / "state").rglob("*") if p.is_file()}
            assert left <= {"destroyed", "lock", "provision.lock"}, f"{crash}: {left}"
        else:
            assert card.agent().keys.identity().device == "press-1", crash
        again = Line(book=line.book)
        assert card.reset(again).passed, crash
        again.link.now += 20
        assert card.provision(again).passed, crash
    assert found == {Stage.LOCKED, Stage.FRESH}

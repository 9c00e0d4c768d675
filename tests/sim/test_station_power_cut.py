"""The station's power is cut after every call that changes its disk, or leaves it on the line.

Whatever left for the device before is in the journal on the disk; and no disk that an honest power cut leaves is taken
for one that somebody has tampered with.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from tests.sim import crash_images, station_factory

from edgeseal.errors import EdgesealError
from edgeseal.provisioning import wire
from edgeseal.smp import LineDecoder, Op, Packet
from edgeseal_host.station import chain
from edgeseal_host.station.directory import StationDirectory

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("strace"), pytest.mark.timeout(300)]
factory = station_factory.factory
GRANT, LOCK = 2, 3  # numbers of the messages in a session


def sent(line: bytes) -> set[int]:
    """Numbers of the messages that have left, whole or not."""
    packets = [Packet.from_bytes(raw) for raw in LineDecoder().feed(line)]
    return {p.body["n"] for p in packets if p.group == wire.GROUP and p.op is Op.WRITE}


def wrong_after(directory: StationDirectory, left: set[int]) -> list[str]:
    """What a disk lacks, given what had left for the device."""
    try:
        with directory.journal() as journal:
            kinds = {entry.kind for entry in journal}
    except EdgesealError as e:
        return [f"refused: {e}"]
    lacks = [(GRANT, chain.GRANTED), (LOCK, chain.PROVISIONED)]
    return [f"message {n} had left, {kind} is lost" for n, kind in lacks if n in left and kind not in kinds]


def power_cuts(factory: station_factory.Factory, place: Path, *more: str) -> tuple[list[str], int]:
    """Run a station once and cut its power everywhere; returns what was wrong, and how many disks were looked at."""
    factory.fresh()
    own = factory.world.directory
    disk = crash_images.Disk.of(own.path)
    with factory.station(place / "errors", *more) as station:
        done = station._run([*crash_images.STRACE, "-o", str(place / "trace")])
        assert done.returncode == 0, done.stderr
    wrong, seen = [], 0
    for what, _, folder in crash_images.images(disk, place / "trace", place):
        seen += 1
        wrong += [f"{what}: {w}" for w in wrong_after(StationDirectory(folder, own.keys), sent(disk.sent))]
        shutil.rmtree(folder)
    assert sent(disk.sent) == {0, 1, GRANT, LOCK}, "negative control: the line was seen"
    return wrong, seen


def test_power_cut_after_every_call_loses_nothing_that_has_left(
    factory: station_factory.Factory, memory_path: Path
) -> None:
    wrong, seen = power_cuts(factory, memory_path)
    assert wrong == []
    assert seen > 200


def test_power_cut_is_felt_without_the_flush(factory: station_factory.Factory, memory_path: Path) -> None:
    """Negative control: SQLite leaves the flush out."""
    wrong, _ = power_cuts(factory, memory_path, "--unflushed")
    assert any("lost: refused: " in w and "the newest were removed" in w for w in wrong)

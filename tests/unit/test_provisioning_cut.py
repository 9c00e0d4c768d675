"""The cable is pulled at every byte of one dialogue, and either end dies there: the next dialogue completes it.

What is durable changes only a few times in a dialogue of 7,000 bytes: every byte is walked, and from every state that
is new the next run is made.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.line_card import Card, check, copied
from tests.unit.line_world import Line, agree, cut_after

from edgeseal_host.testing.provisioning import Link, MemoryBook, MemoryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal.provisioning import Device, Station

pytestmark = pytest.mark.unit
LENGTH = 6_500  # bytes that a dialogue has at least


def walk(station: Station, device: Device, link: Link) -> Iterator[None]:
    """Carry one dialogue byte by byte; comes up for air after each."""
    while station.verdict is None:
        for source, sink in ((station, device), (device, station)):
            for byte in source.outgoing():
                sink.feed(bytes([byte]))
                link.now += 1 / 11_520
                yield
        link.now += 0.001
    assert station.verdict.passed


def noted(book: MemoryBook) -> tuple[Any, ...]:
    return tuple(sorted(book.offers)), tuple(sorted(book.done)), tuple(sorted(book.locks))


def test_every_byte_in_memory() -> None:
    line, states, walked = Line(), {}, 0
    for _ in walk(line.station(), line.boot(), line.link):
        walked += 1
        home = line.home
        kids = [held and held[0].public.kid for held in (home.pending, home.identity)]
        key = (*kids, home.locked, home.identities, noted(line.book))
        if key not in states:
            states[key] = Line(replace(home), copied(line.book))
    assert walked > LENGTH
    assert len(states) == 7  # nothing, key, offer, identity, provisioned, device locked, lock noted
    for number, state in enumerate(states.values()):
        assert state.provision().passed, number
        agree(state)
        assert state.home.locked


@pytest.mark.parametrize("who", ["station", "device", "both"])
def test_every_packet_boundary_with_one_end_still_running(who: str) -> None:
    """The end that was not killed still has its half of the dialogue in memory."""
    ends: set[int] = set()
    for count in range(0, 7_200, 67):  # shorter than any packet: none is missed
        line = Line(link=Link(mangle=cut_after(count)))
        device, station = line.boot(), line.station(patience=3.0)
        line.link.run(station, device, until=lambda s=station: s.verdict is not None)  # type: ignore[misc]
        line.link._mangle = lambda data, _: data
        line.link.now += 20
        assert line.provision(device=device if who == "station" else line.boot()).passed, count
        agree(line)
        ends.add(line.home.identities)
    assert ends == {1}


def test_cut_that_a_careless_device_does_not_survive_is_caught() -> None:
    """Negative control: a device that draws a new key for every hello ends with another identity than was offered."""

    class Careless(MemoryHome):
        def new_key(self, suite_number: int, policy: Any, host: bytes) -> Any:
            self.pending = None
            return super().new_key(suite_number, policy, host)

    def every_cut() -> None:
        for count in range(0, 7_200, 400):
            line = Line(Careless(), link=Link(mangle=cut_after(count)))
            line.provision(patience=3.0)
            line.link._mangle = lambda data, _: data
            line.link.now += 20
            line.provision()
            agree(line)

    with pytest.raises(AssertionError, match="another identity"):
        every_cut()


# The real disk --------------------------------------------------------------------------------------------------------


def test_every_byte_on_the_real_disk(tmp_path: Path) -> None:
    card, line = Card(tmp_path / "card"), Line()
    card.directory.mkdir()
    device = card.boot(line.link.clock)
    states: dict[Any, tuple[Card, MemoryBook]] = {}
    walked = 0
    for _ in walk(line.station(), device, line.link):
        walked += 1
        key = (card.look(), noted(line.book))
        if key not in states:
            copy = Card(tmp_path / f"state-{len(states)}")
            shutil.copytree(card.directory, copy.directory)
            states[key] = copy, copied(line.book)
    assert walked > LENGTH
    assert len(states) >= 6
    kids = {check(*state) for state in states.values()}
    first, *others = kids
    assert len(others) <= 1, "only the card on which no key had been written may come to another one"
    assert first

"""X1 exchanges in groups: one fails alone, a failing disk fails all, and everybody gets an answer."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.unit import fleet_world
from tests.unit.fleet_world import World

from edgeseal.checkin import Failure, Report
from edgeseal.enrolment import Record
from edgeseal.session.messages import KEY_UNKNOWN, REFUSED, Flags, PendingRequest, Status
from edgeseal.suite import PrivateKey, PublicKey
from edgeseal_host.fleet.exchanges import MOST, ExchangeThread
from edgeseal_host.fleet.registry import GroupLostError
from edgeseal_host.fleet.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgeseal.session.server import Row
    from edgeseal_host.fleet.registry import SqlTransaction


class Devices:
    """Devices of a running service, which make requests."""

    def __init__(self, service: Service, count: int) -> None:
        self.service = service
        public = service.fleet.data.public()
        self.server = PublicKey(1, public.session[0].public)
        self.keys = [PrivateKey(1, os.urandom(32)) for _ in range(count)]
        self.psks = [os.urandom(32) for _ in range(count)]
        for n, (key, psk) in enumerate(zip(self.keys, self.psks, strict=True)):
            record = Record.make(
                device=f"d{n}", serial="", hardware="pi", group="g", key=key.public, psk=psk, enrol=public.enrol
            )
            service.fleet.registry.enrol(record, psk, now=0)

    def request(self, n: int, ctr: int, body: bytes | None = None) -> PendingRequest:
        return PendingRequest(
            server=self.server,
            device=self.keys[n],
            psk=self.psks[n],
            e_seed=os.urandom(32),
            s1=os.urandom(32),
            ctr=ctr,
            flags=Flags.NONE,
            body=fleet_world.report() if body is None else body,
        )

    def counters(self) -> list[int]:
        registry = self.service.fleet.registry
        with registry.read() as connection:
            return [row[0] for row in connection.exec_driver_sql("SELECT ctr FROM device ORDER BY name")]


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[Devices]:
    with World.make(tmp_path).data.open() as fleet:
        service = Service(fleet)
        service.refresh_ring()
        yield Devices(service, 3)
        service.stop()


def test_group_answers_each_request_as_if_it_were_alone(devices: Devices) -> None:
    good, again, junk = devices.request(0, 5), devices.request(0, 5), os.urandom(2746)
    denied = devices.request(1, 1, b"\xff")
    unknown_key = denied.m1[:2] + bytes(16) + denied.m1[18:]
    found = devices.service.x1_group([good.m1, junk, again.m1, denied.m1, unknown_key, b""])
    assert found[1] == found[5] == REFUSED or found[1] == KEY_UNKNOWN
    assert found[4] == KEY_UNKNOWN
    replies = [p.open_reply(m2) for p, m2 in ((good, found[0]), (again, found[2]), (denied, found[3]))]  # type: ignore[arg-type]
    assert [r.status for r in replies] == [Status.OK, Status.STALE, Status.DENIED]
    assert replies[1].body[:8] == (5).to_bytes(8, "big")
    assert devices.counters() == [5, 1, 0]


def failing_for(name: str, real: object) -> object:
    def handler(tx: SqlTransaction, row: Row, body: bytes) -> tuple[Status, bytes]:
        found: tuple[Status, bytes] = real(tx, row, body)  # type: ignore[operator]
        if row.device == name:
            raise RuntimeError("broken")
        return found

    return handler


def test_failing_exchange_is_undone_alone(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.service, "_handler", failing_for("d1", devices.service._handler))
    pending = [devices.request(n, 4) for n in range(3)]
    found = devices.service.x1_group([p.m1 for p in pending])
    assert isinstance(found[1], RuntimeError)
    assert [pending[n].open_reply(found[n]).status for n in (0, 2)] == [Status.OK] * 2  # type: ignore[arg-type]
    assert devices.counters() == [4, 0, 4]


def test_full_disk_answers_nobody_and_keeps_nothing(devices: Devices) -> None:
    """SQLite rolls the whole transaction back when it is full (lang_transaction.html, section 3)."""
    writer = devices.service.fleet.registry._writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count={pages}")
    body = Report.from_bytes(fleet_world.report())
    large = msgspec.structs.replace(body, failed=[Failure("m", 1, "x" * 512)] * 8).to_bytes()
    with pytest.raises(GroupLostError, match="could not write to disk"):
        devices.service.x1_group([devices.request(0, 9).m1, devices.request(1, 9, large).m1])
    assert devices.counters() == [0, 0, 0]
    writer.execute("PRAGMA max_page_count=1000000")
    assert devices.service.x1(devices.request(1, 10, large).m1)[0] == 2
    assert devices.counters() == [0, 10, 0]


def test_operator_and_devices_take_turns(devices: Devices) -> None:
    registry = devices.service.fleet.registry
    answered = threading.Event()

    def exchange() -> None:
        devices.service.x1(devices.request(0, 3).m1)
        answered.set()

    with registry.durably():
        thread = threading.Thread(target=exchange)
        thread.start()
        assert not answered.wait(0.2)
    thread.join(10)
    assert devices.counters()[0] == 3


# The thread --------------------------------------------------------------------------------------------------------


class Answering:
    """Answers each request by itself, as soon as it may; remembers the groups it was given."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.groups: list[list[bytes]] = []

    def __call__(self, requests: Sequence[bytes]) -> list[bytes | Exception]:
        self.groups.append(list(requests))
        assert self.may.wait(30)
        if requests[0] == b"lost":
            raise GroupLostError
        return [ValueError("bad") if r == b"bad" else r for r in requests]


async def ask_all(thread: ExchangeThread, requests: Sequence[bytes], may: threading.Event) -> list[object]:
    first = asyncio.ensure_future(thread.ask(requests[0]))
    await asyncio.sleep(0.1)  # it is being answered by now
    rest = [asyncio.ensure_future(thread.ask(r)) for r in requests[1:]]
    await asyncio.sleep(0)
    may.set()
    return list(await asyncio.gather(first, *rest, return_exceptions=True))


def test_requests_that_come_during_a_flush_share_the_next() -> None:
    answering = Answering()
    thread = ExchangeThread(answering)
    requests = [b"%d" % n for n in range(2 * MOST)]
    assert asyncio.run(ask_all(thread, requests, answering.may)) == requests
    thread.stop()
    assert [len(g) for g in answering.groups] == [1, MOST, MOST - 1]


def test_each_gets_its_own_answer_or_error() -> None:
    answering = Answering()
    thread = ExchangeThread(answering)
    found = asyncio.run(ask_all(thread, [b"first", b"bad", b"good"], answering.may))
    assert (found[0], type(found[1]), found[2]) == (b"first", ValueError, b"good")
    lost = asyncio.run(ask_all(thread, [b"lost", b"after"], answering.may))
    assert (type(lost[0]), lost[1]) == (GroupLostError, b"after")
    thread.stop()


def test_device_that_has_gone_disturbs_nobody() -> None:
    answering = Answering()
    thread = ExchangeThread(answering)

    async def run() -> bytes:
        gone = asyncio.ensure_future(thread.ask(b"gone"))
        await asyncio.sleep(0.05)
        gone.cancel()
        stays = asyncio.ensure_future(thread.ask(b"stays"))
        answering.may.set()
        return await stays

    assert asyncio.run(run()) == b"stays"
    thread.stop()


def test_stop_answers_what_waits() -> None:
    answering = Answering()
    thread = ExchangeThread(answering)

    async def run() -> list[bytes]:
        asked = [asyncio.ensure_future(thread.ask(b"%d" % n)) for n in range(5)]
        await asyncio.sleep(0)
        answering.may.set()
        await asyncio.to_thread(thread.stop)
        return list(await asyncio.gather(*asked))

    assert asyncio.run(run()) == [b"0", b"1", b"2", b"3", b"4"]
    assert not thread._thread.is_alive()

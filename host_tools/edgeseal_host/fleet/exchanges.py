"""X1 requests answered in groups: those that wait at the same moment share one flush to disk.

A flush costs milliseconds, an exchange a fraction of one. Nobody waits for company: an idle server answers a single
request at once, and while it flushes the next group gathers. One thread does it all, because Python runs one at a time
anyway and handing over between several costs more than it gains.

Not here: the protocol (edgeseal.session.server) and the transaction (registry.py).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from edgeseal.session.messages import KEY_UNKNOWN, Reply, Status
from edgeseal.session.server import Opened, RefusalError, answer, decide, open_request
from edgeseal_host.fleet.registry import GroupLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgeseal.session.server import Handler, Ring
    from edgeseal_host.fleet.registry import Group, SqlRegistry, SqlTransaction

MOST: Final = 64  # exchanges of a group: the first of them waits for the last


class Answered(NamedTuple):
    """What one request came to: M2 or an error answer, or the exception that makes the device try again."""

    answer: bytes | Exception
    outcome: str  # for the metrics; the answer itself is sealed


_Waiting: TypeAlias = "tuple[bytes, asyncio.Future[bytes]]"
_Decided: TypeAlias = "tuple[Opened, Status, bytes, str]"


def answer_group(
    requests: Sequence[bytes],
    *,
    ring: Ring,
    registry: SqlRegistry,
    handler: Handler[SqlTransaction],
    now: int,
    random: Callable[[int], bytes],
) -> list[Answered]:
    """Do `session.server.exchange` for several requests under one commit; nothing is answered before it is on disk.

    A failing request fails alone. Raises GroupLostError if the commit failed: then no device gets an answer.
    """
    opened = [_opened(m1, ring, registry, random) for m1 in requests]
    decided: list[_Decided | Answered] = list(opened)  # type: ignore[arg-type]
    if any(isinstance(o, Opened) for o in opened):
        with registry.group() as group:
            decided = [_decided(group, o, handler, random) if isinstance(o, Opened) else o for o in opened]
    return [d if isinstance(d, Answered) else _sealed(*d, now=now) for d in decided]


def _opened(m1: bytes, ring: Ring, registry: SqlRegistry, random: Callable[[int], bytes]) -> Opened | Answered:
    try:
        return open_request(m1, ring=ring, registry=registry, random=random, qkd=lambda _: None)
    except RefusalError as e:
        return Answered(e.answer, "key unknown" if e.answer == KEY_UNKNOWN else "refused")
    except Exception as e:  # noqa: BLE001 - this request fails, the others do not
        return Answered(e, "failed")


def _decided(
    group: Group, opened: Opened, handler: Handler[SqlTransaction], random: Callable[[int], bytes]
) -> _Decided | Answered:
    try:
        with group.step() as tx:
            status, body = decide(tx, opened, handler, random)
    except GroupLostError:
        raise
    except Exception as e:  # noqa: BLE001 - session.md §7: rolled back, the device tries again
        return Answered(e, "failed")
    return opened, status, body, tx.outcome


def _sealed(opened: Opened, status: Status, body: bytes, outcome: str, *, now: int) -> Answered:
    try:
        return Answered(answer(opened, Reply(status, now, body)), outcome)
    except Exception as e:  # noqa: BLE001 - accepted and not answered: to the device a lost reply
        return Answered(e, "failed")


class ExchangeThread:
    """Gathers requests of an event loop into groups and has them answered."""

    def __init__(self, answer_all: Callable[[Sequence[bytes]], Sequence[bytes | Exception]]) -> None:
        """`answer_all` returns one answer, or the exception instead of one, for each request of a group."""
        self._answer_all = answer_all
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="x1", daemon=True)
        self._thread.start()

    async def ask(self, m1: bytes) -> bytes:
        """Return the answer to one request, once everything it rests on is on disk."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.put((m1, future))
        return await future

    def stop(self) -> None:
        """Answer what waits, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        group: list[_Waiting] = []
        while (first := self._waiting.get()) is not None:
            group = [first]
            stopping = self._gather(group)
            try:
                answers: Sequence[bytes | Exception] = self._answer_all([m1 for m1, _ in group])
            except Exception as e:  # noqa: BLE001 - goes to everybody who waits; the thread goes on
                answers = [e] * len(group)
            _deliver(group, answers)
            if stopping:
                return

    def _gather(self, group: list[_Waiting]) -> bool:
        """Add what else waits at this moment; True if the end was asked for."""
        while len(group) < MOST:
            try:
                more = self._waiting.get_nowait()
            except queue.Empty:
                return False
            if more is None:
                return True
            group.append(more)
        return False


def _deliver(group: list[_Waiting], answers: Sequence[bytes | Exception]) -> None:
    """Hand answers over to their event loops, one wake-up for each loop."""
    loops = {future.get_loop() for _, future in group}
    for loop in loops:
        mine = [(f, a) for (_, f), a in zip(group, answers, strict=True) if f.get_loop() is loop]
        with suppress(RuntimeError):  # that loop is closed: nobody waits there
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(answered: list[tuple[asyncio.Future[bytes], bytes | Exception]]) -> None:
    for future, found in answered:
        if future.done():
            continue  # the device has gone
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)

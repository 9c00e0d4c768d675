"""Provisioning a serial number once more: who authorised it and why, and the former identity's end on the device.

The book admits a serial number again only after `authorise`, once. What becomes of the former identity:

    at the fleet server    revoked by an operator; until then the server refuses the new record (fleet/enrolling.py)
    on the device          destroyed by a factory reset that this station signs (docs/spec/provisioning.md §6), or by a
                           new card
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

from edgeseal.errors import RefusedError, TemporaryError, UsageError
from edgeseal.provisioning import Code, FactoryReset, RefusalError
from edgeseal.provisioning.conversation import PATIENCE
from edgeseal_host.station import chain
from edgeseal_host.station.cable import Cable
from edgeseal_host.station.journal import offer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.provisioning import Verdict
    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.directory import StationKey
    from edgeseal_host.station.journal import Journal

MAX_TEXT: Final = 256
_TICK: Final = 0.1


def former(journal: Journal, serial: str) -> Entry:
    """Return the newest identity that was provisioned for a serial number.

    Raises UsageError if there is none: it needs no re-work.
    """
    done = journal.last(chain.PROVISIONED, serial=serial)
    if done is None:
        raise UsageError(
            f"no device of serial number {serial[:80]!r} was provisioned here",
            hint="edgeseal station export lists them; a new device needs no re-work",
        )
    return done


def authorised(journal: Journal, done: Entry) -> bool:
    """Whether re-work was authorised since and has not been used."""
    found = journal.last(chain.AUTHORISED, serial=done.serial)
    return found is not None and found.n > done.n


def authorise(journal: Journal, done: Entry, *, operator: str, reason: str) -> bool:
    """Let this serial number be provisioned once more; False if that is so already.

    Raises UsageError without a reason.
    """
    for text, what in ((operator, "operator"), (reason, "reason")):
        if not text.strip() or len(text) > MAX_TEXT or not text.isprintable():
            raise UsageError(f"--{what}: 1 to {MAX_TEXT} printable characters", hint="the journal keeps it for good")
    if authorised(journal, done):
        return False
    journal.append(
        chain.AUTHORISED,
        operator=operator,
        batch=done.batch,
        device=done.device,
        serial=done.serial,
        kid=done.kid,
        detail={"reason": reason},
    )
    return True


def factory_reset(
    journal: Journal,
    station: StationKey,
    sign: Callable[[bytes], bytes],
    serial: str,
    *,
    patience: float = PATIENCE,
) -> FactoryReset:
    """Return the dialogue that destroys the identity of this serial number, and of no other.

    `sign` signs under `edgeseal.provisioning.CONTEXT` with the station's key.
    """

    def expect(kid: bytes, said: str) -> bytes:
        if said and said != serial:  # a device that is fresh already shows a receipt and no serial number
            raise RefusalError(Code.OPERATOR, f"{said} is on this port, not {serial}", remedy="use its own port")
        granted = journal.last(chain.GRANTED, kid=kid)
        if granted is None or granted.serial != serial:
            raise RefusalError(Code.AUTHORISATION, f"this station gave {serial} no such identity as is on this port")
        return offer_of(granted).commitment

    return FactoryReset(
        public=station.raw, sign=sign, expect=expect, random=os.urandom, clock=time.monotonic, patience=patience
    )


def converse(dialogue: FactoryReset, port: str, baud: int) -> Verdict:
    """Hold a dialogue on a port until its verdict.

    Raises TemporaryError if the port cannot be opened or nobody answers, RefusedError if the device did not do it.
    """
    cable = Cable(port, baud)
    if not cable.open():
        raise TemporaryError(f"{port} cannot be opened: {cable.problem}", hint="is a run using it?")
    try:
        while dialogue.verdict is None:
            cable.write(dialogue.outgoing())
            if not cable.is_open:
                dialogue.abandon()
                break
            wait = 0.0 if cable.waiting else min(_TICK, dialogue.wait() or 0.0)
            ready, _, _ = select.select([cable], [cable] if cable.waiting else [], [], wait or _TICK / 10)
            if ready:
                dialogue.feed(cable.read())
    finally:
        cable.close()
    verdict = dialogue.verdict
    assert verdict is not None  # noqa: S101 - abandoned or over
    if verdict.code in {Code.NO_ANSWER, Code.LINE_BROKE}:
        raise TemporaryError(
            f"the device was not reset: {verdict.reason}",
            hint="it must wait for that: edgeseal-agent provision --reset",
        )
    if not verdict.passed:
        raise RefusedError(f"the device was not reset: {verdict.reason}", hint=verdict.remedy)
    return verdict

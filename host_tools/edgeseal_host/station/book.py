"""Who is admitted at a port and under which name: the dialogue's `Book`, kept in the journal.

a key that was offered a place       the very same offer, whatever happened in between
... and whose identity was replaced  refused: two devices would have been one
a key nobody has seen, new serial    the next name of the batch
... serial number already here       refused, unless somebody has authorised re-work and why is in the journal
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgeseal.provisioning import Code, Offer, Place, RefusalError
from edgeseal_host.station import chain
from edgeseal_host.station.journal import offer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.provisioning import Identity, Provisioned, Verdict
    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.journal import Journal
    from edgeseal_host.station.names import Naming


class PortBook:
    """The journal as one port's dialogue sees it. `seconds` since this device was found, for the timings."""

    def __init__(
        self,
        journal: Journal,
        naming: Naming,
        *,
        batch: str,
        operator: str,
        fixture: str,
        seconds: Callable[[], float],
    ) -> None:
        """`fixture` is the port: it goes into every entry."""
        self._journal = journal
        self._naming = naming
        self._where: dict[str, Any] = {"batch": batch, "operator": operator, "fixture": fixture}
        self._seconds = seconds
        self._timings: dict[str, float] = {}

    # What the dialogue asks (edgeseal.provisioning.Book) -------------------------------------------------------------

    def admit(self, identity: Identity) -> Place | Offer:
        """Name a device that proved its key, or return what was offered to this very key before.

        Raises RefusalError.
        """
        asked, kid = identity.asked, identity.key.kid
        known = self._journal.last(chain.GRANTED, kid=kid)
        done = self._journal.last(chain.PROVISIONED, serial=asked.serial)
        if known is not None:
            if known.serial != asked.serial:
                raise RefusalError(
                    Code.KEY_SEEN, f"{asked.serial} shows the key that was given to {known.serial} before"
                )
            newest = self._journal.last(chain.GRANTED, serial=asked.serial)
            if newest is not None and newest.kid != kid:
                raise RefusalError(
                    Code.SERIAL_SEEN,
                    f"{asked.serial} shows a former key of its own; it was granted another as {newest.device} since",
                    remedy="put it aside: its card was written back to an older state, or it is a copy",
                )
            return offer_of(known)
        if done is not None and not self._rework(done):
            raise RefusalError(
                Code.SERIAL_SEEN, f"serial number {asked.serial} was already provisioned, as {done.device}"
            )
        return self._naming.place(self._journal, asked)

    def _rework(self, done: Entry) -> bool:
        """Whether somebody authorised to provision this serial number again since it was."""
        authorised = self._journal.last(chain.AUTHORISED, serial=done.serial)
        return authorised is not None and authorised.n > done.n

    def granted(self, offer: Offer, identity: Identity) -> None:
        """Keep the offer: the grant leaves next."""
        self._write(chain.GRANTED, offer, identity, sealed=offer.to_bytes())

    def provisioned(self, result: Provisioned) -> None:
        """Keep that the device has confirmed, once."""
        if self._journal.last(chain.PROVISIONED, kid=result.offer.kid) is None:
            self._write(chain.PROVISIONED, result.offer, result.identity)

    def locked(self, result: Provisioned) -> None:
        """Keep that the device answers no station any more, once."""
        if self._journal.last(chain.LOCKED, kid=result.offer.kid) is None:
            self._write(chain.LOCKED, result.offer, result.identity)

    def finished(self, serial: str) -> bool:
        """Whether the device of this serial number was provisioned here and nobody has heard of its lock yet."""
        return is_unheard_lock(self._journal, serial)

    # What the port tells -----------------------------------------------------------------------------------------

    def lock_was_heard(self, serial: str) -> str:
        """Keep that a device said itself that it is locked; returns its name. Only after `finished` said yes."""
        done = self._journal.last(chain.PROVISIONED, serial=serial)
        if done is None:
            return ""
        kept = {name: getattr(done, name) for name in (*_BOARD, "device", "serial", "kid")}
        self._journal.append(chain.LOCKED, timings=self._times(chain.LOCKED), **self._where, **kept)
        return done.device

    def failed(self, verdict: Verdict, serial: str, identity: Identity | None) -> None:
        """Keep why a device left with FAIL."""
        detail = {"code": int(verdict.code or 0), "reason": verdict.reason}
        values: dict[str, Any] = {"serial": serial}
        if identity is not None:
            values = {**_board(identity), "serial": identity.asked.serial, "kid": identity.key.kid}
        self._journal.append(chain.FAILED, detail=detail, timings=self._times(chain.FAILED), **self._where, **values)

    def _write(self, kind: str, offer: Offer, identity: Identity, *, sealed: bytes = b"") -> None:
        detail = {
            "group": offer.group,
            "suite": offer.suite,
            "hardware": identity.asked.hardware,
            "agent": identity.asked.agent,
            "entropy": {"policy": identity.entropy.policy, "sources": list(identity.entropy.sources)},
        }
        self._journal.append(
            kind,
            detail=detail,
            timings=self._times(kind),
            device=offer.device,
            serial=offer.serial,
            kid=offer.kid,
            **self._where,
            **_board(identity),
            offer=sealed,
        )

    def _times(self, kind: str) -> str:
        self._timings[kind] = round(self._seconds(), 3)
        return json.dumps(self._timings)


_BOARD = ("eth_mac", "mmc_cid", "rpi_duid", "board_revision")


def _board(identity: Identity) -> dict[str, str]:
    return {name: getattr(identity.board, name) for name in _BOARD}


def is_unheard_lock(journal: Journal, serial: str) -> bool:
    """Whether the newest identity of a serial number was provisioned, and the station was killed before it locked."""
    done = journal.last(chain.PROVISIONED, serial=serial)
    return done is not None and journal.last(chain.LOCKED, kid=done.kid) is None


def locked_as(journal: Journal, serial: str) -> Entry | None:
    """Return the entry that a device of this serial number was locked with, if its newest identity was."""
    done = journal.last(chain.PROVISIONED, serial=serial)
    return None if done is None else journal.last(chain.LOCKED, kid=done.kid)

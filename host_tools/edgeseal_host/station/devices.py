"""The devices a journal knows: one row each, put together from its entries; what leaves the station begins here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edgeseal_host.station import chain
from edgeseal_host.station.journal import offer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.provisioning import Offer
    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.journal import Journal


@dataclass(frozen=True, slots=True)
class Made:
    """A device that confirmed. `entry` is its `provisioned`; `timings` in seconds since it was found."""

    entry: Entry
    timings: dict[str, float]
    locked: bool
    uploaded: bool

    def row(self) -> dict[str, Any]:
        """Return what may be shown, under the names of Raspberry Pi's own factory tool where it has them."""
        entry, detail = self.entry, self.entry.details()
        return {
            "device": entry.device,
            "group": detail.get("group", ""),
            "batch": entry.batch,
            "serial": entry.serial,
            "eth_mac": entry.eth_mac,
            "mmc_cid": entry.mmc_cid,
            "rpi_duid": entry.rpi_duid,
            "board_revision": entry.board_revision,
            "provision_ts": timestamp(entry.provision_ts),
            "operator": entry.operator,
            "fixture": entry.fixture,
            "timings": self.timings,
            "kid": entry.kid.hex(),
            "suite": detail.get("suite", 0),
            "hardware": detail.get("hardware", ""),
            "agent": detail.get("agent", ""),
            "entropy": detail.get("entropy", {}),
            "locked": self.locked,
            "uploaded": self.uploaded,
        }


def made(journal: Journal, *, batch: str | None = None) -> Iterator[Made]:
    """Return every device that was provisioned, oldest first, or those of one batch."""
    locked = {e.kid: e for e in journal.of_kind(chain.LOCKED)}
    uploaded = {e.kid for e in journal.of_kind(chain.UPLOADED)}
    for entry in journal.of_kind(chain.PROVISIONED):
        if batch is None or entry.batch == batch:
            last = locked.get(entry.kid, entry)
            yield Made(entry, json.loads(last.timings), entry.kid in locked, entry.kid in uploaded)


def newest(journal: Journal, *, batch: str | None = None) -> Iterator[Made]:
    """Return every serial number's newest identity, oldest first.

    A former one is gone once the device was given another: a row in a registry for it would have no device.
    """
    last = {e.serial: e.kid for e in journal.of_kind(chain.GRANTED)}
    yield from (m for m in made(journal, batch=batch) if last[m.entry.serial] == m.entry.kid)


def to_send(journal: Journal, *, batch: str | None = None) -> Iterator[Made]:
    """Return those of them whose record the fleet server does not have yet."""
    yield from (m for m in newest(journal, batch=batch) if not m.uploaded)


def offer_for(journal: Journal, kid: bytes) -> Offer:
    """Return the offer that a provisioned device confirmed."""
    granted = journal.last(chain.GRANTED, kid=kid)
    assert granted is not None  # noqa: S101 - the dialogue confirms nothing that was not granted, and the chain holds
    return offer_of(granted)


def timestamp(seconds: int) -> str:
    """ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

"""How a station's journal stands: what was made in each batch, and what an earlier run left unfinished."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeseal_host.station import chain
from edgeseal_host.station.devices import timestamp

if TYPE_CHECKING:
    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.journal import Journal

_COUNTED = (chain.GRANTED, chain.PROVISIONED, chain.LOCKED, chain.FAILED, chain.UPLOADED)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A device that was granted an identity and is not locked; `last` is the newest the journal knows of it."""

    last: Entry

    @property
    def remedy(self) -> str:
        """What to do with it."""
        again = f"put {self.last.serial} on a port again: it goes on as {self.last.device}"
        if self.last.kind == chain.PROVISIONED:
            return f"{again}; if it answers no more, it is provisioned and has locked itself"
        return again


@dataclass(frozen=True, slots=True)
class Standing:
    """Counts of entries by batch and kind, and what is unfinished. A device may have failed many times."""

    counts: dict[str, Counter[str]]
    unfinished: tuple[Unfinished, ...]
    last: Entry | None

    def summary(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "batches": [
                {"batch": batch, **{kind: found[kind] for kind in _COUNTED}} for batch, found in self.counts.items()
            ],
            "unfinished": [
                {"serial": u.last.serial, "device": u.last.device, "since": u.last.kind, "remedy": u.remedy}
                for u in self.unfinished
            ],
            "last_entry": None if self.last is None else timestamp(self.last.provision_ts),
        }


def standing(journal: Journal) -> Standing:
    """Read a whole journal."""
    counts: dict[str, Counter[str]] = {}
    open_: dict[bytes, Entry] = {}
    newest: dict[str, bytes] = {}
    for kind in _COUNTED:
        for entry in journal.of_kind(kind):
            counts.setdefault(entry.batch, Counter())[kind] += 1
            if kind == chain.GRANTED:
                newest[entry.serial] = entry.kid
            if kind in {chain.GRANTED, chain.PROVISIONED}:
                open_[entry.kid] = entry
            elif kind == chain.LOCKED:
                open_.pop(entry.kid, None)
    current = set(newest.values())  # a former identity of a serial number can never be finished any more
    unfinished = tuple(Unfinished(e) for kid, e in open_.items() if kid in current)
    return Standing(counts, unfinished, journal.head)

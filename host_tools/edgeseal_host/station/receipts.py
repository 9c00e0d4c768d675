"""The way back of carried records: which ones a fleet server has, so that the next file holds only what is new.

    {"format": "edgeseal/enrolments-receipt/1", "records": ["SHA-384 of a record, hex", …]}

A receipt is not signed. Who alters one makes a station believe that a record arrived, as he could by losing the stick:
`station carry --all` writes everything again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from edgeseal.errors import FormatError
from edgeseal_host.station.devices import offer_for, to_send
from edgeseal_host.station.uploader import note_uploaded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeseal_host.station.journal import Journal

FORMAT: Final = "edgeseal/enrolments-receipt/1"
MAX_FILE: Final = 16 * 2**20  # 160,000 records


class _Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["edgeseal/enrolments-receipt/1"]
    records: list[Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{96}\Z")]]


def digest(record: bytes) -> bytes:
    """48 bytes that name a record."""
    return hashlib.sha384(record).digest()


def write(digests: Iterable[bytes]) -> bytes:
    """Return a receipt for the records of these digests."""
    found = _Receipt(FORMAT, sorted({d.hex() for d in digests}))
    return msgspec.json.encode(found) + b"\n"


def read(data: bytes) -> frozenset[bytes]:
    """Return the digests in a receipt.

    Raises FormatError.
    """
    try:
        found = msgspec.json.decode(data, type=_Receipt)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise FormatError(
            f"this is no receipt of enrolment records: {e}", hint="edgeseal fleet import-enrolments --receipt makes one"
        ) from e
    return frozenset(bytes.fromhex(text) for text in found.records)


def acknowledge(journal: Journal, taken: frozenset[bytes]) -> tuple[list[str], int]:
    """Write down whose record the fleet server has; returns their names, and how many records wait still."""
    waiting = list(to_send(journal))
    there = [m.entry for m in waiting if digest(offer_for(journal, m.entry.kid).record) in taken]
    for entry in there:
        note_uploaded(journal, entry)
    return [entry.device for entry in there], len(waiting) - len(there)

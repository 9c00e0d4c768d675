"""One entry of a station's journal and the chain that holds all of them together: pure, no file.

    hash = SHA-384(CBOR([version, every field but hash])),  previous = that of the entry before, first 48 zeros

An edited entry no longer has its hash, a removed or moved one leaves its neighbour with a wrong `previous`. Who can
write the file could calculate all hashes anew: the station's signature in every `ended` entry stops that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from edgeseal import cbor
from edgeseal.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

VERSION: Final = "edgeseal/journal/1"
HASH_LENGTH: Final = 48
START: Final = bytes(HASH_LENGTH)
CONTEXT: Final = b"edgeseal station journal"  # FIPS 204 §5.2: a signature for this serves nothing else

OPENED: Final = "opened"  # the journal was made, by this station
BEGAN: Final = "began"  # a run
GRANTED: Final = "granted"  # an offer exists; its grant may leave
PROVISIONED: Final = "provisioned"  # the device confirmed
LOCKED: Final = "locked"  # it answers no station any more
FAILED: Final = "failed"  # a device left with FAIL
AUTHORISED: Final = "authorised"  # a serial number may be provisioned once more
UPLOADED: Final = "uploaded"  # the fleet server has the record
ENDED: Final = "ended"  # a run ended; the station's signature over everything before


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal; names as Raspberry Pi's own factory tool has them. Nothing in it is secret.

    `provision_ts` in Unix seconds, `kid` 16 bytes or none, `offer` an `Offer` as bytes (grant and record in it are
    sealed), `timings` JSON of seconds by step, `detail` JSON of what only this kind has.
    """

    n: int
    kind: str
    provision_ts: int
    operator: str = ""
    fixture: str = ""
    batch: str = ""
    device: str = ""
    serial: str = ""
    eth_mac: str = ""
    mmc_cid: str = ""
    rpi_duid: str = ""
    board_revision: str = ""
    kid: bytes = b""
    offer: bytes = b""
    timings: str = "{}"
    detail: str = "{}"
    previous: bytes = START
    hash: bytes = b""

    def details(self) -> dict[str, Any]:
        """Return `detail` as an object."""
        found = json.loads(self.detail)
        return found if isinstance(found, dict) else {}


COLUMNS: Final = tuple(field.name for field in fields(Entry))


def digest(entry: Entry) -> bytes:
    """48 bytes over every field but `hash`."""
    values = astuple(entry)[: COLUMNS.index("hash")]
    return hashlib.sha384(cbor.encode([VERSION, *values])).digest()


def linked(entry: Entry, previous: Entry | None) -> Entry:
    """Return the entry as the one that follows `previous`."""
    n, before = (previous.n + 1, previous.hash) if previous else (1, START)
    placed = replace(entry, n=n, previous=before)
    return replace(placed, hash=digest(placed))


def check(entries: Iterable[Entry], verify: Callable[[bytes, bytes], bool]) -> tuple[int, int]:
    """Walk the chain; return how many entries there are and up to which one the station has signed.

    `verify(signature, message)` checks the station's signature. Raises IntegrityError naming the first entry at fault.
    """
    count, signed, before = 0, 0, START
    for entry in entries:
        count += 1
        if entry.n != count:
            raise _broken(count, f"entry {entry.n} stands there: entries were removed or reordered")
        if digest(entry) != entry.hash:
            raise _broken(count, f"it was edited ({_about(entry)})")
        if entry.previous != before:
            raise _broken(count, f"it does not follow entry {count - 1}: entries were removed, reordered or put in")
        if entry.kind == ENDED:
            if not verify(_signature(entry), before):
                raise _broken(count, "its signature is not this station's: what is before it was written anew")
            signed = count
        before = entry.hash
    return count, signed


def _signature(entry: Entry) -> bytes:
    try:
        return bytes.fromhex(str(entry.details().get("signature", "")))
    except ValueError:
        return b""


def _about(entry: Entry) -> str:
    who = entry.device or entry.serial
    return f"{entry.kind}{', ' if who else ''}{who}"[:120]


def _broken(n: int, what: str) -> IntegrityError:
    return IntegrityError(
        f"the journal is not what was written: entry {n}: {what}",
        hint="stop the line, keep the file as it is and restore the journal from its last backup",
    )

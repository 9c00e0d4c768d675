"""Why a device is not provisioned, in words a technician can act on, and the codes that travel.

Each reason is one code, one sentence, one remedy; the station's screen and the device's answer use the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from edgeseal.errors import RefusedError


class Code(IntEnum):
    """Why not. 1 to 127 a device says, from 128 on the station decides or finds."""

    MALFORMED = 1
    INCOMPATIBLE = 2
    SUITE = 3
    ENTROPY = 4
    PROVISIONED = 5
    LOCKED = 6
    NOT_OURS = 7
    STORAGE = 8
    NO_PIN = 9
    AUTHORISATION = 10
    BUSY = 11
    NOTHING_HERE = 12

    NO_ANSWER = 128
    WRONG_BOARD = 129
    KEY_SEEN = 130
    SERIAL_SEEN = 131
    UNHEALTHY = 132
    IMPOSTOR = 133
    NO_RECEIPT = 134
    JOURNAL = 135
    OPERATOR = 136
    LINE_BROKE = 137
    NO_PORT = 138


REMEDIES: Final[dict[Code, str]] = {
    Code.MALFORMED: "run it again; if it comes back, install the same edgeseal on station and device",
    Code.INCOMPATIBLE: "install the same edgeseal on station and device",
    Code.SUITE: "choose a suite in the batch file that this device's edgeseal has",
    Code.ENTROPY: "plug in the noise source and wait until its light is steady, or allow `mix` in the batch file",
    Code.PROVISIONED: "put the device aside: it belongs to somebody; a factory reset by its own station frees it",
    Code.LOCKED: "nothing to do if it was provisioned here; otherwise put it aside",
    Code.NOT_OURS: "take other stations off this device's cables and run it again",
    Code.STORAGE: "replace the SD card",
    Code.NO_PIN: "this device was enrolled by hand: revoke it and write its card anew",
    Code.AUTHORISATION: "use the station that provisioned it",
    Code.BUSY: "take other stations' cables off, wait ten seconds, run it again",
    Code.NOTHING_HERE: "nothing to do: the device has no identity",
    Code.NO_ANSWER: "check power, ground and that TX and RX cross; the device must be booted and not provisioned yet",
    Code.WRONG_BOARD: "take the board the batch file names, or the batch file for this board",
    Code.KEY_SEEN: "put the device aside: its random source is dead or its card is a copy",
    Code.SERIAL_SEEN: "put it aside, or authorise re-work for this serial number",
    Code.UNHEALTHY: "plug in the noise source and wait until its light is steady, or allow `mix` in the batch file",
    Code.IMPOSTOR: "put the device aside: it cannot use the key it shows",
    Code.NO_RECEIPT: "put the device aside and tell the supervisor: it confirmed another grant",
    Code.JOURNAL: "free disk space on the station or repair its journal, then run it again: it goes on where it was",
    Code.OPERATOR: "ask whoever set up this batch",
    Code.LINE_BROKE: "plug the cable in again and run it again: it goes on where it was",
    Code.NO_PORT: "use another port",
}


class RefusalError(RefusedError):
    """One side goes no further; message and hint are for the technician."""

    def __init__(self, code: Code, reason: str, *, remedy: str | None = None) -> None:
        """`remedy` replaces the table's sentence where there is something better to say."""
        super().__init__(reason, hint=remedy or REMEDIES[code])
        self.code = code


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the station shows for a port. `code` is None for a pass."""

    passed: bool
    reason: str
    remedy: str = ""
    code: Code | None = None

    @classmethod
    def failed(cls, refusal: RefusalError) -> Verdict:
        """Make a verdict of a refusal."""
        return cls(passed=False, reason=refusal.message, remedy=refusal.hint or "", code=refusal.code)

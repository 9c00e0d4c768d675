"""The order of a dialogue, for both roles: tables first, then one small class that holds to them.

station  HELLO      CHALLENGE   GRANT      LOCK             RESET         AUTHORISE
device     IDENTITY       PROOF    CONFIRM    LOCKED           RESET_NONCE          DESTROYED

carried by hand (the device is a file)   HELLO IDENTITY GRANT CONFIRM
identity destroyed already               RESET DESTROYED
any answer may be REFUSED, and nothing follows it
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from edgeseal.errors import FormatError
from edgeseal.provisioning.messages import Kind


class Step(StrEnum):
    """How far a dialogue has come; the words a technician sees."""

    CALLING = "calling"
    GREETED = "greeted"
    IDENTIFIED = "identified"
    CHALLENGED = "challenged"
    PROVEN = "proven"
    GRANTED = "granted"
    CONFIRMED = "confirmed"
    LOCKING = "locking"
    LOCKED = "locked"
    CARRYING = "carrying"
    CARRIED = "carried"
    RESETTING = "resetting"
    RESET_OFFERED = "reset offered"
    AUTHORISED = "authorised"
    DESTROYED = "destroyed"
    REFUSED = "refused"


NEXT: Final[dict[tuple[Step, Kind], Step]] = {
    (Step.CALLING, Kind.HELLO): Step.GREETED,
    (Step.GREETED, Kind.IDENTITY): Step.IDENTIFIED,
    (Step.IDENTIFIED, Kind.CHALLENGE): Step.CHALLENGED,
    (Step.CHALLENGED, Kind.PROOF): Step.PROVEN,
    (Step.PROVEN, Kind.GRANT): Step.GRANTED,
    (Step.GRANTED, Kind.CONFIRM): Step.CONFIRMED,
    (Step.CONFIRMED, Kind.LOCK): Step.LOCKING,
    (Step.LOCKING, Kind.LOCKED): Step.LOCKED,
    (Step.CALLING, Kind.RESET): Step.RESETTING,
    (Step.RESETTING, Kind.RESET_NONCE): Step.RESET_OFFERED,
    (Step.RESETTING, Kind.DESTROYED): Step.DESTROYED,
    (Step.RESET_OFFERED, Kind.AUTHORISE): Step.AUTHORISED,
    (Step.AUTHORISED, Kind.DESTROYED): Step.DESTROYED,
}
CARRIED: Final[dict[tuple[Step, Kind], Step]] = {
    (Step.CALLING, Kind.HELLO): Step.GREETED,
    (Step.GREETED, Kind.IDENTITY): Step.IDENTIFIED,
    (Step.IDENTIFIED, Kind.GRANT): Step.CARRYING,
    (Step.CARRYING, Kind.CONFIRM): Step.CARRIED,
}
ANSWERED: Final = frozenset(  # where a station waits, so where a device may refuse
    {Step.GREETED, Step.CHALLENGED, Step.GRANTED, Step.LOCKING, Step.RESETTING, Step.AUTHORISED, Step.CARRYING}
)
FINAL: Final = frozenset({Step.LOCKED, Step.CARRIED, Step.DESTROYED, Step.REFUSED})


class Machine:
    """Where one dialogue stands. Both roles move it with every message they send or accept."""

    def __init__(self, *, carried: bool = False) -> None:
        """`carried` is the station's choice and never the line's: see `Hello.carried`."""
        self.step = Step.CALLING
        self._table = CARRIED if carried else NEXT

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return self.step in FINAL

    def allows(self, kind: Kind) -> bool:
        """Whether a message of this kind may come now."""
        return (self.step, kind) in self._table or (kind is Kind.REFUSED and self.step in ANSWERED)

    def move(self, kind: Kind) -> Step:
        """Take a step.

        Raises FormatError for a message that has no place here.
        """
        if not self.allows(kind):
            raise FormatError(f"{kind.name} has no place in a dialogue that is {self.step}")
        self.step = Step.REFUSED if kind is Kind.REFUSED else self._table[self.step, kind]
        return self.step

    def refuse(self) -> None:
        """End here, whatever came: nothing of this dialogue is accepted any more."""
        self.step = Step.REFUSED

"""How a batch names its devices (a pattern with the next number, or the serial number), and their groups."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edgeseal.errors import UsageError
from edgeseal.provisioning import Code, Place, RefusalError
from edgeseal_host.station import chain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgeseal.enrolment import Request
    from edgeseal_host.station.journal import Journal

FIELDS: Final = ("number", "serial", "batch")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_STRANGE: Final = re.compile(r"[^a-z0-9._-]+")
_LAST: Final = 9_999_999


@dataclass(frozen=True, slots=True)
class Naming:
    """`pattern` as str.format has it, with {number}, {serial}, {batch}; `groups` by name of hardware."""

    pattern: str
    batch: str
    first: int = 1
    group: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise UsageError for a pattern that cannot tell two devices apart or names no device."""
        fields = [name for _, name, _, _ in _parsed(self.pattern) if name is not None]
        if unknown := [name for name in fields if name not in FIELDS]:
            raise UsageError(
                f"{{{unknown[0]}}} is nothing a name can have", hint="there are {number}, {serial}, {batch}"
            )
        if not {"number", "serial"} & set(fields):
            raise UsageError(
                f"{self.pattern!r} names every device the same", hint="put {number:04} or {serial} into it"
            )
        if not _NAME.fullmatch(example := self.name(self.first, "10000000abcdef01")):
            raise UsageError(f"{example!r} cannot be a device's name", hint="1 to 64 of a-z 0-9 . _ -")

    def name(self, number: int, serial: str) -> str:
        """Return the name of a device."""
        clean = _STRANGE.sub("-", serial.lower()).strip("-.")
        batch = _STRANGE.sub("-", self.batch.lower()).strip("-.")
        try:
            return self.pattern.format(number=number, serial=clean or "unknown", batch=batch)
        except (ValueError, IndexError, KeyError, AttributeError) as e:
            raise UsageError(f"{self.pattern!r} is no pattern: {e}", hint="for example press-{number:04}") from e

    def place(self, journal: Journal, asked: Request) -> Place:
        """Return the first free name, and the group.

        Raises RefusalError if there is none.
        """
        return Place(self._free(journal, asked.serial), self._group(asked.hardware))

    def _free(self, journal: Journal, serial: str) -> str:
        again = 1
        number = self.first + journal.count(chain.GRANTED, batch=self.batch)  # a first guess; names decide
        while number <= _LAST:
            name = self.name(number, serial)
            if "{number" not in self.pattern and again > 1:
                name = f"{name}-{again}"  # re-work: the former name is in the fleet's registry
            if not _NAME.fullmatch(name):
                raise RefusalError(
                    Code.OPERATOR,
                    f"{name[:80]!r} cannot be a device's name",
                    remedy="change `names.pattern` of the batch",
                )
            if journal.last(chain.GRANTED, device=name) is None:
                return name
            number, again = number + 1, again + 1
        raise RefusalError(Code.OPERATOR, f"no number is left for {self.pattern!r}")

    def _group(self, hardware: str) -> str:
        for name in (part.strip() for part in hardware.split(",")):
            if name in self.groups:
                return self.groups[name]
        return self.group


def _parsed(pattern: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(pattern))
    except ValueError as e:
        raise UsageError(f"{pattern!r} is no pattern: {e}", hint="for example press-{number:04}") from e

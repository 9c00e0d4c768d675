"""TectroLabs SwiftRNG: two avalanche sources, a classical device whose two raw streams can be read.

Protocol (TectroLabs swrngapi.c 3.7): send one character, read the answer and one status byte (0 is good). `<` and `>`
give 16,000 raw bytes of source 0 or 1, `x` the device's combined output, `m` `v` `s` model, version and serial number,
`d` (from version 2.0) runs the self-test. The device is a CDC-ACM one (tectrolabs.com/docs/swiftrng/swrandom: the
kernel's ACM driver is needed), and the vendor's Windows code sends the same characters over that port; so does this.

Readings alternate between the two sources, so that a dead one cannot hide behind the other. Claim: half of each byte.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Hung, Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.line import Line, SerialDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Description

PROFILE: Final = Profile("swiftrng", "classical", "vendor")
RAW: Final = Symbols(bits=8, claim=4.0, raw=True)
COOKED: Final = Symbols(bits=8, claim=4.0, raw=False)
IDS: Final = frozenset({(0x1FC9, 0x8110), (0x1FC9, 0x8111)})
BLOCK: Final = 16_000
BAUD: Final = 115_200  # meaningless on USB, but the port wants one
_MODEL, _VERSION, _SERIAL = 8, 4, 15  # answer lengths without the status byte
_SELF_TEST_FROM: Final = 2.0
_QUIET: Final = 0.05


class SwiftRng(SerialDriver):
    """An open SwiftRNG."""

    def __init__(self, description: Description, options: Options) -> None:
        """Open the port, ask for its names and run its self-test. Raises DriverError."""
        super().__init__(Line(description.path, BAUD), PROFILE, description)
        self.symbols = COOKED if options.conditioned else RAW
        self._commands = b"x" if options.conditioned else b"<>"
        self._turn = 0
        self._owed = bytearray()  # the part of an answer that came before the time was up
        self._asked = b""
        try:
            self._line.drain(quiet=_QUIET)
            version = self._text(b"v", _VERSION)
            firmware = f"{self._text(b'm', _MODEL)} {version} {self._text(b's', _SERIAL)}"
            self._description = replace(
                description, firmware=firmware
            )  # the serial stays the descriptor's: an identity
            if _version(version) >= _SELF_TEST_FROM:
                self._ask(b"d", 0, timeout=2.0)
        except BaseException:
            self.close()
            raise

    def read(self, *, timeout: float) -> Reading:
        """Return 16,000 bytes of one noise source, of the other one next time. Raises DriverError.

        A slow device may need more than one call: what came stays here, and Hung says how far it is.
        """
        command = self._commands[self._turn % len(self._commands) :][:1]
        reading = Reading(self._ask(command, BLOCK, timeout=timeout))
        self._turn += 1
        return reading

    def _ask(self, command: bytes, length: int, *, timeout: float) -> bytes:
        """Send one command and return its answer. Raises Refused if the status byte is not 0."""
        if self._asked != command:
            self._line.write(command)
            self._asked, self._owed = command, bytearray()
        self._owed += self._line.read(length + 1 - len(self._owed), timeout=timeout)
        if len(self._owed) <= length:
            raise Hung(f"{self._line.path}: gave {len(self._owed)} of {length + 1} bytes in {timeout:.2f} s")
        answer, self._asked, self._owed = bytes(self._owed), b"", bytearray()
        if answer[length]:
            raise Refused(f"{self._line.path}: status {answer[length]}: the device calls itself faulty")
        return answer[:length]

    def _text(self, command: bytes, length: int) -> str:
        raw = self._ask(command, length, timeout=1.0).split(b"\0")[0].decode("ascii", "replace")
        return "".join(c if c.isprintable() else "?" for c in raw)


def _version(text: str) -> float:
    """Return 2.0 of "V2.0"; 0 if it is not a version."""
    found = re.fullmatch(r"V?(\d{1,2}\.\d)", text)
    return float(found[1]) if found else 0.0

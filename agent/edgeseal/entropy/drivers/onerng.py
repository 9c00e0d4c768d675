"""Moonbase Otago OneRNG: avalanche diode, a classical source with open firmware; read raw, without its CRC whitener.

Protocol (OneRNG/firmware cdc_app.c): CDC-ACM with RTS set; commands are `cmd` and a letter: `O` run, `o` pause, `w`
flush, `v` version, or a hexadecimal digit for the mode: bit 0 no CRC16 whitening, bit 1 radio on, bit 2 avalanche off.
So `cmd4` is silence, in which the version is asked for, and `cmd1` is the raw avalanche. While the host reads
slower than the diode makes, the firmware XORs new bytes over waiting ones: still nothing that was not sampled.

Claim: half of each byte. The signed firmware image (`cmdX`) is not checked here; onerng.info has a tool for that.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.line import Line, SerialDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Description

PROFILE: Final = Profile("onerng", "classical", "vendor")
RAW: Final = Symbols(bits=8, claim=4.0, raw=True)
COOKED: Final = Symbols(bits=8, claim=4.0, raw=False)
IDS: Final = frozenset({(0x1D50, 0x6086)})
BAUD: Final = 115_200  # meaningless on USB, but the port wants one
FRAME: Final = 512
RUN, PAUSE, FLUSH, VERSION = b"O", b"o", b"w", b"v"
SILENT, AVALANCHE_RAW, AVALANCHE = b"4", b"1", b"0"
_ANSWER: Final = re.compile(rb"Version (\d{1,4})\r\n")
_QUIET: Final = 0.05


class OneRng(SerialDriver):
    """An open OneRNG."""

    def __init__(self, description: Description, options: Options) -> None:
        """Open the port, ask for the version in silence, then start the diode. Raises DriverError."""
        super().__init__(Line(description.path, BAUD), PROFILE, description)
        self.symbols = COOKED if options.conditioned else RAW
        try:
            self._stop()
            self._description = replace(description, firmware=f"version {self._version()}")
            self._stop()
            self._command(AVALANCHE if options.conditioned else AVALANCHE_RAW, FLUSH, RUN)
        except BaseException:
            self.close()
            raise

    def read(self, *, timeout: float) -> Reading:
        """Return 512 bytes of eight samples of the comparator each. Raises DriverError."""
        return Reading(self._line.read_exact(FRAME, timeout=timeout))

    def _command(self, *letters: bytes) -> None:
        for letter in letters:
            self._line.write(b"cmd" + letter + b"\n")

    def _stop(self) -> None:
        self._command(PAUSE, SILENT, FLUSH)
        if not self._line.drain(quiet=_QUIET):
            raise Refused(f"{self._line.path}: does not pause: this is no OneRNG")

    def _version(self) -> int:
        self._command(RUN, VERSION)
        answer = b""
        deadline = time.monotonic() + 1.0
        while not (found := _ANSWER.search(answer)):
            left = deadline - time.monotonic()
            if left <= 0 or len(answer) > 256:  # noqa: PLR2004 -- a silent device says nothing else
                raise Refused(f"{self._line.path}: does not answer to cmdv: this is no OneRNG")
            answer += self._line.read(1, timeout=left) + self._line.read(64, timeout=0)
        return int(found[1])

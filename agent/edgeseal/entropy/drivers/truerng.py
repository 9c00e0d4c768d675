"""ubld.it TrueRNG: avalanche diodes, a classical source. v1 to v3 give conditioned bytes only; pro and proV2 also raw.

Protocol (euler357/TrueRNG truerng_mode.py; ubld.it "How-To Change TrueRNGpro's Mode" and "TrueRNGpro
Raw Binary Format"): CDC-ACM, streams while DTR is set. The pro models change mode by a knock: the port is opened at
110, 300 and 110 baud, then at the baud that names the mode. 300 is their normal mode, whose output has gone through a
Mersenne twister and shows nothing about the diodes; 19200 is raw: 10-bit samples of both generators, every byte tagged.

Each raw frame is put in the order generator 1, generator 2, so that a run of equal samples of one is seen as one.
Claim: 2 of 10 raw bits (the maker warns of converter bias in the low bits), half of a conditioned byte.
"""

from __future__ import annotations

import time
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import DriverError, Hung, Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.line import Line, SerialDriver

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Description

V123, PRO, PRO_V2 = (0x04D8, 0xF5FE), (0x16D0, 0x0AA0), (0x04D8, 0xEBB5)
IDS: Final = frozenset({V123, PRO, PRO_V2})
PRODUCT: Final = r"TrueRNG.*"
PROFILE: Final = Profile("truerng", "classical", "vendor")
COOKED: Final = Symbols(bits=8, claim=4.0, raw=False)
RAW: Final = Symbols(bits=10, claim=2.0, raw=True)
NORMAL_BAUD, RAW_BAUD = 300, 19200
KNOCK: Final = (110, 300, 110)
FRAME: Final = 512  # bytes of a conditioned frame; samples of a raw one
_GROUP: Final = 4  # bytes: generator 1 high, low, generator 2 high, low
_TAGS: Final = (0x00, 0x40, 0x80, 0xC0)
_SETTLE: Final = 0.2  # seconds: what the old mode had buffered


class TrueRng(SerialDriver):
    """An open TrueRNG of any model."""

    def __init__(self, description: Description, options: Options) -> None:
        """Knock (pro models), open the port and see that the mode came. Raises DriverError."""
        self._raw = (description.vid, description.pid) in (PRO, PRO_V2) and not options.conditioned
        self._knocked = False
        self.symbols = RAW if self._raw else COOKED
        baud = RAW_BAUD if self._raw else NORMAL_BAUD
        if (description.vid, description.pid) != V123:
            _knock(description.path)
        super().__init__(Line(description.path, baud), PROFILE, description)
        self._knocked = self._raw
        self._rest = b""
        try:
            self._line.drain(quiet=_SETTLE, at_most=_SETTLE)
            if self._raw:
                self.read(timeout=1.0)
        except BaseException:
            self.close()
            raise

    def read(self, *, timeout: float) -> Reading:
        """Return 512 conditioned bytes, or 512 raw samples, 256 of each generator. Raises DriverError."""
        if not self._raw:
            return Reading(self._line.read_exact(FRAME, timeout=timeout))
        deadline = time.monotonic() + timeout
        first, second = array("H"), array("H")
        while len(first) < FRAME // 2:
            wanted = (FRAME // 2 - len(first)) * _GROUP
            data = self._line.read(wanted, timeout=deadline - time.monotonic())
            if not data:
                raise Hung(f"{self._line.path}: gave {2 * len(first)} of {FRAME} samples in {timeout:.2f} s")
            one, two, self._rest = decode_raw(self._rest + data)
            first.extend(one)
            second.extend(two)
        return Reading(first[: FRAME // 2] + second[: FRAME // 2])

    def close(self) -> None:
        """Give the device back, in the mode other programs expect. Idempotent; never raises."""
        super().close()
        if self._knocked:
            self._knocked = False
            with suppress(DriverError):
                _knock(self._line.path)
                Line(self._line.path, NORMAL_BAUD).close()


def decode_raw(data: bytes) -> tuple[array[int], array[int], bytes]:
    """Return the samples of generator 1 and 2 and the bytes of a group that is not complete.

    Bytes before the first whole group are skipped, for a stream is entered anywhere. Raises Refused if more than a
    whole group does not fit: that is another mode's output.
    """
    first, second = array("H"), array("H")
    at, skipped = 0, 0
    while at + _GROUP <= len(data):
        group = data[at : at + _GROUP]
        if any(b & 0xC0 != tag for b, tag in zip(group, _TAGS, strict=True)):
            at, skipped = at + 1, skipped + 1
            if skipped >= _GROUP:
                raise Refused("truerng: bytes without the tags of raw mode: the device is in another mode")
            continue
        first.append((group[0] & 0x0F) << 6 | group[1] & 0x3F)
        second.append((group[2] & 0x0F) << 6 | group[3] & 0x3F)
        at += _GROUP
    return first, second, data[at:]


def _knock(path: str) -> None:
    for baud in KNOCK:
        Line(path, baud).close()

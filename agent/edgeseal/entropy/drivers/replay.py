"""Samples from a file, for the lab: captures can be run through the whole path again. Refused anywhere else.

It declares class unknown and evidence none whatever the file once was: recorded samples are known to whoever has the
file. Plain samples, without a header: one byte each up to 8 bits, u16 little-endian above.
"""

from __future__ import annotations

import sys
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Description, Gone, Options, Profile, Reading, Refused, Symbols
from edgeseal.entropy.drivers.handover import Handover

if TYPE_CHECKING:
    from pathlib import Path

PROFILE: Final = Profile("file", "unknown", "none")
FRAME: Final = 480  # samples, as a stick's
_BYTE: Final = 8


class Replay:
    """An open file of samples."""

    profile = PROFILE

    def __init__(self, path: Path, symbols: Symbols, options: Options) -> None:
        """Open the file if this is the lab. Raises Refused elsewhere, Gone if it cannot be opened."""
        if not options.lab:
            raise Refused(
                f"{path}: a file is no source of randomness: whoever has it knows every sample",
                hint="recorded samples are read only in the lab (`lab = true`)",
            )
        self.symbols = symbols
        self._path = path
        self._first = 0
        self._width = 1 if symbols.bits <= _BYTE else 2
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as e:
            raise Gone(f"{path}: {e.strerror}") from e
        self._handover = Handover(str(path), self._dispose)

    def describe(self) -> Description:
        """Return the path."""
        return Description(PROFILE.name, str(self._path))

    def read(self, *, timeout: float) -> Reading:  # noqa: ARG002 -- files do not wait
        """Return the next 480 samples, numbered. Raises Gone at the end, Refused for a sample that is too wide."""
        with self._handover:
            data = self._file.read(FRAME * self._width) or b""
        if len(data) < FRAME * self._width:
            raise Gone(f"{self._path}: no further frame of {FRAME} samples: the recording is over")
        samples = decode(data, self.symbols.bits)
        first, self._first = self._first, self._first + FRAME
        return Reading(samples, first)

    def close(self) -> None:
        """Close the file. Idempotent; never raises."""
        self._handover.close()

    def _dispose(self) -> None:
        with suppress(OSError):
            self._file.close()


def decode(data: bytes, bits: int) -> array[int] | bytes:
    """Return samples of `bits` bits. Raises Refused if one is wider."""
    samples: array[int] | bytes = data
    if bits > _BYTE:
        samples = array("H", data)
        if sys.byteorder == "big":
            samples.byteswap()
    if max(samples, default=0) >> bits:
        raise Refused(f"a recorded sample of more than {bits} bits: another format, or another device")
    return samples

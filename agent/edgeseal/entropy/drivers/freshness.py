"""Whether a stick's frames are new: right key, right boot, numbers and clocks that only go forward (entropy.md, 8).

A stream that was recorded earlier fails the MAC under the new nonce; from an unpaired stick it fails the numbers, which
restart at zero with the nonce. Whatever fails is no accident, for the CRC has already told damage from forgery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.entropy.drivers.base import Refused, Replayed
from edgeseal.stick import frame

if TYPE_CHECKING:
    from edgeseal.stick import mac, messages

STALE: Final = 2  # frames of the stream before the nonce that the stick may still hold
FIRST: Final = 64  # the first frame seen has a lower number: 1.5 s of a stream at 20 kS/s


class Freshness:
    """Follows the frames of one opening."""

    def __init__(self, path: str, info: messages.Info, key: mac.Hmac | None) -> None:
        """`key` is the session's; None for an unpaired stick."""
        self._path = path
        self._boot_id = info.boot_id
        self._bits = info.bits
        self._key = key
        self._stale = 0
        self._last: frame.Frame | None = None
        self._next_sample = 0
        self._raw_us = -1  # device time of the last RAW frame; other kinds are stamped when made, which may be later
        self._gap = False

    def accepts(self, got: frame.Frame) -> bool:
        """Whether to use the frame; False for one left over from before the nonce. Raises Replayed and Refused."""
        fault = self._fault(got)
        if fault is not None:
            if self._last is None and self._stale < STALE:
                self._stale += 1
                return False
            raise Replayed(
                f"{self._path}: frame {got.seq}: {fault}",
                hint="the stream was recorded or forged: unplug this device and look at who had access to it",
            )
        if got.bits != self._bits:
            raise Refused(f"{self._path}: frames of {got.bits}-bit samples from a stick of {self._bits} bits")
        self._follow(got)
        return True

    def take_gap(self) -> bool:
        """Whether frames or samples were lost since the last call: tests over windows start anew."""
        gap, self._gap = self._gap, False
        return gap

    def _fault(self, got: frame.Frame) -> str | None:
        """Return what shows that a frame is not the next of this session."""
        if self._key is not None and not got.authentic(self._key):
            return "its MAC does not verify under this session's nonce"
        if got.boot_id != self._boot_id:
            return f"it is of boot {got.boot_id:08x}, the stick is in boot {self._boot_id:08x}"
        if self._last is None:
            return None if got.seq < FIRST else "its number did not restart with the nonce"
        return self._backwards(got, self._last)

    def _backwards(self, got: frame.Frame, last: frame.Frame) -> str | None:
        """Return which of the three counters does not go forward."""
        if got.seq <= last.seq:
            return f"its number does not advance (last {last.seq})"
        if got.kind == frame.RAW and got.t_us <= self._raw_us:
            return "its clock does not advance"
        if got.first_sample < self._next_sample:
            return f"its samples were numbered before (first {got.first_sample}, expected {self._next_sample})"
        return None

    def _follow(self, got: frame.Frame) -> None:
        raw = got.kind == frame.RAW
        if self._last is not None:
            lost = got.seq != self._last.seq + 1 or (raw and got.first_sample != self._next_sample)
            self._gap = self._gap or lost
        self._last = got
        if raw:
            self._raw_us, self._next_sample = got.t_us, got.first_sample + got.count

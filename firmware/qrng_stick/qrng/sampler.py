"""The ADC into a ring in memory, by two DMA channels that start each other and never need the processor.

Each channel writes a whole number of rings and then chains to the other one, whose write address is at that moment the
start of the ring again. Nothing has to be re-armed in time, so nothing can be late and write elsewhere.
"""

import uctypes
from machine import ADC, Pin, mem32
from rp2 import DMA

from . import board
from .ring import BYTES, SAMPLES, Ring

_RING_BITS = 14  # 2^14 bytes: the DMA wraps the write address by itself
_ROUNDS = 1024
_SKIP = 16  # first samples after a start: stale or not settled


class Sampler:
    """Free-running conversion of ADC0 at `rate` samples per second."""

    def __init__(self, chip: board.Chip, rate: int) -> None:
        """Claim the ADC pin and two DMA channels; sampling begins with `start`."""
        self._base, self._dreq = chip.adc, chip.dreq
        self._divider = board.ADC_HZ // rate - 1  # one conversion every 1 + DIV cycles
        ADC(Pin(board.ADC_SIGNAL))  # pad: input off, pulls off
        self._memory = bytearray(2 * BYTES)  # twice, to hold one ring that begins at a multiple of its size
        skew = -uctypes.addressof(self._memory) % BYTES
        self._address = uctypes.addressof(self._memory) + skew
        self._view = memoryview(self._memory)[skew : skew + BYTES]
        self._channels = (DMA(), DMA())
        self._ring = Ring(rate)
        self._numbered = 0  # samples of all runs before this one

    def start(self, now_us: int) -> None:
        """Begin a run. The DMA waits before the first conversion is asked for."""
        self.stop()
        first, second = self._channels
        for channel, other in ((first, second), (second, first)):
            ctrl = channel.pack_ctrl(
                size=1,
                inc_read=False,
                inc_write=True,
                ring_size=_RING_BITS,
                ring_sel=True,
                treq_sel=self._dreq,
                chain_to=other.channel,  # pyright: ignore[reportAttributeAccessIssue]  not in the stubs
                irq_quiet=True,
            )
            channel.config(
                read=self._base + board.FIFO,
                write=self._address,
                count=SAMPLES * _ROUNDS,
                ctrl=ctrl,
                trigger=False,
            )
        mem32[self._base + board.CS] = board.CS_EN | board.SIGNAL_CHANNEL << 12
        mem32[self._base + board.DIV] = self._divider << 8
        mem32[self._base + board.FCS] = board.FCS_THRESH_1 | board.FCS_DREQ_EN | board.FCS_EN
        first.active(True)
        self._ring.begin(now_us, _SKIP)
        mem32[self._base + board.CS + board.SET] = board.CS_START_MANY

    def stop(self) -> None:
        """End the run: no conversion goes on, the FIFO is empty, the channels are idle."""
        mem32[self._base + board.CS + board.CLEAR] = board.CS_START_MANY
        while not mem32[self._base + board.CS] & board.CS_READY:
            pass
        for channel in self._channels:  # both disabled and unchained before either is aborted: erratum RP2350-E5
            channel.config(ctrl=channel.pack_ctrl(enable=False), trigger=False)
        for channel in self._channels:
            channel.active(False)
        mem32[self._base + board.FCS] = board.FCS_EN
        while not mem32[self._base + board.FCS] & board.FCS_EMPTY:
            mem32[self._base + board.FIFO]
        mem32[self._base + board.FCS] = 0
        self._numbered += self._ring.produced
        self._ring.begin(0, 0)

    def poll(self, now_us: int) -> int:
        """Look how far the DMA is; return how many blocks were lost because nobody took them in time."""
        first, second = self._channels
        running = first if first.active() else second
        address = running.write  # pyright: ignore[reportAttributeAccessIssue]  not in the stubs
        self._ring.update((address - self._address) % BYTES // 2, now_us)
        return self._ring.lost(480)

    def take(self, block: bytearray, now_us: int) -> tuple[int, int] | None:
        """Fill `block` if it is complete; return (number of its first sample, time of its last one in us)."""
        if not self._ring.available(len(block) // 2):
            return None
        first = self._ring.copy(self._view, block)
        return self._numbered + first, now_us - self._ring.age_us()

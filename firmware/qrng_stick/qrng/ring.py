"""Where the samples in a ring are: positions from a write address that wraps and a clock that does not.

The DMA tells only where in the ring it writes. The clock, from the same crystal as the ADC's, says how often it has
gone round: it need be right only to half a ring (0.2 s). Pure, so that it is tested away from the chip.
"""

SAMPLES = 8192  # in the ring: 0.41 s, 17 blocks
BYTES = 2 * SAMPLES
_MARGIN = 64  # samples the DMA may write while a block is copied: 3.2 ms


class Ring:
    """Counts samples of one run. All numbers are samples since the run began."""

    def __init__(self, rate: int) -> None:
        """`rate` in samples per second."""
        self._rate = rate
        self.produced = 0
        self.consumed = 0
        self._started_us = 0

    def begin(self, now_us: int, skip: int) -> None:
        """Begin a run now, of which the first `skip` samples are not wanted."""
        self._started_us = now_us
        self.produced = 0
        self.consumed = skip

    def update(self, offset: int, now_us: int) -> None:
        """Take the DMA's offset in the ring (samples) and work out how many samples there were in all."""
        expected = (now_us - self._started_us) * self._rate // 1000000
        rounds = (expected - offset + SAMPLES // 2) // SAMPLES
        self.produced = max(rounds, 0) * SAMPLES + offset

    def lost(self, block: int) -> int:
        """Skip what was overwritten before it was read, by whole blocks; return how many blocks that were."""
        behind = self.produced + _MARGIN - self.consumed
        if behind <= SAMPLES:
            return 0
        blocks = (behind - SAMPLES + block - 1) // block
        self.consumed += blocks * block
        return blocks

    def available(self, block: int) -> bool:
        """Whether a whole block is there."""
        return self.produced - self.consumed >= block

    def copy(self, ring: memoryview, block: bytearray) -> int:
        """Copy the next block out of the ring, in two pieces where it wraps; return the number of its first sample."""
        first = self.consumed
        start = 2 * (first % SAMPLES)
        head = min(len(block), BYTES - start)
        block[:head] = ring[start : start + head]
        if head < len(block):
            block[head:] = ring[: len(block) - head]
        self.consumed += len(block) // 2
        return first

    def age_us(self) -> int:
        """Return how long ago the last consumed sample was taken, as far as the clock knows."""
        return (self.produced - self.consumed) * 1000000 // self._rate

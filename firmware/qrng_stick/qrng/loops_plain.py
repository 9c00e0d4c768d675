"""The inner loops in plain Python: the reference for loops_viper, and what runs where there is no viper.

Both modules work on a block of n samples (u16, little endian, in a bytearray) and keep their state in array('i').
"""

import struct
from array import array

LAST, RUN, LONGEST, REFERENCE, COUNT, LEFT, HIGHEST, WINDOW, CLIPPED = range(9)
SCAN_LENGTH = 9
NO_SAMPLE = 1 << 16  # no sample has this value

TOTAL, SQUARES, PRODUCTS, FIRST, FINAL, LOW, HIGH, ENDS = range(8)
MOMENTS_LENGTH = 8
MIDDLE = 2048  # sums are of x - MIDDLE: 480 squares of 12 bits fit in 31 bits only so
TOP = 4095


def scan(block: bytearray, n: int, state: "array[int]") -> None:
    """Feed repetition count and adaptive proportion test in one pass; the caller reads LONGEST, HIGHEST, CLIPPED.

    The three results are of this block; the rest carries over from block to block.
    """
    last, run, longest = state[LAST], state[RUN], 0
    reference, count, left, highest = state[REFERENCE], state[COUNT], state[LEFT], 0
    clipped = 0
    for x in struct.unpack(f"<{n}H", block):
        if x == last:
            run += 1
        else:
            last, run = x, 1
        if run > longest:
            longest = run
        if left == 0:
            reference, count, left = x, 0, state[WINDOW]
        if x == reference:
            count += 1
            if count > highest:
                highest = count
        left -= 1
        if x == 0 or x >= TOP:
            clipped += 1
    state[LAST], state[RUN], state[LONGEST] = last, run, longest
    state[REFERENCE], state[COUNT], state[LEFT], state[HIGHEST] = reference, count, left, highest
    state[CLIPPED] = clipped


def moments(block: bytearray, n: int, sums: "array[int]") -> None:
    """Write the sums of this block: of d = x - MIDDLE, d^2, d[i] d[i+1], the first and last d, the extremes of x."""
    total = squares = products = ends = 0
    low, high = NO_SAMPLE, 0
    first = previous = 0
    for i, x in enumerate(struct.unpack(f"<{n}H", block)):
        d = x - MIDDLE
        total += d
        squares += d * d
        if i == 0:
            first = d
        else:
            products += d * previous
        previous = d
        if x < low:
            low = x
        if x > high:
            high = x
        if x == 0 or x >= TOP:
            ends += 1
    for at, value in ((TOTAL, total), (SQUARES, squares), (PRODUCTS, products), (FIRST, first), (FINAL, previous)):
        sums[at] = value
    sums[LOW], sums[HIGH], sums[ENDS] = low, high, ends

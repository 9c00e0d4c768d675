"""The inner loops in viper: machine code on the chip, a million samples a second. See loops_plain for what they do.

A module of its own because a MicroPython without native emitters refuses it as a syntax error. Viper integers have 32
bits and wrap silently: 480 * 2048^2 < 2^31, so sums of one block of 480 12-bit samples fit. Literals stand here instead
of the names of loops_plain, for viper would look each name up in a dictionary.
"""

import micropython


@micropython.viper
def scan(block: ptr16, n: int, state: ptr32):
    last = int(state[0])
    run = int(state[1])
    longest = 0
    reference = int(state[3])
    count = int(state[4])
    left = int(state[5])
    highest = 0
    window = int(state[7])
    clipped = 0
    i = 0
    while i < n:
        x = int(block[i])
        if x == last:
            run += 1
        else:
            last = x
            run = 1
        if run > longest:
            longest = run
        if left == 0:
            reference = x
            count = 0
            left = window
        if x == reference:
            count += 1
            if count > highest:
                highest = count
        left -= 1
        if x == 0 or x >= 4095:
            clipped += 1
        i += 1
    state[0] = last
    state[1] = run
    state[2] = longest
    state[3] = reference
    state[4] = count
    state[5] = left
    state[6] = highest
    state[8] = clipped


@micropython.viper
def moments(block: ptr16, n: int, sums: ptr32):
    total = 0
    squares = 0
    products = 0
    ends = 0
    low = 65536
    high = 0
    first = int(block[0]) - 2048
    previous = 0
    i = 0
    while i < n:
        x = int(block[i])
        d = x - 2048
        total += d
        squares += d * d
        products += d * previous
        previous = d
        if x < low:
            low = x
        if x > high:
            high = x
        if x == 0 or x >= 4095:
            ends += 1
        i += 1
    sums[0] = total
    sums[1] = squares
    sums[2] = products
    sums[3] = first
    sums[4] = previous
    sums[5] = low
    sums[6] = high
    sums[7] = ends

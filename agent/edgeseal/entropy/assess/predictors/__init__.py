"""The four predictors of SP 800-90B §§6.3.7 to 6.3.10, over symbols: each guesses the next one from those before.

    window    the most common value among the last 63 to 4095        (MultiMCW)
    lag       what stood 1 to 128 places before                      (Lag)
    mmc       what most often followed the last 1 to 16 symbols      (MultiMMC)
    lz78y     the same from a dictionary that is soon full           (LZ78Y)

They take most of the time and memory of an assessment, so it has them only on request. They run on symbols, not on the
bits of wider symbols: eight million guesses of sixteen models each are work for NIST's tool.
"""

"""Making a QRNG stick out of a Pico: compile the firmware, copy it over the REPL, pair the stick (`edgeseal stick`).

    build      the folder that goes on the stick, with a manifest of SHA-256s
    board      a board with MicroPython's REPL, through mpremote
    flash      copy, compare, remove what is left of an older firmware
    pairing    the file of pairing secrets, as the agent reads it
    running    what a finished stick says about itself over USB

MicroPython itself is not here: its image (UF2) comes from micropython.org and goes on by the boot ROM's drive.
"""

"""ESQ1, the protocol of the edgeseal QRNG stick (docs/spec/qrng-stick.md), and the tests of its raw samples.

    frame         the 1024-byte frame: encoder, decoder, resynchronisation
    mac           HMAC-SHA-256, the session key, the tag of a frame
    messages      control requests, GET_INFO, GET_STATUS, calibration records
    health        SP 800-90B continuous tests and the tests of the noise model
    calibration   variance over photocurrent: classical, quantum and excess noise

The same files run in the agent (CPython) and on the stick (MicroPython, as the package `stick`), so there is one codec.
They import nothing but struct, binascii, hashlib, array and math, and each other as siblings; they do no I/O, read no
clock and draw no randomness.
"""

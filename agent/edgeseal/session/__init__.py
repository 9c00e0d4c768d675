"""X1: one authenticated round trip between a device and its fleet server (docs/spec/session.md).

`messages` is the wire, both directions; `server` and `device` are the two roles; `selftest` the known answers checked
at start. Nothing here does I/O: bytes, clock and randomness are passed in.
"""

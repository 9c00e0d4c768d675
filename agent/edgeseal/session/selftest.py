"""Known-answer self-test of X1, run when a server or an update pass starts (docs/spec/session.md §15).

A library update that changes a KEM, HPKE or AEAD must stop us here, with a name, and not as "refused" in the field.
The answers are one exchange per suite of an independent implementation (`tests/vectors/x1.json`).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, cast

from edgeseal import cbor
from edgeseal.errors import EdgesealError, IntegrityError
from edgeseal.session.messages import M1_PREFIX, Header, Status, reply_keys, request_lock, t, th0, unlock, unpad
from edgeseal.suite import SUITES, PrivateKey

ANSWERS = "selftest.cbor"
MAX_LENGTH = 65_536


def run() -> None:
    """Open one known request and one known reply in each suite.

    Raises EdgesealError naming the suite: nothing may be sent or answered then.
    """
    data = files(__package__).joinpath(ANSWERS).read_bytes()
    cases = cast("list[list[Any]]", cbor.decode(data, max_length=MAX_LENGTH))  # our own file, locked by a test
    for suite in SUITES:
        try:
            _check(suite, *next(fields for number, *fields in cases if number == suite))
        except (EdgesealError, StopIteration) as e:
            raise EdgesealError(
                f"the X1 known-answer self-test fails for suite {suite}",
                hint="the cryptography library on this machine is not usable; reinstall or downgrade it",
            ) from e


def _check(
    suite: int,
    server_seed: bytes,
    device_seed: bytes,
    e_seed: bytes,
    psk: bytes,
    m1: bytes,
    m2: bytes,
    body: bytes,
    reply_body: bytes,
) -> None:
    """Play both roles of one exchange, from seeds and messages to request and reply body."""
    server, device, ephemeral = (PrivateKey(suite, seed) for seed in (server_seed, device_seed, e_seed))
    th0_ = th0(server.public)
    header, header_bytes, locked = Header.cut(suite, server.open(th0_, m1[M1_PREFIX:]))
    prk1, ad = request_lock(psk, th0_, device.public.raw, header_bytes)
    th1 = t(b"reply", th0_, m1)
    c_e = unlock(suite, reply_keys(psk, header.s1, b"", th1), th1, m2[1:])
    plain = unpad(device.open(t(b"d", th1), ephemeral.open(t(b"e", th1), c_e)))
    got = (unpad(unlock(suite, prk1, ad, locked))[1:], plain[9:], header.e_public, plain[0])
    if got != (body, reply_body, ephemeral.public.raw, Status.OK):
        raise IntegrityError("known answers differ")

"""Known-answer self-test of X1, run when a server or an update pass starts (docs/spec/session.md §15).

A library update that changes a KEM, HPKE or AEAD must stop us here, with a name, and not as "refused" in the field.
The answers are one exchange per suite of an independent implementation (`tests/vectors/x1.json`).
"""

from __future__ import annotations

from importlib.resources import files

from edgeseal import cbor
from edgeseal.errors import EdgesealError, IntegrityError
from edgeseal.session.messages import Header, Status, reply_keys, request_lock, t, th0, unlock, unpad
from edgeseal.suite import PrivateKey

ANSWERS = "selftest.cbor"
MAX_LENGTH = 65_536


def run() -> None:
    """Open one known request and one known reply in each suite.

    Raises EdgesealError naming the suite: nothing may be sent or answered then.
    """
    cases = cbor.decode(files(__package__).joinpath(ANSWERS).read_bytes(), max_length=MAX_LENGTH)
    for case in cases if isinstance(cases, list) else []:
        number, *fields = case if isinstance(case, list) else []
        try:
            _check(int(str(number)), [f for f in fields if isinstance(f, bytes)])
        except (EdgesealError, ValueError) as e:
            raise EdgesealError(
                f"the X1 known-answer self-test fails for suite {number}",
                hint="the cryptography library on this machine is not usable; reinstall or downgrade it",
            ) from e


def _check(suite: int, fields: list[bytes]) -> None:
    """Both roles of one exchange, from seeds and messages to request and reply body."""
    server_seed, device_seed, e_seed, psk, m1, m2, body, reply_body = fields
    server, device, ephemeral = (PrivateKey(suite, seed) for seed in (server_seed, device_seed, e_seed))
    th0_ = th0(server.public)
    header, header_bytes, locked = Header.cut(suite, server.open(th0_, m1[18:]))
    prk1, ad = request_lock(psk, th0_, device.public.raw, header_bytes)
    th1 = t(b"reply", th0_, m1)
    c_e = unlock(suite, reply_keys(psk, header.s1, b"", th1), th1, m2[1:])
    plain = unpad(device.open(t(b"d", th1), ephemeral.open(t(b"e", th1), c_e)))
    got = (unpad(unlock(suite, prk1, ad, locked))[1:], plain[9:], header.e_public, plain[0])
    if got != (body, reply_body, ephemeral.public.raw, Status.OK):
        raise IntegrityError("known answers differ")

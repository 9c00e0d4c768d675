"""Authorised factory reset: the station whose key was pinned at provisioning signs for this identity, now.

The device destroys its identity durably before it says so, with the receipt of the identity that is gone.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from edgeseal.provisioning import transcript
from edgeseal.provisioning.conversation import BYTES_PER_SECOND, PATIENCE, Conversation
from edgeseal.provisioning.messages import (
    FORMAT,
    STATION_ID_LENGTH,
    Authorisation,
    Destroyed,
    Kind,
    Reset,
    ResetNonce,
)
from edgeseal.provisioning.verdict import Code, RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT: Final = b"edgeseal factory reset"  # FIPS 204 §5.2: a signature for this serves nothing else


def check(authorisation: Authorisation, *, pin: bytes, th: bytes) -> None:
    """Device's check.

    Raises RefusalError unless the key is the pinned one and signed this very dialogue.
    """
    if not hmac.compare_digest(transcript.pin(authorisation.public), pin):
        raise RefusalError(
            Code.AUTHORISATION, "another station than the one that provisioned this device asks for a reset"
        )
    try:
        MLDSA65PublicKey.from_public_bytes(authorisation.public).verify(authorisation.signature, th, CONTEXT)
    except (InvalidSignature, ValueError):
        raise RefusalError(Code.AUTHORISATION, "the authorisation is not for this device and this moment") from None


class FactoryReset(Conversation):
    """Station's role. `sign` signs with the station's ML-DSA-65 key under `CONTEXT`; `expect` decides per identity.

    `result` is what the device says it destroyed, checked by `expect`'s commitment.
    """

    def __init__(
        self,
        *,
        public: bytes,
        sign: Callable[[bytes], bytes],
        expect: Callable[[bytes, str], bytes],
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        rate: float = BYTES_PER_SECOND,
        patience: float = PATIENCE,
    ) -> None:
        """`expect(kid, serial)` returns the commitment to that identity's receipt, or raises RefusalError."""
        self._public = public
        self._sign = sign
        self._expect = expect
        self.result: Destroyed | None = None
        self._serial = ""
        owner = transcript.pin(public)[:STATION_ID_LENGTH]
        super().__init__(random=random, clock=clock, owner=owner, rate=rate, patience=patience)

    def _opening(self, nonce: bytes) -> tuple[Kind, bytes]:
        return Kind.RESET, Reset(FORMAT, self._owner, nonce).to_bytes()

    def _reply(self, kind: Kind, body: bytes) -> tuple[Kind, bytes] | None:
        self._transcript.absorb(kind, body)
        if kind is Kind.RESET_NONCE:
            asked = ResetNonce.from_bytes(body)
            self._expect(asked.kid, asked.serial)
            self._serial = asked.serial
            signature = self._sign(self._transcript.th)
            return Kind.AUTHORISE, Authorisation(self._public, signature).to_bytes()
        destroyed = Destroyed.from_bytes(body)
        expected = self._expect(destroyed.kid, self._serial)
        if not hmac.compare_digest(transcript.commitment(destroyed.receipt), expected):
            raise RefusalError(
                Code.IMPOSTOR, "the device says that an identity is destroyed, and cannot show that it had it"
            )
        self.result = destroyed
        self._pass("the identity is destroyed")
        return None

"""From tested samples to full-entropy blocks: HMAC-SHA-512, a vetted component of SP 800-90B §3.1.5.1.

    block = HMAC-SHA-512(key = SHA-512("edgeseal/conditioner/v1" ‖ name), u64 number ‖ samples)

The key is fixed and public: entropy comes from the samples alone. With h_in >= 512 + 64 bits of min-entropy in, all 512
bits out count as full entropy (SP 800-90C, the rule of n + 64). Nothing here judges samples: only what has passed every
test may be fed, and `drop` forgets what waits when a later test fails.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.source import BLOCK_LENGTH, SourceError

if TYPE_CHECKING:
    from array import array

_DOMAIN: Final = b"edgeseal/conditioner/v1"
ENTROPY_IN: Final = 8 * BLOCK_LENGTH + 64  # bits of min-entropy that go into one block
MARGIN: Final = 2  # times as many samples as the claim asks for

# RFC 4231 §4.3 and §4.7: test cases 2 (a short key) and 6 (a key longer than the block of the hash)
_KNOWN: Final = (
    (
        b"Jefe",
        b"what do ya want for nothing?",
        (
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
            "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
        ),
    ),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        (
            "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f352"
            "6b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598"
        ),
    ),
)


class ConditionerError(SourceError):
    """The library's HMAC-SHA-512 computes something else: no hardware source can be used."""


def known_answers() -> None:
    """Compute published answers again; run before the first block. Raises ConditionerError."""
    for key, message, answer in _KNOWN:
        if hmac.digest(key, message, "sha512").hex() != answer:
            raise ConditionerError(
                "HMAC-SHA-512 does not give the answer of RFC 4231",
                hint="the cryptographic library or the memory of this machine is broken; randomness is the OS's alone",
            )


def samples_for(claim: float, margin: float = MARGIN) -> int:
    """Return how many samples of `claim` bits of min-entropy one block takes.

    Raises ValueError for a claim that is not positive: such a source can make no block.
    """
    if not claim > 0:
        raise ValueError("a source that claims no entropy makes no block")
    return math.ceil(ENTROPY_IN / claim) * max(1, math.ceil(margin))


class Conditioner:
    """Collects samples of one source and gives a block whenever enough are together."""

    def __init__(self, name: str, claim: float) -> None:
        """`claim` in bits per sample. Raises ConditionerError if the known answers do not come out."""
        known_answers()
        self._key = hashlib.sha512(_DOMAIN + name.encode()).digest()
        self._claim = claim
        self._needed = samples_for(claim)
        self._number = 0
        self._waiting = bytearray()
        self._samples = 0

    @property
    def needed(self) -> int:
        """How many samples go into one block."""
        return self._needed

    def lower(self, factor: float) -> None:
        """Count a sample for `factor` (below 1) of the claim: it drifts. Never raised above the claim."""
        self._needed = samples_for(self._claim * min(1.0, factor))

    def feed(self, samples: array[int] | bytes) -> list[bytes]:
        """Take samples that passed every test; return the blocks that are complete, each of BLOCK_LENGTH bytes."""
        blocks = []
        start = 0
        while start < len(samples):
            part = samples[start : start + self._needed - self._samples]
            self._waiting += part if isinstance(part, bytes) else part.tobytes()
            self._samples += len(part)
            start += len(part)
            if self._samples >= self._needed:
                blocks.append(self._block())
        return blocks

    def drop(self) -> None:
        """Forget the samples that wait."""
        self._waiting[:] = bytes(len(self._waiting))
        self._waiting.clear()
        self._samples = 0

    def _block(self) -> bytes:
        self._number += 1
        made = hmac.digest(self._key, self._number.to_bytes(8, "big") + self._waiting, "sha512")
        self.drop()
        return made

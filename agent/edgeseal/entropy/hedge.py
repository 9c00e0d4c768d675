"""The device's hedged generator (docs/spec/session.md, "Randomness"): good if any of its inputs is.

    HKDF-SHA-512(salt = k_rng, ikm = OS ‖ sources, info = label, counter, time, process)

k_rng was made by the provisioning host, so a device whose own generator is dead still draws secrets, and one that was
cloned draws different ones as soon as counter, time or process differ.
"""

from __future__ import annotations

import hmac
import os
import time
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.mixer import Drawn, Mixer
from edgeseal.entropy.source import BLOCK_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

_DOMAIN: Final = b"edgeseal/hedge/v1"


class Hedged:
    """Draws through a mixer and binds every draw to k_rng and to the moment."""

    def __init__(self, mixer: Mixer, *, k_rng: bytes, clock: Callable[[], int] = time.time_ns) -> None:
        """`k_rng` is secret and comes with the enrolment grant."""
        self._mixer = mixer
        self._k_rng = k_rng
        self._clock = clock
        self._counter = 0

    def draw(self, label: str, length: int) -> bytes:
        """Return `length` (at most 64) bytes that do not outlive a message: what edgeseal.session.device wants."""
        return self._drawn(label, length, lasting=False).data

    def drawn(self, label: str, length: int) -> Drawn:
        """Return bytes for a lasting key, with the record of their sources. Raises EntropyError under `require`."""
        return self._drawn(label, length, lasting=True)

    def _drawn(self, label: str, length: int, *, lasting: bool) -> Drawn:
        if not 0 < length <= BLOCK_LENGTH:
            raise ValueError(f"one draw gives 1 to {BLOCK_LENGTH} bytes, not {length}")
        fresh = self._mixer.draw(label, BLOCK_LENGTH, lasting=lasting)
        self._counter += 1
        numbers = (self._counter, self._clock(), os.getpid())
        info = _DOMAIN + b"".join(n.to_bytes(8, "big") for n in numbers) + label.encode()
        prk = hmac.digest(self._k_rng, fresh.data, "sha512")
        data = hmac.digest(prk, info + b"\x01", "sha512")[:length]
        return Drawn(data, (*fresh.sources, "k_rng: provisioning host"), fresh.blocks)

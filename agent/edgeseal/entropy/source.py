"""What a hardware source of randomness must be able to do; drivers of real devices plug in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from edgeseal.errors import TemporaryError

BLOCK_LENGTH: Final = 64  # one output of HMAC-SHA-512: a block carries 512 bits of entropy or it is no block


class SourceError(TemporaryError):
    """A source has no block to give: absent, busy, unhealthy or too slow."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a source declares about itself.

    "Quantum" can only be declared and evidenced, never inferred: a PRNG posing as a QRNG passes every statistical test.
    """

    name: str
    source_class: Literal["quantum", "classical", "unknown"]
    evidence: Literal["model+calibration", "vendor", "none"]


class Source(Protocol):
    """A hardware source behind its own health tests and conditioning."""

    @property
    def profile(self) -> Profile:
        """What it declares."""

    def block(self, *, timeout: float) -> bytes:
        """Return BLOCK_LENGTH conditioned bytes that were never returned before, within `timeout` seconds.

        Raises SourceError.
        """


@runtime_checkable
class Judged(Source, Protocol):
    """A source that may be good enough to mix and not good enough to stand alone for a key."""

    @property
    def unfit(self) -> str | None:
        """Why policy `require` must not count it: it is simulated, or keeps no time."""

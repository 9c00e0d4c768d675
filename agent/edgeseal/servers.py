"""The TUF target `fleet/servers.cbor`: which session keys devices seal requests to, and the lowest suite allowed.

Signed by the targets role, so a stolen fleet server cannot name its own keys.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

import msgspec

from edgeseal import cbor
from edgeseal.errors import IncompatibleError
from edgeseal.suite import SUITES, PublicKey

TARGET_PATH: Final = "fleet/servers.cbor"
FORMAT: Final = 1
MAX_LENGTH: Final = 65_536
MAX_KEYS: Final = 16  # current and next in two suites, with room; a request tries one

Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class ServerKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One session key record; `not_after` in Unix seconds."""

    suite: Annotated[int, msgspec.Meta(ge=1, le=255)]
    public: Annotated[bytes, msgspec.Meta(max_length=4096)]
    not_after: Time


class FleetServers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Session keys in order of preference: at least current and next."""

    format: int
    min_suite: Annotated[int, msgspec.Meta(ge=1, le=255)]
    keys: Annotated[list[ServerKey], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]

    def usable(self, now: int) -> list[PublicKey]:
        """Return keys of allowed suites that have not ended at `now` (Unix seconds), in order of preference.

        A suite of the future is left out: it is for devices that know it. Raises FormatError for a key of a known suite
        that does not load.
        """
        live = (k for k in self.keys if k.suite in SUITES and k.suite >= self.min_suite and k.not_after > now)
        return [PublicKey(k.suite, k.public) for k in live]

    def to_bytes(self) -> bytes:
        """Deterministic CBOR {0: 1, 1: min_suite, 2: [[suite, public, not_after], …]}."""
        return cbor.encode(cbor.to_map(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of `to_bytes`.

        Raises FormatError; IncompatibleError for a newer format.
        """
        servers = cbor.decode_map(data, cls, max_length=MAX_LENGTH, what=TARGET_PATH)
        if servers.format != FORMAT:
            raise IncompatibleError(f"{TARGET_PATH} has format {servers.format}; this version reads {FORMAT}")
        return servers

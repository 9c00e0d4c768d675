"""Seeds from the operating system's generator, hardened with fresh blocks of hardware sources.

    output = HMAC-SHA-512(key = 64 OS bytes drawn after the last block arrived, domain ‖ purpose ‖ blocks)[0:length]

The OS bytes come last: a source that sees them before it answers could bias any hash mix (D. J. Bernstein, "Entropy
attacks!"). One output per fresh block, no stretching. Without a source it is the same formula and the same code with no
block in it: whatever a source does, an error of any kind included, it takes nothing away.

Policy `require` binds what lasts, the keys of a device. What passes (ephemeral seeds, nonces, a feed of the kernel) is
then drawn as under `mix`: a stick that breaks in the field must not keep a device from its fleet.
"""

from __future__ import annotations

import hmac
import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from edgeseal.entropy.checks import Freshness
from edgeseal.entropy.source import BLOCK_LENGTH, Judged, Source, SourceError
from edgeseal.errors import EntropyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DOMAIN: Final = b"edgeseal/entropy/v1"
MIX_WAIT: Final = 0.25  # seconds a draw may be held up when the source is only a welcome addition
REQUIRE_WAIT: Final = 30.0  # start-up test and calibration of a slow stick
OS_RECORD: Final = "os: getrandom"


class Policy(StrEnum):
    """What a draw does with hardware sources."""

    OFF = "off"  # never reads them
    MIX = "mix"  # adds what is there and healthy, and says in the record what was not
    REQUIRE = "require"  # refuses to make a key unless at least one healthy source took part


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random bytes, the record of their sources, one line each, and how many hardware blocks are in them."""

    data: bytes = field(repr=False)
    sources: tuple[str, ...]
    blocks: int = 0


class Mixer:
    """One process's mixer: remembers which sources failed and which blocks it has seen."""

    def __init__(
        self,
        sources: Sequence[Source] = (),
        *,
        policy: Policy,
        os_random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`os_random` exists for tests that replace it by a constant and expect refusal."""
        self._sources = {s.profile.name: s for s in sources}
        self._policy = policy
        self._os_random = os_random
        self._clock = clock
        self._os_freshness = Freshness()
        self._freshness = {name: Freshness() for name in self._sources}
        self._failed: dict[str, str] = {}
        if len(self._sources) != len(sources):
            raise ValueError("two sources of randomness with one name")

    def draw(self, purpose: str, length: int, *, lasting: bool = True) -> Drawn:
        """Return `length` (at most 64) bytes for one purpose; `lasting` if they are a key that outlives this process.

        Raises EntropyError if policy `require` has no healthy source for a lasting secret, or if the OS generator
        repeats itself.
        """
        if not 0 < length <= BLOCK_LENGTH:
            raise ValueError(f"one draw gives 1 to {BLOCK_LENGTH} bytes, not {length}")
        require = lasting and self._policy is Policy.REQUIRE
        blocks, record = self._blocks(require=require)
        if require and not blocks:
            raise EntropyError(
                "entropy policy 'require' needs a healthy hardware source: "
                + ("; ".join(record) or "none is attached"),
                hint="attach or replace the source; nothing was generated",
            )
        message = b"".join(_framed(part) for part in (_DOMAIN, purpose.encode(), *blocks))
        key = self._os_bytes()  # after every source has been read
        return Drawn(hmac.digest(key, message, "sha512")[:length], (OS_RECORD, *record), len(blocks))

    def _blocks(self, *, require: bool) -> tuple[list[bytes], list[str]]:
        """Return a fresh block of every healthy source, and a line about every source."""
        blocks: list[bytes] = []
        record: list[str] = []
        if self._policy is Policy.OFF:
            return blocks, record
        deadline = self._clock() + (REQUIRE_WAIT if require else MIX_WAIT)
        for name, source in self._sources.items():
            try:
                blocks.append(self._block(name, source, deadline, require=require))
            except SourceError as e:
                record.append(f"{name}: not used, {e.message}")
            except Exception as e:  # noqa: BLE001 - a driver's surprise may cost its block, never the draw
                record.append(f"{name}: not used, unexpected {type(e).__name__}")
            else:
                record.append(f"{name}: {source.profile.source_class}, evidence {source.profile.evidence}")
        return blocks, record

    def _block(self, name: str, source: Source, deadline: float, *, require: bool) -> bytes:
        """Read one block; the first use of a source reads two, so that a constant is found before it counts."""
        if require and isinstance(source, Judged) and (unfit := source.unfit):
            raise SourceError(unfit)
        if name in self._failed:
            raise SourceError(self._failed[name])
        first_use = not self._freshness[name].used
        for _ in range(1 + first_use):
            block = source.block(timeout=max(0.0, deadline - self._clock()))
            if fault := self._freshness[name].fault(block, BLOCK_LENGTH):
                self._failed[name] = fault  # latched: a source that failed once is not trusted again
                raise SourceError(fault)
        return block

    def _os_bytes(self) -> bytes:
        """Draw the key. A generator that repeats is caught at the second draw, so the first one draws twice."""
        for _ in range(2 - self._os_freshness.used):
            key = self._os_random(BLOCK_LENGTH)
            if fault := self._os_freshness.fault(key, BLOCK_LENGTH):
                raise EntropyError(
                    f"the operating system's random generator {fault}",
                    hint="this machine cannot make keys: the kernel's generator is broken or was replaced",
                )
        return key


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part

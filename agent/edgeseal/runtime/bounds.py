"""What requests may take of a device; imported by the supervisor, which has no web server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of one body and of all together, inferences at once, requests waiting, seconds for each."""

    body: int = 64 * MIB
    bodies: int = 256 * MIB
    concurrency: int = 2
    waiting: int = 64
    seconds: float = 30.0  # well below a watch, so that a model that never answers is found out in it

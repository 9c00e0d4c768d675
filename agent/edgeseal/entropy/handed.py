"""Blocks from the service, which owns the devices, to the short-lived process of one pass: through a pipe, once.

    one line of JSON: boot, time, and for each source its profile, why it may be unfit, and how many blocks follow
    the blocks, 64 bytes each

The pipe is written and closed before the pass starts (it holds far more than this), so nobody waits for anybody. The
number of its descriptor is an argument; nothing stands in the environment or on disk. Unused blocks die with the pass.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from edgeseal.entropy.pool import boot_id
from edgeseal.entropy.source import BLOCK_LENGTH, Profile, SourceError
from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal.entropy.reader import Attached

BLOCKS: Final = 8  # of each source: two check-ins of two seeds each, a new key, and the one that only shows a change
WAIT: Final = 0.25  # seconds; eight blocks are 2304 samples, 115 ms of our stick
MAX_AGE: Final = 600.0  # seconds a pass may take before its blocks no longer count as fresh
_MAX_MESSAGE: Final = 16_384  # bytes: the line and sixteen sources' worth of blocks; a pipe holds four times as much


def hand_over(sources: Sequence[Attached], blocks: int = BLOCKS) -> int:
    """Return the reading end of a pipe with blocks of every source; the caller closes it.

    Waits at most WAIT seconds for all of them together: a pool that has just been emptied fills up again in that time.
    """
    ends = time.monotonic() + WAIT
    described: list[dict[str, Any]] = []
    data = bytearray()
    for source in sources:
        taken, reason = _taken(source, blocks, ends)
        profile = source.profile
        described.append(
            {
                "name": profile.name, "class": profile.source_class, "evidence": profile.evidence,
                "unfit": source.unfit, "reason": reason, "blocks": len(taken),
            }
        )  # fmt: skip
        data += b"".join(taken)
    header = {"boot": boot_id(), "made": time.monotonic(), "sources": described}
    message = json.dumps(header).encode() + b"\n" + data
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(writing, False)
        os.write(writing, message[:_MAX_MESSAGE])
    finally:
        os.close(writing)
    return reading


def receive(fd: int) -> list[Handed]:
    """Return the sources that the service handed over in `fd`, and close it.

    Raises UsageError if it is no pipe, or what is in it is not from `hand_over`.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise UsageError(f"descriptor {fd} is no pipe", hint="--entropy-fd is for the service, not for people")
        with os.fdopen(fd, "rb") as pipe:
            message = pipe.read(_MAX_MESSAGE + 1)
        line, _, data = message.partition(b"\n")
        header = json.loads(line)
        sources, boot = _sources(header, data), str(header["boot"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"descriptor {fd} does not hold the service's blocks ({type(e).__name__})") from None
    return sources if boot == boot_id() else []


def _taken(source: Attached, count: int, ends: float) -> tuple[list[bytes], str]:
    taken: list[bytes] = []
    try:
        while len(taken) < count:
            taken.append(source.block(timeout=ends - time.monotonic()))
    except SourceError as e:
        return taken, e.message
    return taken, ""


def _sources(header: dict[str, Any], data: bytes) -> list[Handed]:
    made, at, sources = float(header["made"]), 0, []
    for one in header["sources"]:
        end = at + int(one["blocks"]) * BLOCK_LENGTH
        blocks = [bytearray(data[n : n + BLOCK_LENGTH]) for n in range(at, end, BLOCK_LENGTH)]
        if any(len(b) != BLOCK_LENGTH for b in blocks):
            raise ValueError("fewer blocks than announced")
        profile = Profile(str(one["name"]), one["class"], one["evidence"])
        sources.append(Handed(profile, blocks, made=made, unfit=one["unfit"], reason=str(one["reason"])))
        at = end
    return sources


class Handed:
    """A source (edgeseal.entropy.source.Judged) that has what the service gave it, and no more."""

    def __init__(
        self, profile: Profile, blocks: list[bytearray], *, made: float, unfit: str | None, reason: str
    ) -> None:
        """`reason`: why there are not more."""
        self.profile = profile
        self.unfit = unfit
        self._blocks = deque(blocks)
        self._made = made
        self._reason = reason

    def block(self, *, timeout: float) -> bytes:  # noqa: ARG002 - there is nothing to wait for
        """Return a block that was not returned before. Raises SourceError."""
        if time.monotonic() - self._made > MAX_AGE:
            for block in self._blocks:
                block[:] = bytes(BLOCK_LENGTH)
            self._blocks.clear()
            raise SourceError("what the service handed over is too old")
        if not self._blocks:
            raise SourceError(self._reason or "used up what the service handed over")
        block = self._blocks.popleft()
        data = bytes(block)
        block[:] = bytes(BLOCK_LENGTH)
        return data

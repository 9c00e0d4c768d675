"""Runs (where a tensor lies in a file) and pieces (what becomes one chunk): what readers and cutter have in common."""

from __future__ import annotations

import mmap
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Buffer: TypeAlias = bytes | memoryview | mmap.mmap
WIDTHS: Final = (1, 2, 4, 8)


class NotThisFormatError(Exception):
    """The bytes are not what a reader expects: try the next one. Never leaves this package."""


class Run(NamedTuple):
    """A tensor's data in a file; `width` is the size of one element in bytes."""

    offset: int
    length: int
    width: int


class Piece(NamedTuple):
    """Part of a file that becomes one chunk; `width` is 1 where nothing is known of the content."""

    offset: int
    length: int
    width: int


def sound(runs: Iterable[Run], size: int) -> list[Run]:
    """Return the non-empty runs in order of offset; tied weights, two tensors on the same bytes, are one run.

    Raises NotThisFormatError if one leaves the file or overlaps another: then nothing the reader says is believed.
    """
    ordered = sorted({run for run in runs if run.length})
    if any(run.offset < 0 or run.length < 0 or run.offset + run.length > size for run in ordered):
        raise NotThisFormatError("a tensor outside the file")
    if any(one.offset + one.length > other.offset for one, other in pairwise(ordered)):
        raise NotThisFormatError("tensors that overlap")
    return ordered

"""Where a model's files are cut into pieces, so that releases share as many chunks as possible.

Cutting decides what a delta costs and nothing else: any cut that covers the file makes a correct bundle. Tensors of
known formats are cut from their own start, so a change before a tensor moves none of its cuts; everything else is cut
by content. A file that does not parse is no error, it is cut by content as well.

Not here: compression and encryption (edgeseal.chunks). The library `onnx` cannot say where in a file a tensor lies
(docs/decisions/0002-own-tensor-offsets.md), hence the small readers beside this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.manifest import CHUNK_MAX
from edgeseal_host.cutting import onnx, safetensors
from edgeseal_host.cutting.gear import Gear
from edgeseal_host.cutting.runs import NotThisFormatError, Piece, Run, sound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from edgeseal_host.cutting.runs import Buffer

__all__ = ["Gear", "Piece", "Run", "cut", "external_runs", "tensors"]

SMALLEST_RUN: Final = 64 * 1024  # below this a chunk of its own costs more than the bytes it saves
GLUE_AVERAGE: Final = 16 * 1024
UNKNOWN_AVERAGE: Final = 256 * 1024

_READERS: Final = {"safetensors": safetensors.tensors, "onnx": onnx.tensors}


def tensors(data: Buffer) -> tuple[str, list[Run]]:
    """Return the name of the file's format and where its tensors lie; ("unknown", []) if no reader accepts it."""
    for name, reader in _READERS.items():
        try:
            return name, sound(reader(data), len(data))
        except NotThisFormatError:
            continue
    return "unknown", []


def external_runs(data: Buffer) -> Mapping[str, Sequence[Run]]:
    """Return where in other files, by relative path, the external tensors of an ONNX model lie; {} if it has none."""
    try:
        return onnx.external(data)
    except NotThisFormatError:
        return {}


def cut(data: Buffer, gear: Gear, *, known: Sequence[Run] = ()) -> Iterator[Piece]:
    """Yield pieces that cover `data` exactly, in order, none empty, none longer than CHUNK_MAX.

    `known`: tensors that another file says lie in this one; without it `data` itself is asked.
    """
    runs = _known(known, len(data)) or tensors(data)[1]
    large = [run for run in runs if run.length >= SMALLEST_RUN]
    average = GLUE_AVERAGE if large else UNKNOWN_AVERAGE
    position = 0
    for run in large:
        yield from _by_content(data, gear, position, run.offset, average)
        yield from _tensor(run)
        position = run.offset + run.length
    yield from _by_content(data, gear, position, len(data), average)


def _known(runs: Iterable[Run], size: int) -> list[Run]:
    try:
        return sound(runs, size)
    except NotThisFormatError:
        return []


def _tensor(run: Run) -> Iterator[Piece]:
    for offset in range(run.offset, run.offset + run.length, CHUNK_MAX):
        yield Piece(offset, min(CHUNK_MAX, run.offset + run.length - offset), run.width)


def _by_content(data: Buffer, gear: Gear, start: int, stop: int, average: int) -> Iterator[Piece]:
    for end in gear.boundaries(data, start, stop, average=average):
        yield Piece(start, end - start, 1)
        start = end

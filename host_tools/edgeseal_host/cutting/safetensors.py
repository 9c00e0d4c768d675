"""Where the tensors of a safetensors file lie: u64le length, JSON header, data.

The official library loads tensors; it does not say where they are. Hence twenty lines of our own on the JSON of the
standard library.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from edgeseal_host.cutting.runs import NotThisFormatError, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal_host.cutting.runs import Buffer

_PREFIX: Final = 8
MAX_HEADER: Final = 100_000_000  # the official reader's own limit
WIDTH: Final = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def tensors(data: Buffer) -> list[Run]:
    """Return the tensors' places.

    Raises NotThisFormatError if `data` is no safetensors file.
    """
    length = int.from_bytes(data[:_PREFIX], "little")
    if not 2 <= length <= min(MAX_HEADER, len(data) - _PREFIX) or data[_PREFIX : _PREFIX + 1] != b"{":  # noqa: PLR2004 - "{}"
        raise NotThisFormatError("no safetensors header")
    try:
        header = json.loads(bytes(data[_PREFIX : _PREFIX + length]))
    except (ValueError, RecursionError) as e:
        raise NotThisFormatError("the header is not JSON") from e
    if not isinstance(header, dict):
        raise NotThisFormatError("the header is not a JSON object")
    return list(_runs(header, _PREFIX + length))


def _runs(header: dict[str, Any], base: int) -> Iterator[Run]:
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        match tensor:
            case {"dtype": str(dtype), "data_offsets": [int(begin), int(end)]} if 0 <= begin <= end:
                yield Run(base + begin, end - begin, WIDTH.get(dtype, 1))
            case _:
                raise NotThisFormatError("a tensor without type or place")

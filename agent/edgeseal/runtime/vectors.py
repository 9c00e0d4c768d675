"""Acceptance vectors: what a release must answer, and how exactly. They travel in the sealed table.

    {"v": 1, "cases": [{"inputs": {name: tensor}, "outputs": {name: tensor}}, …],
     "atol": float, "rtol": float, "top1": bool,          tensor = [datatype, [shape], bytes little-endian]
     "warmup": int, "latency_ms": float, "memory_mb": int}

Budgets of 0 mean none. Without vectors a probe still feeds zeros of the declared shapes and refuses NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION: Final = 1
MAX_CASES: Final = 256
MAX_WARMUP: Final = 1000


class Tensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tensor: Open Inference Protocol datatype, shape, little-endian bytes."""

    datatype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=2**31)]], msgspec.Meta(max_length=16)]
    data: bytes


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and the outputs they must give."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Vectors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All cases of a release, with one tolerance: |got - expected| <= atol + rtol * |expected|, or the same argmax.

    Budgets hold on the device that tries the release: `latency_ms` for the median inference after `warmup` runs that do
    not count, `memory_mb` (MiB) for what the process grows by at its peak while it loads and answers.
    """

    v: int
    cases: Annotated[list[Case], msgspec.Meta(min_length=1, max_length=MAX_CASES)]
    atol: Annotated[float, msgspec.Meta(ge=0)] = 1e-4
    rtol: Annotated[float, msgspec.Meta(ge=0)] = 1e-3
    top1: bool = False
    warmup: Annotated[int, msgspec.Meta(ge=0, le=MAX_WARMUP)] = 0
    latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    memory_mb: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 0


def parse(tests: object) -> Vectors | None:
    """Return the vectors of a sealed table, None if it carries none.

    Raises FormatError for another shape or a newer version.
    """
    if tests is None:
        return None
    try:
        vectors = msgspec.convert(tests, Vectors)
    except msgspec.ValidationError as e:
        raise FormatError(f"acceptance vectors: {e}") from e
    if vectors.v != VERSION:
        raise FormatError(f"acceptance vectors of version {vectors.v}; this version reads {VERSION}")
    if not all(map(math.isfinite, (vectors.atol, vectors.rtol, vectors.latency_ms))):
        raise FormatError("acceptance vectors: a tolerance or budget that is not a number accepts everything")
    if any(not case.outputs for case in vectors.cases):
        raise FormatError("acceptance vectors: a case without outputs accepts everything")
    return vectors


def difference(got: NDArray[np.generic], expected: NDArray[np.generic], vectors: Vectors) -> str | None:
    """Return how `got` differs from `expected` beyond the tolerance, None if it does not."""
    import numpy as np

    if got.shape != expected.shape:
        return f"shape {list(got.shape)} where {list(expected.shape)} was expected"
    if got.dtype != expected.dtype:
        return f"{got.dtype} where {expected.dtype} was expected"
    if got.dtype.kind not in "fiu":
        return None if np.array_equal(got, expected) else "other values"
    if not np.isfinite(expected).all():
        return "the expected values are not numbers (NaN or infinite); nothing can be held against them"
    return _top1(got, expected) if vectors.top1 else _beyond(got, expected, vectors)


def _top1(got: NDArray[np.generic], expected: NDArray[np.generic]) -> str | None:
    import numpy as np

    if not got.ndim or not got.size:
        return "a top-1 class needs an axis of classes"
    wrong = int(np.sum(np.argmax(got, axis=-1) != np.argmax(expected, axis=-1)))
    return f"{wrong} of {got[..., 0].size} cases have another top-1 class" if wrong else None


def _beyond(got: NDArray[np.generic], expected: NDArray[np.generic], vectors: Vectors) -> str | None:
    import numpy as np

    a, b = got.astype(np.float64), expected.astype(np.float64)
    far = np.abs(a - b) > vectors.atol + vectors.rtol * np.abs(b)
    if not far.any():
        return None
    return f"{int(far.sum())} of {far.size} values differ, by up to {float(np.abs(a - b).max()):.3g}"

"""Acceptance vectors: what a release must answer, and how exactly. They travel in the sealed table.

    {"v": 1, "cases": [{"inputs": {name: tensor}, "outputs": {name: tensor}}, …],
     "atol": float, "rtol": float, "top1": bool,          tensor = [datatype, [shape], bytes little-endian]
     "warmup": int, "latency_ms": float, "memory_mb": int}

Budgets of 0 mean none. Without vectors a probe still feeds zeros of the declared shapes and refuses NaN. The same words
for another reader: docs/spec/bundle.md §8; its cases: tests/vectors/accept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from edgeseal.errors import FormatError, IncompatibleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION: Final = 1
MAX_CASES: Final = 256
MAX_WARMUP: Final = 1000
# Bytes of an element by datatype; a second table beside oip's because an agent without numpy reads vectors too.
WIDTHS: Final = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
_BELOW_2_64: Final = 2.0**64 - 2.0**11  # the float64 before 2^64
_LENGTH: Final = 4  # bytes of the length before each element of a BYTES tensor


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

    Raises FormatError for what §8 does not allow, IncompatibleError for a newer version.
    """
    if tests is None:
        return None
    _check_version(tests)
    try:
        # Without builtin_types msgspec would take text for bytes, and decode it as base64.
        vectors = msgspec.convert(tests, Vectors, builtin_types=(bytes,))
    except msgspec.ValidationError as e:
        raise FormatError(f"acceptance vectors: {e}") from e
    if not all(map(math.isfinite, (vectors.atol, vectors.rtol, vectors.latency_ms))):
        raise FormatError("acceptance vectors: a tolerance or budget that is not a number accepts everything")
    for number, case in enumerate(vectors.cases, 1):
        if not case.outputs:
            raise FormatError("acceptance vectors: a case without outputs accepts everything")
        for side, tensors in (("input", case.inputs), ("output", case.outputs)):
            for name, tensor in tensors.items():
                if reason := _wrong(tensor):
                    raise FormatError(f"acceptance vector {number}, {side} {name[:80]!r}: {reason}")
    return vectors


def _check_version(tests: object) -> None:
    """Look at the version first: a newer one may differ in everything else."""
    version: Any = tests.get("v") if isinstance(tests, dict) else None
    if type(version) is not int or version < 1:
        raise FormatError("acceptance vectors: expected a map with a version `v`")
    if version != VERSION:
        raise IncompatibleError(
            f"acceptance vectors of version {version}; this version of edgeseal reads {VERSION}",
            hint="update edgeseal on this device",
        )


def _wrong(tensor: Tensor) -> str | None:
    """Return why a tensor's bytes are not of its datatype and shape, None if they are."""
    elements = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        return _wrong_strings(tensor.data, elements)
    width = WIDTHS.get(tensor.datatype)
    if width is None:
        return f"unknown datatype {tensor.datatype[:20]!r}; known: {', '.join(WIDTHS)}, BYTES"
    if len(tensor.data) != elements * width:
        return f"{len(tensor.data)} bytes where {tensor.datatype} {tensor.shape} has {elements * width}"
    if tensor.datatype == "BOOL" and tensor.data.strip(b"\x00\x01"):
        return "a BOOL is a byte of 0 or 1"
    return None


def _wrong_strings(data: bytes, elements: int) -> str | None:
    at, found = 0, 0
    while at < len(data):
        end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "little")
        if at + _LENGTH > len(data) or end > len(data):
            return "a BYTES element is longer than the tensor"
        try:
            data[at + _LENGTH : end].decode()
        except UnicodeDecodeError:
            return "a BYTES element is not UTF-8"
        at, found = end, found + 1
    return None if found == elements else f"{found} elements where its shape has {elements}"


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

    with np.errstate(over="ignore", invalid="ignore"):  # a tolerance may overflow, and what is answered may be anything
        allowed = vectors.atol + vectors.rtol * np.abs(expected.astype(np.float64))
        distance, far = (_whole if got.dtype.kind in "iu" else _real)(got, expected, allowed)
    if not far.any():
        return None
    return f"{int(far.sum())} of {far.size} values differ, by up to {float(distance.max()):.3g}"


def _real(got: Any, expected: Any, allowed: Any) -> tuple[Any, Any]:  # noqa: ANN401 - arrays of one shape
    """Return how far each value is off, and whether that is too far; what is not finite is."""
    import numpy as np

    distance = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return distance, ~(distance <= allowed) | np.isinf(distance)


def _whole(got: Any, expected: Any, allowed: Any) -> tuple[Any, Any]:  # noqa: ANN401 - as above
    """Do the same for integers without rounding: beyond 2^53 a float64 does not tell neighbours apart."""
    import numpy as np

    a, b = got.astype(np.uint64), expected.astype(np.uint64)  # modulo 2^64, in which differences come out right
    distance = np.where(got > expected, a - b, b - a)
    limit = np.minimum(np.floor(allowed), _BELOW_2_64).astype(np.uint64)  # whole numbers: its whole part decides
    return distance, (distance > limit) & (allowed <= _BELOW_2_64)

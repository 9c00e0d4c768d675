"""How far a new answer is from the old one, and what is kept of many: figures, never a tensor.

No array library is imported before two answers are compared: the supervisor and the agent read the figures only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgeseal.runtime.shadow import Compare

MAX_OUTPUTS: Final = 32  # outputs of which figures are kept; all are compared
MAX_REASON: Final = 300  # characters
WORST: Final = 2.0  # the largest relative difference there can be: a and -a
_STEPS: Final = 8  # buckets of the latency ratio between 1 and 2
_MOST: Final = 10 * _STEPS  # a thousand times as fast or as slow
_LARGEST: Final = 1e308  # JSON has no infinity

# What a process in the shadow says is only as trustworthy as the model in it: bounds hold for whoever reads it.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Amount = Annotated[float, msgspec.Meta(ge=0)]
_Name = Annotated[str, msgspec.Meta(max_length=256)]
_Step = Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]{1,2}\Z")]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one output: largest absolute difference; `relative`: that as part of the largest magnitude in either answer.

    `relative` is between 0 and WORST for any scale of values, and WORST for another shape; for strings it is the part
    that differs. `rows` have a class (argmax over the last axis), `agreeing` of them the same. `nan`: the new answer
    has values that are not finite where the old one's are.
    """

    absolute: float
    relative: float
    rows: int = 0
    agreeing: int = 0
    nan: bool = False

    def beyond(self, compare: Compare, tolerance: float) -> bool:
        """Whether the answers differ; an output without classes is held against the tolerance in any case."""
        if self.nan:
            return True
        if compare == "top-1" and self.rows:
            return self.agreeing < self.rows
        return self.relative > tolerance


class OutputFigures(msgspec.Struct):
    """Of one output over all requests compared: largest differences, mean of the relative one, classes that agree."""

    compared: _Count = 0
    max_abs: _Amount = 0.0
    max_relative: _Amount = 0.0
    sum_relative: _Amount = 0.0
    rows: _Count = 0
    agreeing: _Count = 0

    @property
    def mean_relative(self) -> float:
        """Mean over requests of the relative difference."""
        return self.sum_relative / self.compared if self.compared else 0.0

    @property
    def top1(self) -> float | None:
        """Part of classes that agree; None for an output without classes."""
        return self.agreeing / self.rows if self.rows else None

    def add(self, found: Difference) -> None:
        """Count one request."""
        self.compared += 1
        self.max_abs = max(self.max_abs, found.absolute)
        self.max_relative = max(self.max_relative, found.relative)
        self.sum_relative += found.relative
        self.rows += found.rows
        self.agreeing += found.agreeing

    def merged(self, other: OutputFigures) -> OutputFigures:
        """Return the figures of both."""
        return OutputFigures(
            self.compared + other.compared,
            max(self.max_abs, other.max_abs),
            max(self.max_relative, other.max_relative),
            self.sum_relative + other.sum_relative,
            self.rows + other.rows,
            self.agreeing + other.agreeing,
        )


class Figures(msgspec.Struct):
    """Of all copies: `compared` were answered by both, `differing` of them not alike, `nan` with no numbers.

    `errors` were not answered by the new release, `error` says why the last one was not. `ratios` counts the new time
    to the old one in steps of the eighth root of 2 (keys are text: JSON has no others).
    """

    compared: _Count = 0
    differing: _Count = 0
    nan: _Count = 0
    errors: _Count = 0
    error: Annotated[str, msgspec.Meta(max_length=MAX_REASON)] = ""
    ratios: Annotated[dict[_Step, _Count], msgspec.Meta(max_length=2 * _MOST + 1)] = {}
    outputs: Annotated[dict[_Name, OutputFigures], msgspec.Meta(max_length=MAX_OUTPUTS)] = {}

    @property
    def tried(self) -> int:
        """Copies that the new release has been asked."""
        return self.compared + self.errors

    def latency_ratio(self) -> float | None:
        """Return the median of the new time to the old one, None before there is one."""
        half, seen = sum(self.ratios.values()) / 2, 0
        for step, n in sorted(self.ratios.items(), key=lambda item: int(item[0])):
            seen += n
            if seen >= half:
                return float(2 ** (int(step) / _STEPS))
        return None

    def add(self, found: Mapping[str, Difference], *, differs: bool, ratio: float) -> None:
        """Count one copy that both have answered; `ratio` is the new time to the old one."""
        self.compared += 1
        self.differing += differs
        self.nan += any(d.nan for d in found.values())
        step = str(max(-_MOST, min(_MOST, round(_STEPS * math.log2(ratio)))) if ratio > 0 else 0)
        self.ratios[step] = self.ratios.get(step, 0) + 1
        for name, difference in found.items():
            if name in self.outputs or len(self.outputs) < MAX_OUTPUTS:
                self.outputs.setdefault(name, OutputFigures()).add(difference)

    def add_error(self, reason: str) -> None:
        """Count one copy that only the old release has answered."""
        self.errors += 1
        self.error = reason[:MAX_REASON]

    def merged(self, other: Figures) -> Figures:
        """Return the figures of both; `other` is the later one."""
        both = self.outputs.keys() | other.outputs.keys()
        return Figures(
            self.compared + other.compared,
            self.differing + other.differing,
            self.nan + other.nan,
            self.errors + other.errors,
            other.error or self.error,
            {s: self.ratios.get(s, 0) + other.ratios.get(s, 0) for s in self.ratios.keys() | other.ratios.keys()},
            {n: self.outputs.get(n, OutputFigures()).merged(other.outputs.get(n, OutputFigures())) for n in both},
        )


def difference(got: NDArray[np.generic], expected: NDArray[np.generic]) -> Difference:
    """Return how far `got` is from `expected`."""
    import numpy as np

    rows, agreeing = _classes(got, expected)
    if got.shape != expected.shape:
        return Difference(0.0, WORST, rows, 0)
    if not got.size:
        return Difference(0.0, 0.0)
    if got.dtype.kind not in "fiub" or expected.dtype.kind not in "fiub":
        return Difference(0.0, float(np.mean(got != expected)))
    a, b = got.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    finite = np.isfinite(b)
    nan = bool((~np.isfinite(a[finite])).any())
    both = finite & np.isfinite(a)
    a, b = a[both], b[both]
    if not a.size:
        return Difference(0.0, WORST if nan else 0.0, rows, agreeing, nan)
    with np.errstate(all="ignore"):
        absolute = min(float(np.abs(a - b).max()), _LARGEST)
        largest = float(max(np.abs(a).max(), np.abs(b).max()))
    return Difference(absolute, min(absolute / largest, WORST) if largest else 0.0, rows, agreeing, nan)


def _classes(got: NDArray[np.generic], expected: NDArray[np.generic]) -> tuple[int, int]:
    """Return how many rows have a class, and how many the same one; a last axis of one or of strings has none."""
    import numpy as np

    if expected.ndim < 1 or expected.shape[-1] < 2 or not expected.size or expected.dtype.kind not in "fiu":  # noqa: PLR2004
        return 0, 0
    rows = expected[..., 0].size
    if got.shape != expected.shape or got.dtype.kind not in "fiu":
        return rows, 0
    return rows, int(np.sum(np.argmax(got, axis=-1) == np.argmax(expected, axis=-1)))

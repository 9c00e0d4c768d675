"""From the bytes of one request to the bytes of its answer: parsed, held against the model's signature, run, built.

Runs in a worker thread. No HTTP here but the status that a refusal ends with (app).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseal.errors import FormatError
from edgeseal.runtime import oip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgeseal.runtime.engine import Signature, Stop
    from edgeseal.runtime.models import Loaded

logger = logging.getLogger("edgeseal.serve")


class RefusedRequestError(Exception):
    """A request that is not answered with a result: HTTP status and why; `nan`: the model's values were at fault."""

    def __init__(self, status: int, message: str, *, nan: bool = False) -> None:
        """Keep the status beside the message."""
        super().__init__(message)
        self.status = status
        self.nan = nan


@dataclass(frozen=True, slots=True)
class Answer:
    """Body and JSON length of a response; `nan`: the model's values were not all numbers; `seconds`: it took to run."""

    data: bytes
    head: int | None
    nan: bool
    seconds: float


def answer(loaded: Loaded, body: bytes, header_length: int | None, stop: Stop) -> Answer:
    """Return the answer to one body; `header_length` as in oip.parse_request.

    Raises RefusedRequestError: 400 for what the caller got wrong, 500 for what the model or its engine did, 503 without
    the memory for it. TimeoutError once `stop` has ended it.
    """
    nan = False
    try:
        request = oip.parse_request(body, header_length)
        started = time.monotonic()
        outputs = _run(loaded, request, stop)
        seconds = time.monotonic() - started
        nan = any(_has_no_number(value) for _, value in outputs.values())
        data, head = oip.build_response(loaded.model, str(loaded.release), outputs, request)
    except FormatError as e:
        raise RefusedRequestError(400, str(e), nan=nan) from None
    except MemoryError:
        raise RefusedRequestError(503, "not enough memory for this request") from None
    except (RefusedRequestError, TimeoutError):
        raise
    except Exception as e:
        # An engine may raise anything. Not counted, it would be invisible to the watch after a switch.
        logger.exception("%s release %d failed", loaded.model, loaded.release)
        raise RefusedRequestError(500, f"{loaded.model} release {loaded.release} failed: {type(e).__name__}") from None
    return Answer(data, head, nan, seconds)


def _has_no_number(value: Any) -> bool:  # noqa: ANN401 - an array
    """Whether NaN or infinity is in it, as the gate asks: what it refuses must not serve later either."""
    return value.dtype.kind == "f" and not np.isfinite(value).all()


def _run(loaded: Loaded, request: oip.Request, stop: Stop) -> Mapping[str, tuple[str, Any]]:
    """Check the tensors against the model's signature, run it, and say what each output is."""
    declared = {s.name: s for s in loaded.engine.inputs}
    for name, (datatype, value) in request.inputs.items():
        _check_input(name, datatype, value.shape, declared)
    if absent := [n for n in declared if n not in request.inputs]:
        raise FormatError(f"input {absent[0]!r} is missing; the model needs {', '.join(declared)}")
    known = {s.name: s.datatype for s in loaded.engine.outputs}
    if unknown := [n for n in request.outputs if n not in known]:
        raise FormatError(f"there is no output {unknown[0]!r}; the model has {', '.join(known)}")
    wanted = request.outputs or list(known)
    found = _infer({n: v for n, (_, v) in request.inputs.items()}, wanted, loaded, stop)
    return {name: (known[name], found[name]) for name in wanted}


def _infer(inputs: Mapping[str, Any], wanted: Sequence[str], loaded: Loaded, stop: Stop) -> Mapping[str, Any]:
    """Run the model on inputs that are all it declares.

    What the engine refuses of them is then the model's fault, not the caller's: 500, which the watch after a switch
    counts. Raises RefusedRequestError, MemoryError, TimeoutError.
    """
    try:
        return loaded.engine.infer(inputs, wanted, stop)
    except FormatError as e:
        raise RefusedRequestError(500, f"{loaded.model} release {loaded.release}: {e}") from None


def _check_input(name: str, datatype: str, shape: Sequence[int], declared: Mapping[str, Signature]) -> None:
    if name not in declared:
        raise FormatError(f"there is no input {name!r}; the model has {', '.join(declared)}")
    wanted = declared[name]
    if datatype != wanted.datatype:
        raise FormatError(f"input {name!r} is {datatype}; the model needs {wanted.datatype}")
    fits = len(shape) == len(wanted.shape) and all(w in {-1, d} for d, w in zip(shape, wanted.shape, strict=True))
    if not fits:
        raise FormatError(f"input {name!r} has shape {list(shape)}; the model needs {list(wanted.shape)}")

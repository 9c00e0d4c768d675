"""The process that loads a new model to see whether it may serve: `python -m edgeseal.runtime.probe_worker`.

Question on standard input (CBOR: directory, requirements, tests), one JSON object on standard output. Exit 0: it may.
Limits were set by the parent (edgeseal.runtime.probe); here the network goes away, where the kernel lets us.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from edgeseal import cbor
from edgeseal.errors import EdgesealError, IncompatibleError, RefusedError
from edgeseal.runtime import engine, vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_QUESTION: Final = 64 * 2**20
_VARYING: Final = 1  # what a dimension that may vary is set to
_MAX_ZEROS: Final = 256 * 2**20  # bytes of made-up input; a model that declares more is tried with vectors only
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> int:
    """Answer one question."""
    _drop_network()
    question = cast("dict[str, Any]", cbor.decode(sys.stdin.buffer.read(MAX_QUESTION), max_length=MAX_QUESTION))
    try:
        found = examine(Path(question["directory"]), question["requirements"], question["tests"])
    except EdgesealError as e:
        _say({"reason": e.message, "hint": e.hint})
        return e.exit_code
    except ImportError as e:
        _say({"reason": str(e), "hint": None})
        return IncompatibleError.exit_code
    except MemoryError:
        sys.stderr.write("MemoryError\n")
        return 1
    _say(found)
    return 0


def examine(directory: Path, requirements: dict[str, object], tests: object) -> dict[str, object]:
    """Load the model, hold it against what the release declares, and let it answer.

    Raises RefusedError or IncompatibleError with the reason.
    """
    started = time.monotonic()
    model = engine.load(directory, threads=2)
    loaded = time.monotonic()
    _check_declared(model.inputs, requirements.get("inputs"), "input")
    _check_declared(model.outputs, requirements.get("outputs"), "output")
    cases = vectors.parse(tests)
    ran = _run_vectors(model, cases) if cases else _run_zeros(model)
    return {
        "load_seconds": round(loaded - started, 4),
        "run_seconds": round(time.monotonic() - loaded, 4),
        "cases": ran,
        "inputs": [s.name for s in model.inputs],
        "outputs": [s.name for s in model.outputs],
    }


def _check_declared(found: Any, declared: object, what: str) -> None:  # noqa: ANN401 - a sequence of Signature
    """Hold the model against requirements {name: [datatype, [shape]]}, if the release declares any."""
    if not isinstance(declared, dict):
        return
    have = {s.name: [s.datatype, list(s.shape)] for s in found}
    for name, wanted in declared.items():
        if name not in have:
            raise RefusedError(f"the release declares {what} {name!r}; the model has {', '.join(have) or 'none'}")
        if have[name] != wanted:
            raise RefusedError(f"the release declares {what} {name!r} as {wanted}; the model has {have[name]}")
    if extra := sorted(set(have) - set(declared)):
        raise RefusedError(f"the model has {what} {extra[0]!r}, which the release does not declare")


def _run_vectors(model: engine.Engine, cases: vectors.Vectors) -> int:
    from edgeseal.runtime import oip

    for number, case in enumerate(cases.cases, 1):
        inputs = {name: oip.from_raw(t.datatype, t.shape, t.data, name) for name, t in case.inputs.items()}
        got = model.infer(inputs, list(case.outputs))
        for name, expected in case.outputs.items():
            _check_numbers(name, got[name])
            wanted = oip.from_raw(expected.datatype, expected.shape, expected.data, name)
            if reason := vectors.difference(got[name], wanted, cases):
                raise RefusedError(f"acceptance vector {number}, output {name!r}: {reason}")
    return len(cases.cases)


def _run_zeros(model: engine.Engine) -> int:
    from edgeseal.runtime import oip

    inputs = {}
    for s in model.inputs:
        shape = [d if d >= 0 else _VARYING for d in s.shape]
        size = oip.raw_size(s.datatype, shape)
        if size > _MAX_ZEROS:
            return 0
        inputs[s.name] = oip.zeros(s.datatype, shape)
    for name, value in model.infer(inputs, [s.name for s in model.outputs]).items():
        _check_numbers(name, value)
    return 1


def _check_numbers(name: str, value: NDArray[np.generic]) -> None:
    import numpy as np

    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise RefusedError(f"output {name!r} has values that are not numbers (NaN or infinite)")


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


def _drop_network() -> None:
    """Enter an empty network namespace; where unprivileged namespaces are off, rlimits and the review remain."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


if __name__ == "__main__":
    sys.exit(main())

"""The process that loads a new model to see whether it may serve: `python -m edgeseal.runtime.probe_worker`.

Question on standard input (CBOR: directory, requirements, tests, threads), one JSON object on standard output.
Exit 0: it may. It confines itself before it looks at the model (edgeseal.runtime.confine), says how far the kernel let
it, and dies with its parent. Arguments: seconds, MiB, the parent's process id.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from edgeseal import cbor
from edgeseal.errors import EdgesealError, IncompatibleError, RefusedError
from edgeseal.runtime import background, confine, engine, vectors
from edgeseal.runtime.warm import zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

MAX_QUESTION: Final = 64 * 2**20
_MIB: Final = 2**20
_LEAST_RUNS: Final = 11  # a median of fewer is no median
_ARENAS: Final = 256 * 2**20  # address space that each thread reserves and does not use: stack, malloc's arenas
_STATUS: Final = Path("/proc/self/status")


def main(argv: Sequence[str]) -> int:
    """Answer one question."""
    seconds, memory_mb, parent = (int(word) for word in argv)
    confine.limits(seconds, parent)
    back = background.way_back()  # from where the parent put us, for another release may serve
    offline = confine.network()
    question = cast("dict[str, Any]", cbor.decode(sys.stdin.buffer.read(MAX_QUESTION), max_length=MAX_QUESTION))
    directory = Path(question["directory"])
    try:
        limit_memory(directory, memory_mb, question["threads"])
        confined = confine.files([directory])
        found = examine(
            directory, question["requirements"], question["tests"], threads=question["threads"], loaded=back
        )
        background.leave()
    except EdgesealError as e:
        _say({"reason": e.message, "hint": e.hint})
        return e.exit_code
    except ImportError as e:
        _say({"reason": str(e), "hint": None})
        return IncompatibleError.exit_code
    except MemoryError:
        _say({"reason": "out of memory", "hint": None, "memory": True})
        return 1
    _say({**found, "confined": {"network": offline or confined.network, "files": confined.files}})
    return 0


def examine(
    directory: Path,
    requirements: dict[str, object],
    tests: object,
    *,
    threads: int = 0,
    loaded: Callable[[], None] = lambda: None,
) -> dict[str, object]:
    """Load the model as edgeseal-serve will, hold it against what the release declares, and let it answer.

    `loaded` is called before the runs that are timed.
    Raises RefusedError or IncompatibleError with the reason.
    """
    engine.prepare(directory)  # part of what was there before
    before = _start_of_peak()
    started = time.monotonic()
    model = engine.load(directory, threads=threads)
    ended = time.monotonic()
    loaded()
    _check_declared(model.inputs, requirements.get("inputs"), "input")
    _check_declared(model.outputs, requirements.get("outputs"), "output")
    cases = vectors.parse(tests)
    runs = _run_vectors(model, cases) if cases else _run_zeros(model)
    if cases:
        _check_latency(model, cases, runs)
    grown = max(0, _used("VmHWM") - before)
    if cases and cases.memory_mb and grown > cases.memory_mb * _MIB:
        raise RefusedError(f"it takes {grown / _MIB:.0f} MiB here; its acceptance vectors allow {cases.memory_mb}")
    return {
        "load_seconds": round(ended - started, 4),
        "run_seconds": round(time.monotonic() - ended, 4),
        "cases": len(cases.cases) if cases else len(runs),
        "latency_ms": round(statistics.median(runs) * 1000, 3) if runs else None,
        "memory_mb": round(grown / _MIB, 1),
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


def _run_vectors(model: engine.Engine, cases: vectors.Vectors) -> list[float]:
    """Return the seconds that each case took, after the runs that do not count. Raises RefusedError."""
    from edgeseal.runtime import oip

    declared = {s.name: s for s in model.inputs}
    seconds = []
    for number, case in enumerate(cases.cases, 1):
        if unknown := sorted(case.inputs.keys() ^ declared.keys()):
            raise RefusedError(
                f"acceptance vector {number}: input {unknown[0]!r} is not in both; the model has {', '.join(declared)}"
            )
        inputs = _inputs(case)
        for _ in range(cases.warmup if number == 1 else 0):
            model.infer(inputs, list(case.outputs))
        got, spent = _timed(model, inputs, list(case.outputs))
        seconds.append(spent)
        for name, expected in case.outputs.items():
            _check_numbers(name, got[name])
            wanted = oip.from_raw(expected.datatype, expected.shape, expected.data, name)
            if reason := vectors.difference(got[name], wanted, cases):
                raise RefusedError(f"acceptance vector {number}, output {name!r}: {reason}")
    return seconds


def _check_latency(model: engine.Engine, cases: vectors.Vectors, runs: list[float]) -> None:
    """Hold the median against the budget; few cases are run again, so that one hiccup does not decide."""
    if not cases.latency_ms:
        return
    for number in range(len(runs), _LEAST_RUNS):
        case = cases.cases[number % len(cases.cases)]
        runs.append(_timed(model, _inputs(case), list(case.outputs))[1])
    median = statistics.median(runs) * 1000
    if median > cases.latency_ms:
        raise RefusedError(
            f"an inference takes {median:.1f} ms here (median of {len(runs)}); "
            f"its acceptance vectors allow {cases.latency_ms:g}"
        )


def _inputs(case: vectors.Case) -> dict[str, NDArray[np.generic]]:
    from edgeseal.runtime import oip

    return {name: oip.from_raw(t.datatype, t.shape, t.data, name) for name, t in case.inputs.items()}


def _timed(
    model: engine.Engine, inputs: dict[str, NDArray[np.generic]], wanted: list[str]
) -> tuple[dict[str, NDArray[np.generic]], float]:
    started = time.monotonic()
    return model.infer(inputs, wanted), time.monotonic() - started


def _run_zeros(model: engine.Engine) -> list[float]:
    inputs = zeros(model)
    if inputs is None:
        return []
    got, spent = _timed(model, inputs, [s.name for s in model.outputs])
    for name, value in got.items():
        _check_numbers(name, value)
    return [spent]


def _check_numbers(name: str, value: NDArray[np.generic]) -> None:
    import numpy as np

    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise RefusedError(f"output {name!r} has values that are not numbers (NaN or infinite)")


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


def limit_memory(directory: Path, memory_mb: int, threads: int) -> None:
    """Bound what comes on top of interpreter, engine and the release's own files, which an engine may map or copy.

    An inference has `threads` at most.
    """
    engine.prepare(directory)  # counted before the limit, not against it
    size = sum(p.lstat().st_size for p in directory.rglob("*"))
    for limit, used, spare in (
        (resource.RLIMIT_DATA, "VmData", 0),
        (resource.RLIMIT_AS, "VmSize", _ARENAS * max(2, threads)),
    ):
        room = _used(used) + size + spare + memory_mb * 2**20
        resource.setrlimit(limit, (room, room))


def _start_of_peak() -> int:
    """Let the peak begin here; return the bytes resident now, which are interpreter and engine."""
    with contextlib.suppress(OSError):  # proc_pid_clear_refs(5): 5 resets the peak
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _used("VmRSS")


def _used(field: str) -> int:
    for line in _STATUS.read_text("ascii", "replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise IncompatibleError("/proc/self/status does not say how much memory this process uses")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

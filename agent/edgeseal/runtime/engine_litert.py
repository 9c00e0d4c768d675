"""TFLite models with LiteRT's interpreter on the CPU.

No delegate and no operator library is ever loaded, whatever the model or the environment asks for. The file is held
against its schema before LiteRT maps it (edgeseal.runtime.tflite_file).

Not here: LiteRT's CompiledModel, which loads accelerators from directories it is told of.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from edgeseal.errors import FormatError
from edgeseal.runtime import tflite_file
from edgeseal.runtime.engine import Signature
from edgeseal.runtime.engine_settings import LITERT_PROVIDERS

try:
    import numpy as np
    from ai_edge_litert import __version__ as _version
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("running TFLite models needs the extra 'litert': pip install 'edgeseal[litert]'") from e

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgeseal.runtime.engine import Stop, Tensors
    from edgeseal.runtime.engine_settings import EngineSettings

    Array = NDArray[np.generic]
    Shape = tuple[int, ...]

VERSION: Final = str(_version)
DEFAULT_SIGNATURE: Final = "serving_default"  # what the converters call the one of a model that has no other
MAX_ELEMENTS: Final = 2**31 - 1  # LiteRT counts in C ints
_LEAST_SECONDS: Final = 5.0  # an inference that was stopped may take this long,
_TIMES: Final = 4  # or so many times what the longest has taken that gave an answer
_POLL_SECONDS: Final = 0.05
_MAX_SAID: Final = 2**16  # an interpreter's messages hold all that it has ever complained of: then a fresh one is made
_SHOWN: Final = 300
# XNNPACK, LiteRT's default delegate, keeps weights in an order of its own; the plain kernels use them as they lie.
_RESOLVERS: Final = {
    "xnnpack": OpResolverType.BUILTIN,
    "cpu": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}
_DATATYPES: Final[dict[object, str]] = {
    np.bool_: "BOOL",
    np.uint8: "UINT8",
    np.uint16: "UINT16",
    np.uint32: "UINT32",
    np.uint64: "UINT64",
    np.int8: "INT8",
    np.int16: "INT16",
    np.int32: "INT32",
    np.int64: "INT64",
    np.float16: "FP16",
    np.float32: "FP32",
    np.float64: "FP64",
    np.bytes_: "BYTES",
}


logger = logging.getLogger("edgeseal.serve")


class LiteRtEngine:
    """One model in one interpreter. An interpreter has one set of tensors: inferences take turns."""

    platform = "litert_tflite"

    def __init__(self, path: Path, *, threads: int, settings: EngineSettings) -> None:
        """Open the model. Raises FormatError for whatever LiteRT refuses, MemoryError, IncompatibleError."""
        tflite_file.check(path)
        available = ["cpu"] if settings.prepack is False else LITERT_PROVIDERS
        resolver = _RESOLVERS[settings.provider_here(available)]
        self._turn = threading.Lock()
        self._longest = 0.0  # seconds
        self._interpreter = functools.partial(
            Interpreter, model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver
        )
        try:
            self._open()
        except (ValueError, RuntimeError) as e:
            _check_memory(e)
            raise FormatError(f"LiteRT does not load {path.name}: {_reason(e)}") from e

    def _open(self) -> None:
        interpreter = self._interpreter()
        interpreter.allocate_tensors()
        self._graph = _graph(interpreter)
        self.inputs = [_signature(name, found) for name, found in self._graph.inputs.items()]
        self.outputs = [_signature(name, found) for name, found in self._graph.outputs.items()]

    def infer(self, inputs: Tensors, wanted: Sequence[str], stop: Stop | None = None) -> dict[str, Array]:
        """Run the model once, when its turn comes; `stop` ends the waiting.

        LiteRT's interpreter cannot be interrupted: what goes on after `stop` is ended with its process
        (`_Overdue`). Raises FormatError naming the input that LiteRT cannot take, MemoryError, TimeoutError.
        """
        for signature in self.inputs:
            _check_shape(signature, np.shape(inputs[signature.name]) if signature.name in inputs else None)
        while not self._turn.acquire(timeout=_POLL_SECONDS):
            _check_stop(stop)
        try:
            _check_stop(stop)
            with _Overdue(stop, max(_LEAST_SECONDS, _TIMES * self._longest)) as taken:
                found = self._graph.run(inputs)
            self._longest = max(self._longest, taken.seconds)
        except (ValueError, RuntimeError, TypeError) as e:
            if len(str(e)) > _MAX_SAID:
                self._open()
            _check_memory(e)
            raise FormatError(f"the model does not run on these inputs: {_reason(e)}") from e
        finally:
            self._turn.release()
        return {name: _strings(found[name]) for name in wanted}


class _Overdue:
    """Ends this process when an inference goes on after it was stopped, and has taken longer than it can need.

    It would keep its model's turn, a thread and its cores for ever. edgeseal-serve starts its worker again at once and
    counts a crash, which is what gives a release back within its watch; connections wait in the socket's queue.
    `allowed`: seconds from here that are not held against it, because it may have begun just before its caller's
    time was over.
    """

    def __init__(self, stop: Stop | None, allowed: float) -> None:
        self._lock = threading.Lock()
        self._stop, self._allowed = stop, allowed
        self._timer: threading.Timer | None = None
        self._done = False

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._stop is not None:
            self._stop.on(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        with self._lock:
            self._done = True
            if self._timer is not None:
                self._timer.cancel()

    def _watch(self) -> None:
        with self._lock:
            if self._done or self._timer is not None:
                return
            left = self._began + self._allowed - time.monotonic()
            self._timer = threading.Timer(max(0.0, left), _end_process)
            self._timer.daemon = True
            self._timer.start()


def _end_process() -> None:
    logger.error("LiteRT goes on with an inference that was ended: this process ends")
    os._exit(os.EX_SOFTWARE)


class _MainGraph:
    """The first subgraph of a model without signatures, by the names of its tensors."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self.inputs = {d["name"]: d for d in interpreter.get_input_details()}
        self.outputs = {d["name"]: d for d in interpreter.get_output_details()}

    def run(self, inputs: Tensors) -> dict[str, Array]:
        for name, value in inputs.items():
            self._interpreter.resize_tensor_input(self.inputs[name]["index"], np.shape(value))
        self._interpreter.allocate_tensors()  # of no effect if nothing has another shape than before
        for name, value in inputs.items():
            self._interpreter.set_tensor(self.inputs[name]["index"], value)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(d["index"]) for name, d in self.outputs.items()}


class _SignatureGraph:
    """One signature of a model: names that its author chose, whichever subgraph they belong to."""

    def __init__(self, interpreter: Interpreter, key: str) -> None:
        self._interpreter = interpreter  # the runner does not keep it alive by itself in all versions
        self._runner = interpreter.get_signature_runner(key)
        self.inputs: Mapping[str, Any] = self._runner.get_input_details()
        self.outputs: Mapping[str, Any] = self._runner.get_output_details()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        found: dict[str, Array] = self._runner(**inputs)
        return found


def _graph(interpreter: Interpreter) -> _MainGraph | _SignatureGraph:
    """Return what of a model is served: its default or only signature, or the main subgraph if it has none."""
    keys = list(interpreter.get_signature_list())
    if not keys:
        return _MainGraph(interpreter)
    if len(keys) > 1 and DEFAULT_SIGNATURE not in keys:
        raise FormatError(
            f"the model has the signatures {', '.join(sorted(keys))[:200]}; which one is to be served is not clear",
            hint=f"convert it with one signature, or call one of them {DEFAULT_SIGNATURE}",
        )
    return _SignatureGraph(interpreter, keys[0] if len(keys) == 1 else DEFAULT_SIGNATURE)


def _signature(name: str, details: Mapping[str, Any]) -> Signature:
    datatype = _DATATYPES.get(details["dtype"])
    if datatype is None:
        raise FormatError(f"{name!r} is a {details['dtype']}; tensors of {', '.join(_DATATYPES.values())} are served")
    # A signature without dimensions says that none may vary.
    shape = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    return Signature(name, datatype, tuple(int(d) if d >= 0 else -1 for d in shape))


def _check_shape(declared: Signature, shape: Shape | None) -> None:
    """LiteRT would give any input another shape, and kernels trust it."""
    if shape is None:
        raise FormatError(f"the model does not run on these inputs: input {declared.name!r} is missing")
    fits = len(shape) == len(declared.shape) and all(w in {-1, d} for d, w in zip(shape, declared.shape, strict=True))
    if not fits:
        raise FormatError(
            f"the model does not run on these inputs: input {declared.name!r} has shape {list(shape)}; "
            f"the model needs {list(declared.shape)}"
        )
    if np.prod(shape, dtype=object) > MAX_ELEMENTS:
        raise FormatError(f"input {declared.name!r}: shape {list(shape)} has more elements than LiteRT can count")


def _strings(value: Array) -> Array:
    """Return text as text, as other engines give it; bytes that are no UTF-8 stay bytes."""
    if value.dtype != object:
        return value
    texts = np.empty(value.shape, dtype=object)
    texts.reshape(-1)[:] = [_text(v) for v in value.reshape(-1).tolist()]
    return texts


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _check_stop(stop: Stop | None) -> None:
    if stop is not None and stop.stopped:
        raise TimeoutError("the inference was ended before it began")


def _check_memory(error: Exception) -> None:
    """Raise MemoryError if that is what LiteRT means: it fails without a word where tensors do not fit into memory."""
    if "Malloc to copy" in str(error) or (isinstance(error, RuntimeError) and not str(error)):
        raise MemoryError from error


def _reason(error: Exception) -> str:
    """Return the end of LiteRT's message, in one line: its beginning may be about what failed before."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text[-_SHOWN:] or type(error).__name__

"""What a model file can be run with: one small Protocol, one implementation per engine.

A model is always opened by its path: engines map weights from there, where bytes would cost almost three times the
memory.
"""

from __future__ import annotations

import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.runtime import engine_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Signature:
    """Name, Open Inference Protocol datatype and shape of one input or output; -1 is a dimension that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Stop:
    """Ends an inference from another thread: whoever waits calls `now`, the engine says with `on` how it ends."""

    def __init__(self) -> None:
        """Not stopped."""
        self._lock = threading.Lock()
        self._ways: list[Callable[[], None]] = []
        self.stopped = False

    def on(self, way: Callable[[], None]) -> None:
        """Call `way` when it is to end, at once if that was before."""
        with self._lock:
            self._ways.append(way)
            late = self.stopped
        if late:
            way()

    def now(self) -> None:
        """End it as soon as the engine can."""
        with self._lock:
            self.stopped = True
            ways = list(self._ways)
        for way in ways:
            way()


class Engine(Protocol):
    """A loaded model; `infer` may be called from several threads."""

    platform: str

    @property
    def inputs(self) -> Sequence[Signature]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[Signature]:
        """What it gives."""

    def infer(self, inputs: Tensors, wanted: Sequence[str], stop: Stop | None = None) -> dict[str, NDArray[np.generic]]:
        """Return the wanted outputs.

        Raises FormatError if the engine refuses the inputs, MemoryError, TimeoutError once `stop` has ended it.
        """


ONNX, TFLITE = ".onnx", ".tflite"
SUFFIXES: Final = (ONNX, TFLITE)
_LISTED: Final = 4  # names in a message


def model_file(directory: Path) -> Path:
    """Return the file of a release that an engine opens: model.onnx or model.tflite, or the only one of that kind.

    Raises IncompatibleError if there is none or it is not clear which.
    """
    found = sorted(p for p in directory.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    named = [p for p in found if p.parent == directory and p.stem == "model"]
    if len(named) == 1 or len(found) == 1:
        return (named or found)[0]
    wanted = " or ".join(f"model{suffix}" for suffix in SUFFIXES)
    if not found:
        raise IncompatibleError("no model file in the release", hint=f"call it {wanted} at the top of the bundle")
    names = ", ".join(str(p.relative_to(directory)) for p in (named or found)[:_LISTED])
    raise IncompatibleError(
        f"{len(named or found)} model files in the release where one was expected: {names}",
        hint=f"leave one {wanted} at the top of the bundle",
    )


def prepare(directory: Path) -> None:
    """Import the engine that a release needs, and nothing of the release. Raises as `load` does."""
    check_confined(directory)
    if model_file(directory).suffix == TFLITE:
        import edgeseal.runtime.engine_litert
    else:
        import edgeseal.runtime.engine_onnx  # noqa: F401 - imported so that it is there


def load(directory: Path, *, threads: int = 0) -> Engine:
    """Open the model of a release as its settings say; `threads` are the most (0: one for each core).

    Raises FormatError if the engine refuses the file, MemoryError, IncompatibleError, ImportError naming the extra.
    """
    check_confined(directory)
    path, settings = model_file(directory), engine_settings.read(directory)
    count = settings.threads_here(threads or engine_settings.most_threads())
    if path.suffix == TFLITE:
        from edgeseal.runtime.engine_litert import LiteRtEngine

        return LiteRtEngine(path, threads=count, settings=settings)
    from edgeseal.runtime.engine_onnx import OnnxEngine

    return OnnxEngine(path, threads=count, settings=settings)


def check_confined(directory: Path) -> None:
    """Raise FormatError if anything in the release is a link or leads out of it: an engine would follow it."""
    for path in directory.rglob("*"):
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            raise FormatError(f"{path.name} in the release is a link; releases hold plain files only")
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise FormatError(f"{path.name} in the release is neither a file nor a directory")

"""What a model file can be run with: one small Protocol, one implementation per engine.

A model is always opened by its path: engines map weights from there, where bytes would cost almost three times the
memory.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from edgeseal.errors import FormatError, IncompatibleError

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


_SUFFIXES: Final = {".onnx": "onnx"}


def model_file(directory: Path) -> Path:
    """Return the file of a release that an engine opens: model.onnx, or the only one with a known suffix.

    Raises IncompatibleError if there is none or it is not clear which.
    """
    found = sorted(p for p in directory.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
    named = [p for p in found if p.parent == directory and p.stem == "model"]
    if len(named) == 1 or len(found) == 1:
        return (named or found)[0]
    raise IncompatibleError(
        f"{len(found)} model files in the release where one was expected" if found else "no model file in the release",
        hint=f"call it model{next(iter(_SUFFIXES))} at the top of the bundle",
    )


def load(directory: Path, *, threads: int = 0) -> Engine:
    """Open the model of a release; `threads` 0 means one per core.

    Raises FormatError if the engine refuses the file, MemoryError, IncompatibleError, ImportError naming the extra.
    """
    check_confined(directory)
    path = model_file(directory)
    from edgeseal.runtime.engine_onnx import OnnxEngine

    return OnnxEngine(path, threads=threads or (os.cpu_count() or 1))


def check_confined(directory: Path) -> None:
    """Raise FormatError if anything in the release is a link or leads out of it: an engine would follow it."""
    for path in directory.rglob("*"):
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            raise FormatError(f"{path.name} in the release is a link; releases hold plain files only")
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise FormatError(f"{path.name} in the release is neither a file nor a directory")

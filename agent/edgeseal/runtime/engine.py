"""What a model file can be run with: one small Protocol, one implementation per engine.

A model is always opened by its path: engines map weights from there, where bytes would cost almost three times the
memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from edgeseal.errors import FormatError, IncompatibleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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


class Engine(Protocol):
    """A loaded model; `infer` may be called from several threads."""

    platform: str

    @property
    def inputs(self) -> Sequence[Signature]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[Signature]:
        """What it gives."""

    def infer(self, inputs: Tensors, wanted: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        """Return the wanted outputs. Raises FormatError if the engine refuses the inputs."""


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

    Raises FormatError if the engine refuses the file, IncompatibleError, ImportError naming the extra.
    """
    path = model_file(directory)
    check_confined(directory)
    from edgeseal.runtime.engine_onnx import OnnxEngine

    return OnnxEngine(path, threads=threads or (os.cpu_count() or 1))


def check_confined(directory: Path) -> None:
    """Raise FormatError if anything in the release is a link or leads out of it: an engine would follow it."""
    root = directory.resolve()
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.resolve().is_relative_to(root):
            raise FormatError(f"{path.name} in the release is a link; releases hold plain files only")

"""ONNX models with onnxruntime on the CPU.

Custom operator libraries are never registered: a model is data, not code. External data is confined to the release's
own directory before onnxruntime sees the file.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from edgeseal.errors import FormatError, IncompatibleError
from edgeseal.runtime.engine import Signature
from edgeseal.runtime.onnx_external import check_external

# Official builds report to their maker over HTTPS unless told not to before the first import (Privacy.md in the wheel):
# a device must not tell a third party that and what it runs.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A model may carry options of its own (threads, a profile written to the disk), which this would put above ours.
os.environ["ORT_LOAD_CONFIG_FROM_MODEL"] = "0"

try:
    import numpy as np
    import onnxruntime
except ImportError as e:  # pragma: no cover - depends on what is installed
    raise ImportError("running ONNX models needs the extra 'onnx': pip install 'edgeseal[onnx]'") from e

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgeseal.runtime.engine import Stop, Tensors
    from edgeseal.runtime.engine_settings import EngineSettings

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
# Names in a manifest -> onnxruntime's, the usual one first. Only what computes on this device: AzureExecutionProvider,
# which is in every official build, would send inputs away.
PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "acl": "ACLExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
VERSION: Final = str(onnxruntime.__version__)
# "/onnxruntime_src/onnxruntime/core/….h:47 onnxruntime::Some::Function(const Type&, bool) " before what went wrong
_SOURCE: Final = re.compile(r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)( const)? ?")
_QUIET: Final = 3  # onnxruntime's severity ERROR: warnings would go to the device's log for every model


def providers() -> list[str]:
    """Return what this build of onnxruntime can compute with, by its name in a manifest; the usual one first."""
    available = onnxruntime.get_available_providers()
    return [name for name, theirs in PROVIDERS.items() if theirs in available]


class OnnxEngine:
    """One model in one onnxruntime session."""

    platform = "onnx_onnxv1"

    def __init__(self, path: Path, *, threads: int, settings: EngineSettings) -> None:
        """Open the model. Raises FormatError for whatever onnxruntime refuses, MemoryError, IncompatibleError."""
        check_external(path)
        provider = PROVIDERS[settings.provider_here(providers())]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # By default threads wait for work by spinning, for 45 ms after each inference (docs/decisions/0011).
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
        # Prepacking copies weights out of the mapped file: 403 MB became 2 MB without it.
        options.add_session_config_entry("session.disable_prepacking", "0" if settings.prepack else "1")
        try:
            # Its fallback to another provider would print to standard output, which is the probe's verdict.
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[provider], enable_fallback=0, read_config_from_model=0
            )
        except Exception as e:
            _check_memory(e)
            if provider != PROVIDERS["cpu"]:
                raise IncompatibleError(f"{path.name} does not load with {provider} here: {_reason(e)}") from e
            raise FormatError(f"onnxruntime does not load {path.name}: {_reason(e)}") from e
        if provider not in self._session.get_providers():  # onnxruntime goes on without one that does not start
            raise IncompatibleError(f"onnxruntime has {provider}, but it does not start on this device")
        self.inputs = [_signature(node) for node in self._session.get_inputs()]
        self.outputs = [_signature(node) for node in self._session.get_outputs()]

    def infer(self, inputs: Tensors, wanted: Sequence[str], stop: Stop | None = None) -> dict[str, NDArray[np.generic]]:
        """Run the model once; `stop` ends it between two of its operators.

        Raises FormatError if onnxruntime refuses the inputs, MemoryError, TimeoutError.
        """
        options = onnxruntime.RunOptions()
        if stop is not None:
            stop.on(lambda: setattr(options, "terminate", True))
        try:
            found = self._session.run(list(wanted), dict(inputs), options)
        except Exception as e:
            if stop is not None and stop.stopped:
                raise TimeoutError("the inference was ended") from e
            _check_memory(e)
            raise FormatError(f"the model does not run on these inputs: {_reason(e)}") from e
        return {name: np.asarray(value) for name, value in zip(wanted, found, strict=True)}


def _signature(node: Any) -> Signature:  # noqa: ANN401 - onnxruntime's NodeArg has no type of its own
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        raise FormatError(f"{node.name} is a {node.type}; only tensors of {', '.join(DATATYPES.values())} are served")
    return Signature(node.name, datatype, tuple(d if isinstance(d, int) else -1 for d in node.shape))


def _check_memory(error: Exception) -> None:
    """Raise MemoryError if that is what onnxruntime means; only its message tells."""
    if any(words in str(error) for words in ("bad_alloc", "bad allocation", "Failed to allocate memory")):
        raise MemoryError from error


def _reason(error: Exception) -> str:
    """Return the first line of onnxruntime's message, without the paths of its source files."""
    return _SOURCE.sub("", str(error).strip().split("\n")[0])[:300]

"""Inputs of zeros in the shapes that a model declares: to warm it up, and to see it answer at all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeseal.runtime.engine import Engine, Stop

_VARYING: Final = 1  # what a dimension that may vary is set to
_WARM_SECONDS: Final = 10.0  # a loop that zeros never end must not hold up the others
_END_SECONDS: Final = 2.0  # between two operators of a large model, on a slow device
_MAX_ZEROS: Final = 256 * 2**20  # bytes of one made-up input; a model that declares more is not run on zeros


def zeros(model: Engine) -> dict[str, NDArray[np.generic]] | None:
    """Return one input of zeros for each that the model declares; None if one would be too large."""
    from edgeseal.runtime import oip

    inputs = {}
    for s in model.inputs:
        shape = [d if d >= 0 else _VARYING for d in s.shape]
        if oip.raw_size(s.datatype, shape) > _MAX_ZEROS:
            return None
        inputs[s.name] = oip.zeros(s.datatype, shape)
    return inputs


def warm(model: Engine) -> None:
    """Run the model once, so that the first caller does not wait for what engines put off until then.

    A model may refuse zeros (an index, a loop without an end is another matter): that is no reason not to serve it.
    Raises FormatError if it neither answers nor can be ended, or what else the engine raises.
    """
    from edgeseal.runtime.engine import Stop

    inputs = zeros(model)
    if inputs is None:
        return
    stop, raised = Stop(), list[Exception]()
    thread = threading.Thread(target=_run, args=(model, inputs, stop, raised), daemon=True)
    thread.start()
    thread.join(_WARM_SECONDS)
    stop.now()
    thread.join(_END_SECONDS)
    if thread.is_alive():
        raise FormatError(f"it did not answer within {_WARM_SECONDS:g} s and its engine cannot be interrupted")
    if raised and not isinstance(raised[0], FormatError | TimeoutError):
        raise raised[0]


def _run(model: Engine, inputs: dict[str, NDArray[np.generic]], stop: Stop, raised: list[Exception]) -> None:
    try:
        model.infer(inputs, [s.name for s in model.outputs], stop)
    except Exception as e:  # noqa: BLE001 - the caller sorts it
        raised.append(e)

"""The far end of `injected.zygote`: a process that forks a child for each step."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def serve(step: Callable[[], int], errors: str) -> None:
    """Fork at the word "fork", let the child go at "go", and tell its exit code; what it prints goes to `errors`.

    Read and written without buffers: the child must find exactly its own word, by one system call.
    """
    while os.read(0, 8) == b"fork\n":
        child = os.fork()
        if child == 0:
            _child(step, errors)
        _, status = os.waitpid(child, 0)
        _say(os.waitstatus_to_exitcode(status))


def _child(step: Callable[[], int], errors: str) -> None:
    _say(os.getpid())
    output = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.read(0, 8)
    code = 1
    try:
        code = step()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:  # noqa: BLE001 - shown as the interpreter would
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(number: int) -> None:
    os.write(1, f"{number}\n".encode())

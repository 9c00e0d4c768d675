"""What every test may rely on."""

from __future__ import annotations

import signal
import threading


def pytest_configure() -> None:
    """Let Ctrl-C be Ctrl-C: a shell's background job ignores SIGINT, and so would every process that a test starts."""
    ignored = signal.getsignal(signal.SIGINT) in {signal.SIG_IGN, None}
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)

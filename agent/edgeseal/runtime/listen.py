"""Where `edgeseal-serve` listens: loopback or a UNIX socket, never the network.

systemd can hold the socket instead (edgeseal-serve.socket): connections then wait while the service restarts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import Final

from edgeseal.errors import IncompatibleError, UsageError

BACKLOG: Final = 512  # connections that may wait while a worker starts
_FIRST_PASSED = 3  # sd_listen_fds(3)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


def listen(address: str) -> tuple[socket.socket, str]:
    """Bind and return the socket and its address as clients write it.

    Raises UsageError for any other address, IncompatibleError if it is taken.
    """
    kind, _, path = address.partition(":")
    try:
        return (_unix(path), address) if kind == "unix" and path else _loopback(address)
    except OSError as e:
        raise IncompatibleError(
            f"cannot listen on {address}: {e.strerror}", hint="is another edgeseal-serve running?"
        ) from e


def passed() -> tuple[socket.socket, str] | None:
    """Return the socket that systemd passed (sd_listen_fds(3)) and its address, None if it passed none.

    Raises UsageError for anything but one listening loopback or UNIX socket.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # workers are not meant
    if count != "1":
        raise UsageError(f"systemd passed {count or 'no'} sockets; edgeseal-serve takes exactly one")
    listener = socket.socket(fileno=_FIRST_PASSED)
    listener.set_inheritable(False)
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UsageError("the socket that systemd passed is not a listening stream socket")
    return listener, _address(listener)


def _address(listener: socket.socket) -> str:
    """Return the address as clients write it. Raises UsageError for one that a network reaches."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    if not ipaddress.ip_address(name[0]).is_loopback:
        raise UsageError(
            f"systemd passed a socket on {name[0]}", hint="ListenStream= must be a path or an address of loopback"
        )
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def _unix(path: str) -> socket.socket:
    if Path(path).is_socket():
        _check_nobody(path)
        Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o660)  # noqa: PTH101 - the group of the socket's directory decides
    except OSError:
        listener.close()
        raise
    return listener


def _check_nobody(path: str) -> None:
    """Raise IncompatibleError if somebody answers there: only what a killed server left may be replaced."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
        probe.connect(path)
        raise IncompatibleError(f"another server answers at unix:{path}", hint="stop it first, or listen elsewhere")


def _loopback(address: str) -> tuple[socket.socket, str]:
    host, _, port = address.rpartition(":")
    if host not in _LOOPBACK or not (port.isascii() and port.isdecimal()) or int(port) > 65535:  # noqa: PLR2004 - u16
        raise UsageError(
            f"cannot listen on {address[:200]!r}",
            hint="expected 127.0.0.1:PORT, [::1]:PORT or unix:PATH; it is not for a network",
        )
    listener = socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]").replace("localhost", "127.0.0.1"), int(port)))
    except OSError:
        listener.close()
        raise
    return listener, f"http://{host}:{listener.getsockname()[1]}"

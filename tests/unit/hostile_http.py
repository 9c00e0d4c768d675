"""An HTTP server that does what a test's script says with the socket: for clients that must survive any peer."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Script = Callable[["Asked"], None]

_RANGE = re.compile(r"\r\nrange: bytes=(\d+)-(\d+)\r\n", re.IGNORECASE)


@dataclass
class Asked:
    """One request, and the socket to answer on. `number` counts requests from 0, `connection` connections."""

    socket: socket.socket
    head: str
    number: int
    connection: int

    @property
    def path(self) -> str:
        return self.head.split(" ")[1]

    @property
    def start(self) -> int:
        """Where the range asked for begins; 0 without one."""
        found = _RANGE.search(self.head)
        return int(found[1]) if found else 0

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes, seconds: float) -> None:
        """Send one byte at a time; a client that leaves ends it."""
        with contextlib.suppress(OSError):
            for i in range(len(data)):
                self.socket.sendall(data[i : i + 1])
                time.sleep(seconds)
        self.hang_up()

    def reset(self) -> None:
        """End the connection with RST: what the client has not read yet is lost to it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def hang_up(self) -> None:
        """End the connection with FIN."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@dataclass
class Hostile:
    """The server: `script` answers each request; `asked` is what came."""

    script: Script
    listener: socket.socket
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def accept_all(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return  # closed: the test is over
            peer.settimeout(30)
            with self.lock:
                number, self.connections = self.connections, self.connections + 1
            threading.Thread(target=self._serve, args=(peer, number), daemon=True).start()

    def _serve(self, peer: socket.socket, connection: int) -> None:
        with contextlib.suppress(OSError), peer:
            while peer.fileno() >= 0 and (head := _read_head(peer)):
                with self.lock:
                    asked = Asked(peer, head, len(self.asked), connection)
                    self.asked.append(asked)
                self.script(asked)


def _read_head(peer: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = peer.recv(4096)
        if not piece:
            return ""
        head += piece
    return head.decode("latin-1")


@contextlib.contextmanager
def hostile(script: Script) -> Iterator[Hostile]:
    """Serve with `script` on a free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Hostile(script, listener)
        thread = threading.Thread(target=server.accept_all, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
            thread.join(10)


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return a response with a Content-Length unless `headers` say otherwise; `None`-like "" leaves a header out."""
    named = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def ranged(data: bytes, start: int) -> bytes:
    """Return what an honest server says: 206 from `start`, or 200."""
    if not start:
        return answer("200 OK", data)
    return answer("206 Partial Content", data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")

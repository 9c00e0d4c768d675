"""One copy of a live request and its answer, from the worker that serves to the one that only tries: both ends.

A message on a SOCK_SEQPACKET pair: JSON head, and as its one descriptor an anonymous file in memory with both bodies as
they went over the network. The other end answers one byte for each copy it is done with. Whoever serves never waits:
with MAX_OPEN copies not answered, or MAX_BYTES of them, the next one is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from edgeseal.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPEN: Final = 16
MAX_BYTES: Final = 64 * 2**20
_QUEUE: Final = 16_384  # bytes of SO_SNDBUF: holds MAX_OPEN messages, and few more whatever the other end answers
_MAX_HEAD: Final = 1024
_DONE: Final = b"."


@dataclass(frozen=True, slots=True)
class Copy:
    """A request's body and the body of the answer; `*_json` as in oip.parse_request. `seconds`: what it took to run."""

    request: bytes | bytearray
    request_json: int | None
    answer: bytes
    answer_json: int | None
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of both bodies."""
        return len(self.request) + len(self.answer)


class Counts(msgspec.Struct):
    """Of one order, in one serving worker: answers that could be copied, copies sent, copies dropped."""

    seen: int = 0
    copied: int = 0
    dropped: int = 0

    def plus(self, other: Counts) -> Counts:
        """Return the sum of both."""
        return Counts(self.seen + other.seen, self.copied + other.copied, self.dropped + other.dropped)


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request: int
    request_json: int | None
    answer: int
    answer_json: int | None
    seconds: float


def send(end: socket.socket, copy: Copy) -> None:
    """Send one copy. Raises OSError, BlockingIOError among them if the other end is behind."""
    head = _Head(len(copy.request), copy.request_json, len(copy.answer), copy.answer_json, copy.seconds)
    with os.fdopen(os.memfd_create("edgeseal-copy"), "wb", buffering=0) as f:
        for part in (copy.request, copy.answer):
            rest = memoryview(part)
            while rest:
                rest = rest[f.write(rest) :]
        socket.send_fds(end, [msgspec.json.encode(head)], [f.fileno()])


def receive(end: socket.socket) -> Copy | None:
    """Return the next copy, None once the other end is shut. Raises FormatError, OSError."""
    data, descriptors, _, _ = socket.recv_fds(end, _MAX_HEAD, 1)
    with contextlib.ExitStack() as stack:
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        if not data:
            return None
        try:
            head = msgspec.json.decode(data, type=_Head)
        except msgspec.MsgspecError as e:
            raise FormatError(f"copy of a request: {e}") from e
        size = head.request + head.answer
        if len(descriptors) != 1 or head.request < 0 or head.answer < 0 or os.fstat(descriptors[0]).st_size != size:
            raise FormatError("copy of a request: its bodies are not as long as its head says")
        request = _read(descriptors[0], head.request, 0)
        answer = _read(descriptors[0], head.answer, head.request)
    return Copy(request, head.request_json, answer, head.answer_json, head.seconds)


def done(end: socket.socket) -> None:
    """Tell the sender that one copy is done with; one that is gone needs no word."""
    with contextlib.suppress(OSError):
        end.send(_DONE)


def _read(descriptor: int, size: int, at: int) -> bytes:
    """Read a part, from where it is: the sender's end of the file is where it stopped writing."""
    parts = []
    while size:
        part = os.pread(descriptor, size, at)
        if not part:
            raise FormatError("copy of a request: it ends early")
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)


class Copies:
    """The sending end, in the event loop of the worker that serves."""

    def __init__(self, end: socket.socket, *, order: str, model: str, fraction: float, counts: Counts) -> None:
        """Copy `fraction` of the answers of `model` to `end`, for the `order` of that id; goes on with `counts`."""
        self.order = order
        self.model = model
        self.counts = counts
        self._end = end
        self._fraction = fraction
        self._open: list[int] = []  # sizes of the copies that are not answered, oldest first
        self._random = random.SystemRandom() if fraction < 1 else None
        # One thread: copying tens of MiB in the event loop would hold up whoever asks next.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._loop = asyncio.get_running_loop()
        end.settimeout(0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)
        self._loop.add_reader(end.fileno(), self._answered)
        self._closed = False

    def wants(self, model: str) -> bool:
        """Count one answer, and say whether it is to be offered."""
        if model != self.model or self._closed:
            return False
        self.counts.seen += 1
        return self._random is None or self._random.random() < self._fraction

    async def offer(self, copy: Copy) -> None:
        """Send a copy if the other side keeps up, drop it otherwise; returns at once."""
        if self._closed or len(self._open) >= MAX_OPEN or sum(self._open) + copy.size > MAX_BYTES:
            self.counts.dropped += 1
            return
        self._open.append(copy.size)
        self._thread.submit(self._send, copy)

    def close(self) -> None:
        """Send nothing more."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._end.fileno())
        self._thread.submit(self._end.close)  # after what it is sending
        self._thread.shutdown(wait=False)

    def _send(self, copy: Copy) -> None:
        try:
            send(self._end, copy)
        except (OSError, MemoryError):
            self._later(self._not_sent, copy.size)
        else:
            self._later(self._sent)

    def _later(self, what: Callable[..., None], *about: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *about)

    def _sent(self) -> None:
        self.counts.copied += 1

    def _not_sent(self, size: int) -> None:
        self.counts.dropped += 1
        if size in self._open:
            self._open.remove(size)

    def _answered(self) -> None:
        """Take the word that copies are done with; an end that is shut will take no more."""
        for _ in range(MAX_OPEN):  # one that answers without end holds nobody up
            try:
                word = self._end.recv(len(_DONE))
            except BlockingIOError:
                return
            except OSError:
                word = b""
            if not word:
                self.close()
                return
            if self._open:
                self._open.pop(0)

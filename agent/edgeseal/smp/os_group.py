"""Group 0 of a device: echo, parameters, application info (Zephyr, "OS management group"), and nothing that changes it.

Enough for `smpmgr`, `mcumgr` and `smpclient` to find the device and to learn what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgeseal.smp.lines import MAX_PACKET
from edgeseal.smp.packet import Op, Packet, Rc

GROUP: Final = 0
ECHO: Final = 0
PARAMETERS: Final = 6
INFO: Final = 7
MAX_ECHO: Final = 1024
BUFFERS: Final = 4  # packets a client may have in flight
_ALL: Final = "snrvbmpio"  # `uname -a`'s order, as Zephyr prints it


@dataclass(frozen=True, slots=True)
class OsGroup:
    """What this device answers as application info, each one word or phrase of printable text."""

    kernel: str
    node: str
    release: str
    version: str
    build: str
    machine: str
    processor: str
    platform: str
    system: str

    def answer(self, request: Packet) -> Packet:
        """Answer a request of group 0; one for a command that is not here gets NOT_SUPPORTED."""
        if request.command == ECHO:
            return self._echo(request)
        if request.op is Op.READ and request.command == PARAMETERS:
            return request.answer({"buf_size": MAX_PACKET, "buf_count": BUFFERS})
        if request.op is Op.READ and request.command == INFO:
            return self._info(request)
        return request.failure(Rc.NOT_SUPPORTED)

    def _echo(self, request: Packet) -> Packet:
        text = request.body.get("d")
        if not isinstance(text, str) or len(text.encode(errors="replace")) > MAX_ECHO:
            return request.failure(Rc.INVALID)
        return request.answer({"r": text})

    def _info(self, request: Packet) -> Packet:
        """Answer like `uname`: one letter per field, `a` for all, `s` when nothing is asked for."""
        wanted = request.body.get("format", "s")
        if not isinstance(wanted, str) or not set(wanted) <= set(_ALL + "a"):
            return request.failure(Rc.INVALID)
        fields = {
            "s": self.kernel,
            "n": self.node,
            "r": self.release,
            "v": self.version,
            "b": self.build,
            "m": self.machine,
            "p": self.processor,
            "i": self.platform,
            "o": self.system,
        }
        letters = [c for c in _ALL if c in wanted or "a" in wanted]
        return request.answer({"output": " ".join(fields[c] for c in letters or ["s"])})

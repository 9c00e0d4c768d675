"""SMP packets as lines of a console (Zephyr, "SMP over console"; mcumgr's serial transport).

    packet -> u16 length ‖ packet ‖ u16 CRC-16/XMODEM -> base64 -> lines of at most 127 bytes
    first line 0x06 0x09 … LF, every further one 0x04 0x14 … LF;  length = bytes of packet ‖ CRC

A console is shared: boot messages, a getty's prompt, an echo or the half of a line may stand before, between and inside
lines. Both start marks are control characters that base64 and a prompt do not have, so the decoder looks for them
anywhere. A damaged packet disappears without a word; whoever waits for it asks again.
"""

from __future__ import annotations

import binascii
from typing import Final

FIRST: Final = b"\x06\x09"
FURTHER: Final = b"\x04\x14"
END: Final = b"\n"
LINE_LENGTH: Final = 127  # bytes with marks and LF: what mcumgr's own buffers hold
MAX_PACKET: Final = 2048  # bytes of header and payload that are accepted
_LENGTH: Final = 2
_CRC: Final = 2
_BASE64_PER_LINE: Final = (LINE_LENGTH - len(FIRST) - len(b"\r\n")) // 4 * 4  # a terminal may add the CR
_MAX_LINE: Final = 2 * LINE_LENGTH  # other clients send longer lines than we do; beyond this it is noise


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM: polynomial 0x1021, start 0, no reflection (binascii's CCITT variant is the same)."""
    return binascii.crc_hqx(data, 0)


def encode_lines(packet: bytes) -> bytes:
    """Return the lines of one packet.

    Raises ValueError for one longer than MAX_PACKET: that is our bug.
    """
    if len(packet) > MAX_PACKET:
        raise ValueError(f"SMP packet of {len(packet)} bytes; at most {MAX_PACKET} fit")
    body = (len(packet) + _CRC).to_bytes(_LENGTH, "big") + packet + crc16(packet).to_bytes(_CRC, "big")
    text = binascii.b2a_base64(body, newline=False)
    pieces = [text[i : i + _BASE64_PER_LINE] for i in range(0, len(text), _BASE64_PER_LINE)]
    return b"".join((FURTHER if i else FIRST) + piece + END for i, piece in enumerate(pieces))


class LineDecoder:
    """Finds packets in a stream of any bytes, fed in any pieces. Keeps at most one packet and one line.

    `damaged` counts what began like a packet and did not end as one: the quality of a cable.
    """

    def __init__(self) -> None:
        """Start between lines."""
        self.damaged = 0
        self._pending = b""  # bytes that may belong to a line: from a start mark on, or half a mark
        self._body: bytearray | None = None  # decoded so far of the packet that is coming in

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that `data` completes."""
        self._pending += data
        packets: list[bytes] = []
        while (line := self._next_line()) is not None:
            packet = self._take(line)
            if packet is not None:
                packets.append(packet)
        return packets

    def _next_line(self) -> bytes | None:
        """Cut the next complete line off, from its start mark to before LF; what precedes the mark is not ours."""
        while True:
            start = _find_mark(self._pending)
            if start < 0:
                self._pending = self._pending[-1:] if self._pending[-1:] in {FIRST[:1], FURTHER[:1]} else b""
                return None
            self._pending = self._pending[start:]
            end = self._pending.find(END, len(FIRST))
            again = _find_mark(self._pending, len(FIRST))
            if again >= 0 and (end < 0 or again < end):  # a line lost its end: the next one begins inside it
                self._pending = self._pending[again:]
                self._drop(lost=1)
                continue
            if end < 0:
                if len(self._pending) > _MAX_LINE:
                    self._pending = self._pending[len(FIRST) :]
                    self._drop(lost=1)
                    continue
                return None
            line, self._pending = self._pending[:end], self._pending[end + 1 :]
            return line

    def _take(self, line: bytes) -> bytes | None:
        """Add one line to the packet; return the packet once it is whole and sound."""
        mark, text = line[: len(FIRST)], line[len(FIRST) :].rstrip(b"\r")
        if mark == FIRST:
            if self._body is not None:
                self._drop()
            self._body = bytearray()
        elif self._body is None:
            return None  # the rest of a packet whose beginning was damaged, counted there
        try:
            self._body += binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            self._drop()
            return None
        return self._finish()

    def _finish(self) -> bytes | None:
        body = self._body
        if body is None or len(body) < _LENGTH:
            return None
        length = int.from_bytes(body[:_LENGTH], "big")
        if not _CRC < length <= MAX_PACKET + _CRC or len(body) > _LENGTH + length:
            self._drop()
            return None
        if len(body) < _LENGTH + length:
            return None
        packet, crc = bytes(body[_LENGTH:-_CRC]), int.from_bytes(body[-_CRC:], "big")
        self._body = None
        if crc16(packet) != crc:
            self.damaged += 1
            return None
        return packet

    def _drop(self, *, lost: int = 0) -> None:
        """Forget the packet that was coming in; `lost` counts one of which not even a line was whole."""
        self.damaged += 1 if self._body is not None else lost
        self._body = None


def _find_mark(data: bytes, start: int = 0) -> int:
    found = [at for at in (data.find(FIRST, start), data.find(FURTHER, start)) if at >= 0]
    return min(found, default=-1)

"""Symbols as a string of bits, most significant bit first: what the bit estimators of SP 800-90B work on (§3.1.3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bits:
    """`length` bits, packed; the last byte is filled up with zeros that do not count."""

    packed: bytes
    length: int

    @property
    def ones(self) -> int:
        """How many are 1."""
        return int.from_bytes(self.packed, "big").bit_count()

    def text(self) -> bytes:
        """Return one character, 0 or 1, for each bit."""
        table = [format(value, "08b").encode() for value in range(256)]
        return b"".join(map(table.__getitem__, self.packed))[: self.length]


def of_symbols(symbols: bytes, width: int) -> Bits:
    """Return the `width` (1 to 8) low bits of each byte, one symbol after the other."""
    length = len(symbols) * width
    if width == 8:  # noqa: PLR2004 - a byte
        return Bits(symbols, length)
    mask = (1 << width) - 1
    table = [format(value & mask, f"0{width}b").encode() for value in range(256)]
    text = b"".join(map(table.__getitem__, symbols))
    padding = -length % 8
    return Bits((int(text or b"0", 2) << padding).to_bytes((length + padding) // 8, "big"), length)

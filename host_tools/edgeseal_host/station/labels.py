"""Labels with a QR code of a device's name, as SVG: one each, or sheets of A4.

The code holds the name under which the fleet knows the device, as it is, nothing around it: any reader shows it, and it
can be pasted into `edgeseal device show`. Serial number, MAC address and batch stand beside it for eyes. A label never
carries a key: a wrong one is a nuisance, not a leak.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgeseal_host.station.devices import Made

# All lengths are millimetres, as they come out of a printer that does not scale.
WIDTH: Final = 50.0
HEIGHT: Final = 25.0
PAGE: Final = (210.0, 297.0)  # ISO 216 A4
EDGE: Final = 5.0  # what office printers do not reach
ACROSS: Final = int((PAGE[0] - 2 * EDGE) // WIDTH)
DOWN: Final = int((PAGE[1] - 2 * EDGE) // HEIGHT)
PER_PAGE: Final = ACROSS * DOWN
QR: Final = 21.0  # a name of 64 characters has 37 modules and 8 of quiet zone: 0.47 each, and a phone reads 0.33
MARGIN: Final = 2.0
_LEFT: Final = QR + 2 * MARGIN
_ROOM: Final = WIDTH - _LEFT - MARGIN
_QUIET: Final = 4  # modules of white around a code (ISO/IEC 18004:2015, 6.3.8)

_ADVANCE: Final = 0.62  # width of a character by its size: the widest of the usual monospaced fonts
_SMALLEST: Final = 1.7  # size of text that can still be read and printed at 300 dpi
_LINES: Final = (
    (3.4, 2),
    (2.6, 2),
    (2.2, 1),
    (2.2, 1),
)  # greatest size and number of lines of name, serial, MAC, batch
_SPACE: Final = 1.25  # from one line to the next, by size


def label(device: Made) -> str:
    """Return one label."""
    return _document(WIDTH, HEIGHT, [_label(device, 0.0, 0.0)])


def sheets(devices: Sequence[Made]) -> Iterator[str]:
    """Return as many A4 pages as are needed, row by row from the top left."""
    for start in range(0, len(devices), PER_PAGE):
        page = devices[start : start + PER_PAGE]
        places = ((EDGE + i % ACROSS * WIDTH, EDGE + i // ACROSS * HEIGHT) for i in range(len(page)))
        yield _document(*PAGE, [_label(device, x, y) for device, (x, y) in zip(page, places, strict=True)])


def _document(width: float, height: float, content: list[str]) -> str:
    size = f'width="{width:g}mm" height="{height:g}mm" viewBox="0 0 {width:g} {height:g}"'
    body = "\n".join(content)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" {size}>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _label(device: Made, x: float, y: float) -> str:
    """One label at its place; an inner `svg` shows nothing outside of itself, whatever is in it."""
    entry = device.entry
    place = f'x="{x:g}" y="{y:g}" width="{WIDTH:g}" height="{HEIGHT:g}"'
    texts = "".join(_texts([entry.device, entry.serial, entry.eth_mac, entry.batch]))
    return f'<svg {place} font-family="monospace">{_qr(entry.device)}{texts}</svg>'


# Texts ---------------------------------------------------------------------------------------------------------------


def _texts(texts: list[str]) -> Iterator[str]:
    bottom = MARGIN
    for text, (greatest, lines) in zip(texts, _LINES, strict=True):
        size, shown = _fitted(_safe(text), greatest, lines)
        for line in shown:
            bottom += size * _SPACE
            yield _text(line, size, bottom)


def _text(line: str, size: float, y: float) -> str:
    """One line. One that needs nearly all the room is given it exactly: a wider font than ours is narrowed."""
    needed = _cells(line) * size * _ADVANCE
    exact = f' textLength="{needed:.2f}" lengthAdjust="spacingAndGlyphs"' if needed > 0.75 * _ROOM else ""
    return f'<text x="{_LEFT:g}" y="{y:.2f}" font-size="{size:.2f}"{exact}>{escape(line)}</text>'


def _fitted(text: str, greatest: float, lines: int) -> tuple[float, list[str]]:
    """Return a size and the lines of a text that fits beside the code.

    First it gets smaller, then it takes another line, and what is too long for both loses its middle: serial numbers
    differ at their ends.
    """
    room = int(_ROOM / (_SMALLEST * _ADVANCE))
    if len(_wrapped(text, room)) > lines:
        half = lines * (room - 1) // 2  # a wide character may leave one cell of a line empty
        text = f"{_cut(text, half)}…{_cut(text[::-1], half)[::-1]}"
    shown = _balanced(text, room)
    widest = max((_cells(line) for line in shown), default=1)
    return min(greatest, _ROOM / (widest * _ADVANCE)), shown


def _balanced(text: str, room: int) -> list[str]:
    """Return as few lines as are needed, all as short as can be."""
    needed = len(_wrapped(text, room))
    start = -(-_cells(text) // max(needed, 1))
    fitting = (_wrapped(text, width) for width in range(max(start, 1), room))
    return next((lines for lines in fitting if len(lines) <= needed), _wrapped(text, room))


def _wrapped(text: str, room: int) -> list[str]:
    shown = []
    while text:
        line = _cut(text, room)
        shown.append(line)
        text = text[len(line) :]
    return shown


def _cut(text: str, room: int) -> str:
    """Return as much of its beginning as fits into so many cells; at least one character."""
    used = 0
    for n, character in enumerate(text):
        used += _cells(character)
        if used > room:
            return text[: max(n, 1)]
    return text


def _cells(text: str) -> int:
    """Width in characters of a monospaced font: those of East Asia take two (UAX 11)."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _safe(text: str) -> str:
    """Replace what XML cannot hold and what no printer shows."""
    return "".join(c if c.isprintable() else "?" for c in text)


# The code ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2 * PER_PAGE)  # a device's label and its place on a sheet are drawn one after the other
def _qr(text: str) -> str:
    """One path for a whole code: rows of dark modules as rectangles."""
    import segno

    code = segno.make_qr(text, error="m", boost_error=False)
    rows = [bytes(row) for row in code.matrix]
    size = len(rows) + 2 * _QUIET
    runs = "".join(
        f"M{start + _QUIET} {y + _QUIET}h{length}v1h-{length}z"
        for y, row in enumerate(rows)
        for start, length in _runs(row)
    )
    place = f'x="{MARGIN:g}" y="{MARGIN:g}" width="{QR:g}" height="{QR:g}" viewBox="0 0 {size} {size}"'
    title = f"<title>{escape(_safe(text))}</title>"
    return f'<svg {place} shape-rendering="crispEdges">{title}<path d={quoteattr(runs)}/></svg>'


def _runs(row: bytes) -> Iterator[tuple[int, int]]:
    start = None
    for x, dark in enumerate([*row, 0]):
        if dark and start is None:
            start = x
        elif not dark and start is not None:
            yield start, x - start
            start = None

"""Labels with a QR code of a device's name, as SVG: one each, or sheets of A4.

A label carries a name and a serial number, never a key: a wrong one is a nuisance, not a leak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgeseal_host.station.devices import Made

WIDTH: Final = 50.0  # mm
HEIGHT: Final = 25.0
_QR: Final = 21.0  # mm: 25 to 33 modules of 0.64 to 0.84 mm, a phone reads 0.33
_MARGIN: Final = 2.0
_PAGE: Final = (210.0, 297.0)
_EDGE: Final = 5.0  # mm that printers do not reach
ACROSS: Final = int((_PAGE[0] - 2 * _EDGE) // WIDTH)
DOWN: Final = int((_PAGE[1] - 2 * _EDGE) // HEIGHT)
_TEXT: Final = 24  # characters that fit beside the code
_QUIET: Final = 4  # modules of white around a code (ISO/IEC 18004)


def label(device: Made) -> str:
    """Return one label."""
    return _document(WIDTH, HEIGHT, [_label(device, 0.0, 0.0)])


def sheets(devices: Sequence[Made]) -> Iterator[str]:
    """Return as many A4 pages as are needed."""
    for start in range(0, len(devices), ACROSS * DOWN):
        page = devices[start : start + ACROSS * DOWN]
        places = ((_EDGE + i % ACROSS * WIDTH, _EDGE + i // ACROSS * HEIGHT) for i in range(len(page)))
        yield _document(*_PAGE, [_label(device, x, y) for device, (x, y) in zip(page, places, strict=True)])


def _document(width: float, height: float, content: list[str]) -> str:
    size = f'width="{width:g}mm" height="{height:g}mm" viewBox="0 0 {width:g} {height:g}"'
    body = "\n".join(content)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" {size}>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _label(device: Made, x: float, y: float) -> str:
    entry = device.entry
    lines = [(entry.device, 3.2), (entry.serial, 2.4), (entry.eth_mac, 2.4), (entry.batch, 2.4)]
    texts, height = [], 6.0
    for text, size in lines:
        if text:
            shown = escape(_safe(text)[:_TEXT])
            texts.append(f'<text x="{_QR + 2 * _MARGIN:g}" y="{height:g}" font-size="{size:g}">{shown}</text>')
        height += 4.5
    code = _qr(entry.device)
    inner = "".join(texts)
    return f'<g transform="translate({x:g} {y:g})" font-family="sans-serif">{code}{inner}</g>'


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
    place = f'x="{_MARGIN:g}" y="{_MARGIN:g}" width="{_QR:g}" height="{_QR:g}" viewBox="0 0 {size} {size}"'
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


def _safe(text: str) -> str:
    """Drop what XML cannot hold."""
    return "".join(c if c.isprintable() else "?" for c in text)

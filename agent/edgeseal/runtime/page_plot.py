"""The plot of the page: how long answers took, as a histogram in inline SVG; nothing is computed in the browser.

Shares and not counts, so that a release can be held against the one before it, drawn as an outline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.runtime.counters import BUCKETS
from edgeseal.runtime.page_words import count, plural, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal.runtime.counters import Tally

_WIDTH, _HEIGHT = 380, 220  # units of the drawing: pixels on a phone, a little more on a desk
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 16, 44
_LEAST: Final = 6  # buckets shown at least: fewer look like a mistake
_TOPS: Final = {4: 1, 10: 2, 20: 5, 40: 10, 60: 20, 80: 20, 100: 25}  # where the axis may end: its steps; percent
_CROWD: Final = 10  # of more buckets every other edge has its label
_SLIVER: Final = 1.5  # height of a bar that is there but would round to nothing


def plot(release: int, tally: Tally, before: tuple[int, Tally] | None) -> str:
    """Return a `<figure>`: bars for `release`, an outline for the release before it; empty without an answer."""
    bars = _shares(tally)
    if not any(bars):
        return ""
    outline = _shares(before[1]) if before else []
    first, last = _range([a + b for a, b in zip(bars, outline or bars, strict=True)])
    bars, outline = bars[first:last], outline[first:last]
    top = next(t for t in _TOPS if t >= max(*bars, *outline) - 1e-9)
    step = (_WIDTH - _LEFT - _RIGHT) / len(bars)
    marks = "".join(
        [
            _y_axis(top),
            _bars(bars, first, top, step, tally),
            _outline(outline, top, step),
            _values(bars, top, step),
            _x_axis(first, last, step),
        ]
    )
    return (
        f'<figure><svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{_described(release, bars, first)}">'
        f"{marks}</svg>{_legend(release, tally, before)}</figure>"
    )


def interval(bucket: int) -> str:
    """Return what one bucket of the histogram holds, in words."""
    if bucket == 0:
        return f"up to {span(BUCKETS[0])}"
    if bucket == len(BUCKETS):
        return f"more than {span(BUCKETS[-1])}"
    return f"{span(BUCKETS[bucket - 1])} to {span(BUCKETS[bucket])}"


def _shares(tally: Tally) -> list[float]:
    """Return percent of the answers by bucket; zeros without any."""
    total = sum(tally.buckets)
    return [100 * n / total if total else 0.0 for n in tally.buckets]


def _range(weights: Sequence[float]) -> tuple[int, int]:
    """Return which buckets to show: all that hold something, widened to at least `_LEAST`."""
    held = [i for i, w in enumerate(weights) if w]
    first, last = held[0], held[-1] + 1
    first = max(0, min(first, last - _LEAST))
    return first, max(last, min(len(weights), first + _LEAST))


def _y(share: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - share / top * (_HEIGHT - _TOP - _BOTTOM)


def _y_axis(top: int) -> str:
    lines = []
    for share in range(0, top + 1, _TOPS[top]):
        y = _y(share, top)
        lines.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{share}</text>')
    middle = _y(top / 2, top)
    return "".join(lines) + f'<text transform="translate(13 {middle:.1f}) rotate(-90)">answers (%)</text>'


def _bars(bars: Sequence[float], first: int, top: float, step: float, tally: Tally) -> str:
    total, shapes = sum(tally.buckets), []
    for i, share in enumerate(bars):
        height = _height(share, top)
        x, y, width = _LEFT + i * step + 2, _y(0, top) - height, step - 4
        title = f"{interval(first + i)}: {count(tally.buckets[first + i])} of {plural(total, 'answer', 'answers')}"
        if share:
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            shapes.append(f"<rect {place}><title>{title}</title></rect>")
    return "".join(shapes)


def _values(bars: Sequence[float], top: float, step: float) -> str:
    """Return the number on each bar; above everything else, so that no line runs through it."""
    places = [(_LEFT + (i + 0.5) * step, _y(0, top) - _height(share, top) - 4) for i, share in enumerate(bars)]
    return "".join(
        f'<text class="value" x="{x:.1f}" y="{y:.1f}">{_percent(share)}</text>'
        for (x, y), share in zip(places, bars, strict=True)
        if share
    )


def _height(share: float, top: float) -> float:
    return max(_SLIVER, _y(0, top) - _y(share, top))


def _outline(shares: Sequence[float], top: float, step: float) -> str:
    if not any(shares):
        return ""
    steps = "".join(f"V{_y(share, top):.1f}h{step:.1f}" for share in shares)
    return f'<path class="before" d="M{_LEFT} {_y(0, top):.1f}{steps}V{_y(0, top):.1f}"/>'


def _x_axis(first: int, last: int, step: float) -> str:
    """Label the edges between buckets; milliseconds have no unit of their own, the axis says it."""
    edges, labels = (0.0, *BUCKETS), []
    for i, at in enumerate(range(first, last + 1)):
        x, y = _LEFT + i * step, _HEIGHT - _BOTTOM + 15
        if at == len(edges):
            labels.append(f'<text class="end" x="{x + _RIGHT:.1f}" y="{y}">more</text>')
        elif last - first <= _CROWD or i % 2 == 0:
            labels.append(f'<text x="{x:.1f}" y="{y}">{_edge(edges[at])}</text>')
    middle = _LEFT + (last - first) * step / 2
    title = "time to answer (ms)" if edges[min(last, len(BUCKETS))] < 1 else "time to answer (ms, from 1 s on in s)"
    return "".join(labels) + f'<text x="{middle:.1f}" y="{_HEIGHT - 8}">{title}</text>'


def _edge(seconds: float) -> str:
    return span(seconds) if seconds >= 1 else f"{seconds * 1000:g}"


def _percent(share: float) -> str:
    """Return at most three digits; never "0" for what is there, never "100" for what is not all."""
    if share < 0.1:  # noqa: PLR2004 - one digit behind the point
        return "&lt;0.1"
    if share < 10 or 99 < share < 100:  # noqa: PLR2004
        return f"{min(share, 99.9) if share > 10 else share:.1f}"  # noqa: PLR2004
    return f"{share:.0f}"


def _described(release: int, bars: Sequence[float], first: int) -> str:
    """Return what the plot shows for whoever does not see it."""
    parts = [f"{interval(first + i)} {_percent(share)} %" for i, share in enumerate(bars) if share]
    return f"Time to answer of release {release}: {', '.join(parts)}."


def _legend(release: int, tally: Tally, before: tuple[int, Tally] | None) -> str:
    def entry(kind: str, number: int, of: Tally) -> str:
        return f'<span class="key {kind}"></span>release {number}, {plural(sum(of.buckets), "answer", "answers")}'

    entries = [entry("bar", release, tally)]
    if before and sum(before[1].buckets):
        entries.append(entry("line", *before))
    return f"<figcaption>{' '.join(f'<span>{e}</span>' for e in entries)}</figcaption>"

"""The page at `/` for the person who stands at the device: what serves, since when, how fast, what was refused and why.

Plain HTML and one inline SVG for each release; nothing is fetched from anywhere, no script runs (CSP below).
"""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Any, Final

from edgeseal.runtime.counters import BUCKETS, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgeseal.runtime.counters import Tallies
    from edgeseal.runtime.models import Loaded

CSP: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
REFRESH_SECONDS: Final = 5
_WIDTH, _HEIGHT, _BASE = 26, 90, 14  # of a bar, of the plot, of its labels; pixels

STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --line: #d5dde5; --bar: #2a78c2; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa8b5; --line: #38434e; --bar: #6cb0f0; --bad: #ff8a80; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); } .bad { color: var(--bad); }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); font-weight: normal; }
th { color: var(--soft); } td.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; margin: .6rem 0; max-width: 100%; height: auto; }
svg rect { fill: var(--bar); } svg text { fill: var(--soft); font-size: 9px; text-anchor: middle; }
"""


def render(
    loaded: Iterable[Loaded],
    total: Tallies,
    status: Mapping[str, Any],
    notes: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the page. `status` is the supervisor's, by model; `notes` what the agent left beside each model."""
    serving = {m.model: m for m in loaded}
    names = sorted({*serving, *status})
    parts = [_model(n, serving.get(n), total.get(n, {}), status.get(n, {}), notes.get(n, {})) for n in names]
    body = "".join(parts) or "<p>No model is installed yet. <code>edgeseal-agent status</code> says why.</p>"
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>edgeseal</title>"
        f'<meta http-equiv=refresh content="{REFRESH_SECONDS}">'
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=stylesheet href=/style.css></head>'
        f"<body><h1>Models on this device</h1>{body}</body></html>"
    )


def _model(
    name: str,
    serving: Loaded | None,
    tallies: Mapping[int, Tally],
    status: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> str:
    lines = [f"<h2>{escape(name)}</h2>"]
    if serving is None:
        lines.append("<p class=bad>Nothing serves this model.</p>")
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status.get("since") or serving.since))
        lines.append(f"<p>Release <b>{serving.release}</b> serves since {since}.</p>")
        lines += _gate(notes.get("gate", {}).get(str(serving.release)))
    if status.get("candidate"):
        lines.append(f"<p>Release {int(status['candidate'])} is being loaded.</p>")
    if failed := status.get("failed"):
        lines.append(f"<p class=bad>Release {int(failed['release'])} does not load: {escape(failed['reason'])}</p>")
    if back := notes.get("rollback"):
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(back["at"]))
        lines.append(f"<p class=bad>Last rollback, {at}: release {int(back['release'])}: {escape(back['reason'])}</p>")
    if tallies:
        lines.append(_table(tallies))
        if serving is not None and serving.release in tallies:
            lines.append(_plot(tallies[serving.release]))
    return "".join(lines)


def _gate(figures: Mapping[str, Any] | None) -> list[str]:
    """Say what the acceptance gate measured before this release was let in."""
    if not figures:
        return []
    shown = [f"{figures['cases']} acceptance cases"] if "cases" in figures else []
    if figures.get("latency_ms") is not None:
        shown.append(f"{figures['latency_ms']:g} ms")
    if figures.get("memory_mb") is not None:
        shown.append(f"{figures['memory_mb']:g} MiB")
    return [f"<p class=soft>Passed its gate here: {escape(', '.join(shown))}.</p>"] if shown else []


def _table(tallies: Mapping[int, Tally]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("release", "requests", "errors", "NaN", "crashes", "p50", "p99"))
    rows = []
    for release, tally in sorted(tallies.items(), reverse=True):
        cells = [release, tally.requests, tally.errors, tally.nan, tally.crashes, _ms(tally, 0.5), _ms(tally, 0.99)]
        rows.append("<tr>" + "".join(f"<td class=n>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _ms(tally: Tally, q: float) -> str:
    seconds = tally.quantile(q)
    return "-" if seconds is None else f"≤ {seconds * 1000:g} ms"


def _plot(tally: Tally) -> str:
    """Draw the histogram of answers by time, as in /metrics."""
    most = max(tally.buckets)
    if not most:
        return ""
    shapes = []
    for number, (count, end) in enumerate(zip(tally.buckets, (*BUCKETS, None), strict=True)):
        height, x = count / most * _HEIGHT, number * _WIDTH
        label = f"{end * 1000:g}" if end is not None else "more"
        shapes.append(f'<rect x="{x + 2}" y="{_HEIGHT - height:.1f}" width="{_WIDTH - 4}" height="{height:.1f}"/>')
        shapes.append(f'<text x="{x + _WIDTH / 2}" y="{_HEIGHT + _BASE - 3}">{label}</text>')
    width, height = _WIDTH * len(tally.buckets), _HEIGHT + _BASE
    title = "Answers by time: up to so many milliseconds"
    return (
        f'<p class=soft>{title}</p><svg role=img aria-label="{title}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(shapes)}</svg>'
    )

"""The page at `/` for the person who stands at the device: what serves, since when, how fast, what was refused and why.

Plain HTML with inline SVG. Nothing is fetched from anywhere else and no script runs (CSP below); it asks the browser
to load it again every few seconds, and `/?hold` does not. Whatever is missing or not as expected in what the agent
left beside a model is left out: a page that fails helps nobody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from edgeseal import __version__
from edgeseal.runtime.counters import BUCKETS
from edgeseal.runtime.page_plot import plot
from edgeseal.runtime.page_words import count, plural, span, text, when
from edgeseal.runtime.serve_status import ModelStatus
from edgeseal.runtime.shadow_text import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgeseal.runtime.counters import Tallies, Tally
    from edgeseal.runtime.models import Loaded

T = TypeVar("T")

CSP: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REFRESH_SECONDS: Final = 5
_SHOWN: Final = 5  # releases in the table: what matters is this one and the ones it replaced
_SWITCHES: Final = {
    "hand-over": "hand-over: no request waits",
    "stop-then-load": "stop-then-load: memory does not hold two releases, so requests wait while one is loaded",
    "load-on-demand": "load-on-demand: leaves memory while nobody asks",
}


class GateNote(msgspec.Struct):
    """What the acceptance gate measured on this device: cases, median in ms, MiB."""

    cases: int | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None


class EventNote(msgspec.Struct):
    """A release that was taken back or refused; `at` in Unix seconds."""

    release: int
    reason: str
    at: float = 0


class WatchNote(msgspec.Struct):
    """A release that serves on trial; `until` in Unix seconds."""

    release: int
    until: float


@dataclass(frozen=True)
class View:
    """One model as the page shows it; what is not known is None or empty."""

    name: str
    serving: Loaded | None = None
    tallies: Mapping[int, Tally] = field(default_factory=dict)
    status: ModelStatus = field(default_factory=ModelStatus)
    gate: GateNote | None = None
    rollback: EventNote | None = None
    refused: EventNote | None = None
    shadow: str = ""
    watch: WatchNote | None = None


def render(
    loaded: Iterable[Loaded],
    total: Tallies,
    status: Mapping[str, Any],
    notes: Mapping[str, Mapping[str, Any]],
    *,
    host: str = "this device",
    hold: bool = False,
    now: float | None = None,
) -> str:
    """Return the page. `status` is the supervisor's, by model; `notes` what the agent left beside each model.

    `hold`: it does not load itself again. `now` in Unix seconds.
    """
    now = time.time() if now is None else now
    serving = {m.model: m for m in loaded}
    views = [
        _view(name, serving.get(name), total.get(name, {}), status.get(name), notes.get(name, {}))
        for name in sorted({*serving, *status})
    ]
    kind, verdict = _verdict(views)
    refresh = "" if hold else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{verdict} {text(host)}</title>{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/style.css"></head><body>'
        f"<header><h1>Models on {text(host)}</h1>{_marked('p', kind, verdict, 'verdict')}</header>"
        f"<main>{''.join(_section(view, now) for view in views) or _NOTHING}</main>"
        f"{_footer(now, hold=hold)}</body></html>"
    )


_NOTHING: Final = (
    "<section><p>Models appear here once the agent has installed them.</p>"
    "<p>On this device <code>edgeseal-agent status</code> says what it is waiting for.</p></section>"
)


def _view(
    name: str, serving: Loaded | None, tallies: Mapping[int, Tally], status: object, notes: Mapping[str, Any]
) -> View:
    gates = _read(notes.get("gate"), dict[str, GateNote]) or {}
    shadows = _read(notes.get("shadow"), dict[str, str]) or {}
    return View(
        name,
        serving,
        tallies,
        _read(status, ModelStatus) or ModelStatus(),
        gates.get(str(serving.release)) if serving else None,
        _read(notes.get("rollback"), EventNote),
        _read(notes.get("refused"), EventNote),
        shadows.get(str(serving.release), "") if serving else "",
        _read(notes.get("watch"), WatchNote),
    )


def _read(value: object, kind: type[T]) -> T | None:
    """Return what the agent noted, None if it is not there or of another shape."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _verdict(views: list[View]) -> tuple[str, str]:
    """Return how the device does in one line, and its kind: good, warn, bad."""
    if not views:
        return "warn", "No model is installed yet."
    down = sum(v.serving is None for v in views)
    if down:
        return "bad", "The model is not served." if len(views) == 1 else f"Not served: {down} of {len(views)} models."
    failing = sum(v.status.failed is not None for v in views)
    all_serve = "The model serves" if len(views) == 1 else f"All {len(views)} models serve"
    if failing:
        return "warn", f"{all_serve}; {plural(failing, 'new release does', 'new releases do')} not load."
    return "good", f"{all_serve}."


# One model ------------------------------------------------------------------------------------------------------------


def _section(view: View, now: float) -> str:
    name = text(view.name)
    previous = [n for n in view.tallies if view.serving and n < view.serving.release]
    plotted = ""
    if view.serving is not None and view.serving.release in view.tallies:
        before = (max(previous), view.tallies[max(previous)]) if previous else None
        plotted = plot(view.serving.release, view.tallies[view.serving.release], before)
    return (
        f'<section aria-labelledby="model-{name}">'
        f'<div class="top"><h2 id="model-{name}">{name}</h2>{_state(view)}</div>'
        f'<div class="body"><div>{_facts(view, now)}{_events(view, now)}</div><div>{plotted}</div>'
        f'<div class="wide">{_table(view.tallies)}</div></div></section>'
    )


def _state(view: View) -> str:
    if view.serving is None:
        return _marked("p", "bad", "not served", "state")
    return _marked("p", "good", f"release {view.serving.release} serves", "state")


def _facts(view: View, now: float) -> str:
    """Return what is so, as a list of terms: since when, what the gate measured, how fast, how it switches."""
    facts = []
    if view.serving is not None:
        since = view.status.since or view.serving.since
        facts = [("Serves since", when(since, now)), ("Gate", _gate(view.gate))]
        if view.shadow:
            facts.append(("Shadow", text(view.shadow)))
        if view.watch is not None and view.watch.release == view.serving.release and view.watch.until > now:
            facts.append(("On trial", f"until {when(view.watch.until, now)}; the release before stays ready"))
        tally = view.tallies.get(view.serving.release)
        facts.append(("Answers", _speed(tally)))
        facts.append(("Switches by", _SWITCHES.get(view.status.mode, text(view.status.mode))))
    return f"<dl>{''.join(f'<dt>{term}</dt><dd>{said}</dd>' for term, said in facts)}</dl>" if facts else ""


def _gate(found: GateNote | None) -> str:
    """Return what the acceptance gate measured before this release was let in."""
    if found is None:
        return "no figures are kept for this release"
    shown = [plural(found.cases, "case", "cases")] if found.cases is not None else []
    if found.latency_ms is not None:
        shown.append(f"{found.latency_ms:g} ms an answer (median)")
    if found.memory_mb is not None:
        shown.append(f"{found.memory_mb:g} MiB of memory")
    return f"passed: {', '.join(shown)}" if shown else "passed"


def _speed(tally: Tally | None) -> str:
    if tally is None or not tally.requests:
        return "no request yet"
    if not any(tally.buckets):
        return f"none of {plural(tally.requests, 'request', 'requests')} was answered with a result"
    half, most = tally.bucket(0.5), tally.bucket(0.99)
    if half == len(BUCKETS):
        return f"more than half take over {span(BUCKETS[-1])}"
    shown = f"half within {_within(tally, 0.5)}, "
    if most == len(BUCKETS):
        return f"{shown}more than 1 % take over {span(BUCKETS[-1])}"
    return f"{shown}99 % within {_within(tally, 0.99)}"


def _events(view: View, now: float) -> str:
    """Return what a person should know of: a release that is coming, failed, was refused or taken back."""
    notes = []
    goes_on = f"; release {view.serving.release} goes on" if view.serving else ""
    if view.status.candidate is not None:
        notes.append(_note("good", f"Release {view.status.candidate} is being loaded{goes_on}.", "", ""))
    if shadow := view.status.shadow:
        what = f"Release {shadow.release} runs copies of live requests; nobody gets its answers."
        notes.append(_note("good", what, text(words(shadow)), ""))
    if failed := view.status.failed:
        what = f"Release {failed.release} does not load{goes_on}."
        notes.append(_note("bad", what, text(failed.reason), when(failed.at, now)))
    if back := view.rollback:
        notes.append(_event(f"Last rollback: release {back.release} was taken back.", back, now))
    if no := view.refused:
        notes.append(_event(f"Last refusal: release {no.release} was not let in.", no, now))
    return "".join(notes)


def _event(what: str, found: EventNote, now: float) -> str:
    return _note("warn", what, text(found.reason), when(found.at, now) if found.at else "")


def _note(kind: str, what: str, reason: str, at: str) -> str:
    lines = "".join(f"<p>{line}</p>" for line in (reason, at) if line)
    return f'<div class="note {kind}"><strong>{what}</strong>{lines}</div>'


_COLUMNS: Final = ("release", "requests", "rejected", "failed", "NaN", "crashes", "half within", "99 % within")


def _table(tallies: Mapping[int, Tally]) -> str:
    if not tallies:
        return ""
    head = "".join(f'<th scope="col" role="columnheader">{c}</th>' for c in _COLUMNS)
    newest = sorted(tallies, reverse=True)[:_SHOWN]
    rows = "".join(_row(release, tallies[release]) for release in newest)
    # Roles are written out because a phone lays rows out as blocks, and browsers then take the table's meaning away.
    return (
        '<table role="table"><caption>Since edgeseal-serve started. Rejected: the request was wrong. Failed: the '
        "server or the model was. NaN: values that are not numbers.</caption>"
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody role="rowgroup">{rows}</tbody></table>'
    )


def _row(release: int, tally: Tally) -> str:
    failed = sum(n for status, n in tally.statuses.items() if status >= _FAILED)
    rejected = sum(n for status, n in tally.statuses.items() if _REJECTED <= status < _FAILED)
    cells = [(count(tally.requests), False), (count(rejected), False)]
    cells += [(count(n), n > 0) for n in (failed, tally.nan, tally.crashes)]
    cells += [(_within(tally, q), False) for q in (0.5, 0.99)]
    shown = "".join(
        f'<td role="cell" data-label="{label}"{" class=bad" * bad}>{value}</td>'
        for label, (value, bad) in zip(_COLUMNS[1:], cells, strict=True)
    )
    return f'<tr role="row"><th scope="row" role="rowheader">release {release}</th>{shown}</tr>'


_REJECTED: Final = 400
_FAILED: Final = 500


def _within(tally: Tally, q: float) -> str:
    bucket = tally.bucket(q)
    if bucket is None:
        return "-"
    return span(BUCKETS[bucket]) if bucket < len(BUCKETS) else f"over {span(BUCKETS[-1])}"


# Around it ------------------------------------------------------------------------------------------------------------

_MARKS: Final = {"good": "✓", "warn": "!", "bad": "✕"}


def _marked(tag: str, kind: str, words: str, name: str) -> str:
    """Return a line whose kind is seen by colour and by sign; readers hear the words only."""
    return f'<{tag} class="{name} {kind}"><span class="mark" aria-hidden="true">{_MARKS[kind]}</span> {words}</{tag}>'


def _footer(now: float, *, hold: bool) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if hold:
        again = f'This page is held. <a href="/">Load it again every {REFRESH_SECONDS} seconds</a>'
    else:
        again = f'Loads itself again every {REFRESH_SECONDS} seconds. <a href="/?hold">Hold it</a>'
    return f"<footer><p>edgeseal {text(__version__)}, as of {at}. {again}.</p></footer>"

"""The person's page as text: what it says of each state, and what it does with text and numbers that are hostile.

How it looks and what a browser makes of it: tests/browser.
"""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseal.runtime import page, page_plot, page_words
from edgeseal.runtime.counters import BUCKETS, Tallies, Tally
from edgeseal.runtime.models import Loaded

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.unit
NOW = 1_795_613_100.0  # 2026-11-25 13:25:00 UTC
HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00"
VOID = {"meta", "link"}


class Reader(HTMLParser):
    """Elements and text of a page; checks that what is opened is closed."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def loaded(model: str = "press", release: int = 7, since: float = NOW - 7300) -> Loaded:
    return Loaded(model, release, cast("Any", None), since)  # the page asks no engine


def tally(*buckets: int, **more: Any) -> Tally:
    counts = [*buckets, *[0] * (len(BUCKETS) + 1 - len(buckets))]
    return Tally(more.pop("statuses", {200: sum(counts)}), buckets=counts, **more)


def render(
    serving: list[Loaded],
    total: Tallies | None = None,
    status: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    **more: Any,
) -> Reader:
    return Reader(page.render(serving, total or {}, status or {}, notes or {}, host="gw-07", now=NOW, **more))


# States ---------------------------------------------------------------------------------------------------------------


def test_nothing_installed() -> None:
    text = render([]).text
    assert "No model is installed yet." in text
    assert "edgeseal-agent status" in text


def test_a_model_that_nobody_has_asked() -> None:
    found = render([loaded()], status={"press": {"serving": 7, "since": int(NOW - 5)}})
    assert "The model serves. gw-07" in found.text
    assert "2026-11-25 13:24:55 UTC (5 s ago)" in found.text
    assert "no request yet" in found.text
    assert "no figures are kept for this release" in found.text
    assert not {"svg", "table"} & {tag for tag, _ in found.tags}


def test_everything_there_is_to_say() -> None:
    found = render(
        [loaded()],
        {"press": {7: tally(3, 120, 700, statuses={200: 823, 400: 3, 503: 2}, nan=1), 6: tally(0, 0, 9, crashes=1)}},
        {"press": {"serving": 7, "candidate": 8, "mode": "stop-then-load", "failed": None}},
        {
            "press": {
                "gate": {"7": {"cases": 12, "latency_ms": 3.125, "memory_mb": 48.2}, "6": {"cases": 1}},
                "rollback": {"release": 5, "reason": "31 of 40 answers failed", "at": int(NOW - 300_000)},
            }
        },
    )
    for words in (
        "release 7 serves",
        "2026-11-25 11:23:20 UTC (2 h ago)",
        "passed: 12 cases, 3.125 ms an answer (median), 48.2 MiB of memory",
        "half within 5 ms, 99 % within 5 ms",
        "stop-then-load: memory does not hold two releases",
        "Release 8 is being loaded; release 7 goes on.",
        "Last rollback: release 5 was taken back. 31 of 40 answers failed 2026-11-22 02:05:00 UTC (3 days ago)",
        "release 7 828 3 2 1 0 5 ms 5 ms",
        "release 6 9 0 0 0 1 5 ms 5 ms",
        "time to answer (ms)",
        "answers (%)",
        "release 7, 823 answers",
        "release 6, 9 answers",
    ):
        assert words in found.text


def test_a_release_that_does_not_load_beside_one_that_serves() -> None:
    status = {"press": {"serving": 7, "failed": {"release": 8, "reason": "not an ONNX model", "at": int(NOW)}}}
    text = render([loaded()], status=status).text
    assert "The model serves; 1 new release does not load." in text
    assert "Release 8 does not load; release 7 goes on. not an ONNX model" in text


def test_a_release_in_the_shadow_and_what_one_before_it_did_there() -> None:
    shadow = {
        "release": 8,
        "id": "a",
        "state": "running",
        "seen": 9,
        "copied": 4,
        "figures": {"compared": 4, "differing": 1},
    }
    notes = {"shadow": {"7": "120 answers compared, 0 differ"}}
    text = render([loaded()], status={"press": {"serving": 7, "shadow": shadow}}, notes={"press": notes}).text
    assert "Release 8 runs copies of live requests; nobody gets its answers. 4 answers compared, 1 differ" in text
    assert "Shadow 120 answers compared, 0 differ" in text
    assert "Shadow" not in render([loaded(release=8)], notes={"press": notes}).text


def test_a_release_on_trial() -> None:
    notes = {"watch": {"release": 7, "until": NOW + 30}}
    assert (
        "On trial until 2026-11-25 13:25:30 UTC ; the release before stays"
        in render([loaded()], notes={"press": notes}).text
    )
    for late in ({"release": 7, "until": NOW - 1}, {"release": 6, "until": NOW + 30}):
        assert "On trial" not in render([loaded()], notes={"press": {"watch": late}}).text


def test_an_event_of_an_unknown_time_has_none() -> None:
    notes = {"rollback": {"release": 6, "reason": "rolled back on the device", "at": 0}}
    assert "1970" not in render([loaded()], notes={"press": notes}).text


def test_a_release_that_was_refused() -> None:
    notes = {"refused": {"release": 8, "reason": "acceptance vector 1: 3 of 4 values differ", "at": NOW - 60}}
    text = render([loaded()], notes={"press": notes}).text
    assert (
        "Last refusal: release 8 was not let in. acceptance vector 1: 3 of 4 values differ 2026-11-25 13:24:00" in text
    )


def test_a_model_that_nothing_serves() -> None:
    status = {"b": {"failed": {"release": 3, "reason": "not an ONNX model", "at": int(NOW)}}}
    text = render([loaded("a")], status=status).text
    assert "Not served: 1 of 2 models." in text
    assert "Release 3 does not load. not an ONNX model" in text


def test_it_loads_itself_again_unless_it_is_held() -> None:
    def refreshes(found: Reader) -> bool:
        return any(attrs.get("http-equiv") == "refresh" for _, attrs in found.tags)

    running, held = render([]), render([], hold=True)
    assert refreshes(running)
    assert ("a", {"href": "/?hold"}) in running.tags
    assert not refreshes(held)
    assert ("a", {"href": "/"}) in held.tags


# Hostile --------------------------------------------------------------------------------------------------------------


def test_text_from_a_release_stays_text() -> None:
    status = {"m": {"serving": 1, "failed": {"release": 2, "reason": HOSTILE + "A" * 5000, "at": 1}}}
    notes = {
        "m": {"rollback": {"release": 1, "reason": HOSTILE, "at": 5}, "refused": {"release": 3, "reason": HOSTILE}}
    }
    found = render([loaded("m", 1)], status=status, notes=notes)
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count("<script>alert(1)</script>\"'&\\u{202e}\\u{0}") == 3
    assert "A" * page_words.MAX_TEXT not in found.text


def test_a_model_with_a_name_like_markup() -> None:
    """Names are checked long before; the page does not lean on that."""
    found = render([loaded(HOSTILE)], {HOSTILE: {7: tally(5)}})
    assert "script" not in {tag for tag, _ in found.tags}
    (section,) = [attrs for tag, attrs in found.tags if tag == "section"]
    assert section["aria-labelledby"] in {attrs.get("id") for tag, attrs in found.tags if tag == "h2"}


def test_a_host_with_a_name_like_markup() -> None:
    assert "<b>x" in Reader(page.render([], {}, {}, {}, host="<b>x", now=NOW)).text


@given(
    st.dictionaries(
        st.sampled_from(["gate", "rollback", "refused", "shadow", "watch"]),
        st.recursive(
            st.sampled_from([None, True, 7, -1, 10**30, 1.5, float("nan"), float("inf"), "7", "<b>"]),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["7", "release", "reason", "at", "cases", "until"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_whatever_lies_beside_a_model_the_page_stands(notes: dict[str, Any]) -> None:
    assert "release 7 serves" in render([loaded()], notes={"press": notes}).text


@pytest.mark.parametrize("at", [-(10**18), 10**18, float("inf"), float("nan")])
def test_a_point_in_time_that_cannot_be(at: float) -> None:
    assert page_words.when(at, NOW) == "an unknown time"


def test_a_point_in_time_that_is_still_to_come() -> None:
    assert "ago" not in page_words.when(NOW + 60, NOW)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"),
        (1.9, "just now"),
        (2, "2 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (172_800, "2 days ago"),
    ],
)
def test_how_long_ago(seconds: float, words: str) -> None:
    assert page_words.ago(seconds) == words


# Plot -----------------------------------------------------------------------------------------------------------------


def test_no_answer_no_plot() -> None:
    assert page_plot.plot(1, tally(), None) == ""
    assert page_plot.plot(1, tally(), (2, tally(5))) == ""


def rectangles(figure: str) -> list[dict[str, float]]:
    named = ("x", "y", "width", "height")
    return [{n: float(attrs[n] or "x") for n in named} for tag, attrs in Reader(figure).tags if tag == "rect"]


@given(st.lists(st.integers(0, 10**9), min_size=len(BUCKETS) + 1, max_size=len(BUCKETS) + 1), st.booleans())
def test_bars_stand_on_the_axis_inside_the_drawing(buckets: list[int], compared: bool) -> None:
    figure = page_plot.plot(1, tally(*buckets), (2, tally(0, 3)) if compared else None)
    bars = rectangles(figure)
    assert len(bars) == sum(n > 0 for n in buckets)
    for bar in bars:
        assert bar["x"] >= page_plot._LEFT
        assert bar["x"] + bar["width"] <= page_plot._WIDTH - page_plot._RIGHT
        assert bar["y"] >= page_plot._TOP - 0.1
        assert bar["y"] + bar["height"] == pytest.approx(page_plot._HEIGHT - page_plot._BOTTOM, abs=0.11)


def test_heights_are_in_proportion() -> None:
    low, high = rectangles(page_plot.plot(1, tally(0, 100, 300), None))
    assert high["height"] == pytest.approx(3 * low["height"], rel=0.01)


def test_one_slow_answer_among_many_is_seen() -> None:
    figure = page_plot.plot(1, tally(10**6, *[0] * (len(BUCKETS) - 1), 1), None)
    assert rectangles(figure)[-1]["height"] >= 1
    text = Reader(figure).text
    assert "more than 10 s: 1 of 1,000,001 answers" in text
    assert "<0.1" in text
    assert "99.9" in text
    assert "100" not in text.split("answers (%)")[1].split("time to")[0].split()[:2]


def test_the_axis_names_the_unit_of_slow_answers() -> None:
    text = Reader(page_plot.plot(1, tally(0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5), None)).text
    assert "time to answer (ms, from 1 s on in s)" in text
    assert "2 s" in text

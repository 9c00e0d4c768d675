"""What a technician reads on the full-screen view, by meaning: never by where exactly on the screen it is."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgeseal.provisioning import REMEDIES, Code
from edgeseal_host.station.lane import Phase, View
from edgeseal_host.station.screen import HELP, Screen, possible, render
from edgeseal_host.station.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.unit
REASON = "10000000abcdef03 shows the key that was given to 10000000abcdef01 before"
PASSED = View("/dev/lane1", Phase.PASSED, "10000000abcdef01", "press-0001", "PASS", 1.42)
TALKING = View("/dev/lane2", Phase.TALKING, "10000000abcdef02", "", "granted", 0.83)
FAILED = View(
    "/dev/lane3", Phase.FAILED, "10000000abcdef03", "", "FAIL", 0.4, REASON, REMEDIES[Code.KEY_SEEN], Code.KEY_SEEN
)
WAITING = View("/dev/lane4", Phase.WAITING, step="waiting", seconds=12)
SILENT = View("/dev/lane5", Phase.WAITING, step="waiting", seconds=40, remedy=REMEDIES[Code.NO_ANSWER])
SCAN = View("/dev/lane6", Phase.SCAN, "10000000abcdef06", step="scan it", seconds=3)
DONE = View("/dev/lane7", Phase.DONE, "10000000abcdef07", "press-0000", "", 1, "provisioned here before", "take it out")
GONE = View("/dev/lane8", Phase.ABSENT)
ALL = [PASSED, TALKING, FAILED, WAITING, SILENT, SCAN, DONE, GONE]


@pytest.fixture(autouse=True, scope="module")
def able_terminal() -> Iterator[None]:
    """A terminal that can do what the screen needs, whoever runs the tests: rich believes TERM=dumb of any console."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        yield


def shown(
    views: Sequence[View], *, width: int = 100, height: int = 40, said: Sequence[str] = (), now: float = 60
) -> str:
    tally = Tally(0.0)
    for view in views:
        tally.note(view)
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(console, "line 1 · batch 2026-11-a · anna", views, tally, now, said))
    return capture.get()


def line_of(text: str, word: str) -> str:
    (line,) = [line for line in text.splitlines() if word in line]
    return line


def sentence(text: str) -> str:
    """The screen's words without frame and line ends."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_each_port_has_a_line_with_its_device_step_seconds_and_result(width: int) -> None:
    text = shown(ALL, width=width)
    for word, expected in {
        "lane1": ["PASS", "10000000abcdef01", "press-0001", "1.4"],
        "lane2": ["granted", "10000000abcdef02", "0.8"],
        "lane3": ["FAIL", "10000000abcdef03", "0.4"],
        "lane4": ["waiting", "12.0"],
        "lane6": ["scan it", "10000000abcdef06"],
        "lane7": ["done before", "press-0000"],
        "lane8": ["no port"],
    }.items():
        for part in expected:
            assert part in line_of(text, word)
    assert "PASS" not in line_of(text, "lane2")


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_failure_says_why_and_what_to_do_below_its_line(width: int) -> None:
    text = sentence(shown([PASSED, FAILED, WAITING], width=width))
    assert f"0.4 {REASON} > {REMEDIES[FAILED.code or Code.MALFORMED]} waiting lane4" in text


@pytest.mark.parametrize("code", list(Code))
def test_every_remedy_is_readable_on_80_columns(code: Code) -> None:
    view = View("/dev/lane1", Phase.FAILED, "10000000abcdef01", reason="it is so", remedy=REMEDIES[code], code=code)
    assert f"it is so > {REMEDIES[code]}" in sentence(shown([view], width=80, height=24))


def test_a_port_where_nobody_answers_says_what_to_check() -> None:
    assert f"> {REMEDIES[Code.NO_ANSWER]}" in sentence(shown([SILENT]))


def test_yield_and_rate_are_below() -> None:
    text = sentence(shown([PASSED, FAILED, TALKING], now=36.0))
    assert "1 PASS 1 FAIL yield 50.0 % 100 an hour" in text
    assert "0 PASS 0 FAIL yield - 0 an hour" in sentence(shown([]))


def test_a_device_that_failed_and_then_passed_counts_once() -> None:
    again = View("/dev/lane3", Phase.PASSED, FAILED.serial, "press-0003", "PASS", 2.0)
    assert "1 PASS 0 FAIL yield 100.0 %" in sentence(shown([FAILED, again]))


def test_without_a_port_it_says_what_to_do() -> None:
    assert "no port yet: plug one in" in shown([])


def test_the_last_messages_and_the_keys_are_at_the_bottom() -> None:
    lines = [line.strip() for line in shown(ALL, said=["first", "second"]).splitlines()]
    assert lines[-3:] == ["first", "second", HELP]


# Small terminals, many ports -----------------------------------------------------------------------------------------


def lanes(count: int, template: View) -> list[View]:
    return [
        View(
            f"/dev/lane{n:02}",
            template.phase,
            f"1000{n:012}",
            "",
            "",
            1.0,
            template.reason,
            template.remedy,
            template.code,
        )
        for n in range(count)
    ]


def test_sixteen_ports_fit_on_80_by_24() -> None:
    views = lanes(16, PASSED)
    text = shown(views, width=80, height=24, said=["x", "y"])
    assert all(f"lane{n:02}" in text for n in range(16))
    assert len(text.splitlines()) <= 24


def test_failures_stay_and_quiet_ports_make_room_and_are_counted() -> None:
    views = [*lanes(20, WAITING), *(View(f"/dev/bad{n}", *_rest(FAILED)) for n in range(3))]
    text = shown(views, width=80, height=24)
    assert all(f"bad{n}" in text for n in range(3))
    assert text.count("put the device aside") == 3
    left = re.search(r"and (\d+) ports more: (\d+) waiting", text)
    assert left is not None
    assert int(left[1]) == int(left[2]) == 20 - len(re.findall(r"lane\d\d", text))


def _rest(view: View) -> tuple[Phase, str, str, str, float, str, str, Code | None]:
    return (view.phase, view.serial, view.device, view.step, view.seconds, view.reason, view.remedy, view.code)


def test_a_hint_for_an_empty_port_makes_room_before_any_port_does() -> None:
    text = shown([*lanes(12, SILENT), FAILED], width=80, height=24)
    assert "check power" not in text
    assert all(f"lane{n:02}" in text for n in range(12))
    assert "ports more" not in text


@pytest.mark.parametrize("height", [5, 8, 12, 24])
def test_yield_stays_on_the_screen_however_much_fails(height: int) -> None:
    text = shown(lanes(40, FAILED), width=80, height=height)
    assert "0 PASS   40 FAIL   yield 0.0 %" in text
    if height > 5:
        assert len(text.splitlines()) <= height


PRINTABLE = st.text(
    st.characters(categories=["L", "N", "P", "S", "Zs"], include_characters="日本🔑"), max_size=60
).filter(str.isprintable)


@settings(max_examples=60, deadline=None)
@given(
    views=st.lists(
        st.builds(
            View,
            port=st.integers(0, 99).map("/dev/lane{}".format),
            phase=st.sampled_from(Phase),
            serial=PRINTABLE,
            device=PRINTABLE,
            step=st.sampled_from(["greeted", "granted"]),
            seconds=st.floats(0, 1e6),
            reason=PRINTABLE,
            remedy=PRINTABLE,
        ),
        max_size=6,
        unique_by=lambda v: v.port,
    ),
    width=st.integers(50, 140),
    height=st.integers(12, 50),
)
def test_whatever_devices_say_no_line_is_wider_and_nothing_is_markup(
    views: list[View], width: int, height: int
) -> None:
    text = shown(views, width=width, height=height)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert len(text.splitlines()) <= height
    assert "an hour" in text


def test_square_brackets_are_no_markup() -> None:
    view = View("/dev/lane1", Phase.FAILED, "[bold]1[/bold]", reason="[link=http://x]y[/link]", remedy="[red]z")
    text = shown([view])
    for literal in ("[bold]1[/bold]", "[link=http://x]y[/link]", "[red]z"):
        assert literal in text


def test_a_long_serial_number_keeps_both_ends() -> None:
    view = View("/dev/lane1", Phase.PASSED, "ABCDEF" + "0" * 200 + "123456", "press-1", "PASS", 1.0)
    line = line_of(shown([view], width=80), "lane1")
    assert re.search(r"ABCDEF0*…0*123456", line)
    assert "press-1" in line


def test_the_keys_fit_on_80_columns() -> None:
    assert HELP in shown([], width=80)


# The terminal --------------------------------------------------------------------------------------------------------


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=80, height=24, legacy_windows=False), out


def test_the_terminal_is_taken_and_given_back_when_a_run_breaks() -> None:
    console, out = terminal()

    def broken() -> None:
        with Screen("title", console=console) as screen:
            screen.tick([PASSED], Tally(0.0), 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    text = out.getvalue()
    assert text.index("\x1b[?1049h") < text.index("lane1") < text.index("\x1b[?1049l"), "the alternate screen"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"


def test_what_was_said_is_shown_until_two_others_came() -> None:
    console, out = terminal()
    with Screen("title", console=console) as screen:
        for text in ("first note", "second note", "third note"):
            screen.said(text)
        screen.changed(PASSED)
        screen.tick([PASSED], Tally(0.0), 1.0)
    assert "first note" not in out.getvalue()
    assert "second note" in out.getvalue()
    assert "third note" in out.getvalue()


def test_why_devices_failed_stays_when_the_view_is_gone() -> None:
    console, out = terminal()
    silent = View("/dev/lane5", Phase.FAILED, reason="no answer in 20 s", remedy="check power", code=Code.NO_ANSWER)
    mended = View("/dev/lane6", Phase.FAILED, "1000", reason="the port went away", remedy="plug it in")
    with Screen("title", console=console) as screen:
        for view in (FAILED, silent, mended, PASSED, View("/dev/lane6", Phase.PASSED, "1000", "press-9", "PASS", 1.0)):
            screen.changed(view)
    after = out.getvalue().split("\x1b[?1049l")[1]
    assert f"/dev/lane3: {FAILED.serial}: FAIL: {REASON}; {REMEDIES[Code.KEY_SEEN]}" in after
    assert "/dev/lane5: nobody: FAIL: no answer in 20 s; check power" in after
    assert after.count("FAIL") == 2, "what passed in the end is no failure"


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_be_drawn_on_gets_no_screen(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert possible(Console(force_terminal=True))
    monkeypatch.setenv("TERM", term)
    assert not possible(Console(force_terminal=True))
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not possible(Console(force_terminal=True)), "FORCE_COLOR makes no terminal of a pipe"

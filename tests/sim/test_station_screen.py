"""`edgeseal station run` in a real terminal: what a technician sees, and how the terminal is left."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sim.terminal import PATIENCE, Terminal, terminal
from tests.unit.publisher_world import ok
from tests.unit.station_world import BATCH, World

from edgeseal.provisioning import REMEDIES, Code

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("tmux")
EDGESEAL = Path(sys.executable).parent / "edgeseal"
FOUR = (EDGESEAL, "station", "run", "--simulate", "4", "--copies", "1")
FAST = ("--baud", "2000000")  # where the test is not about time


@pytest.fixture
def window() -> Iterator[Terminal]:
    with terminal() as made:
        yield made


def four_verdicts(screen: str) -> bool:
    return "3 PASS   1 FAIL" in screen


def sentence(screen: str) -> str:
    return re.sub(r"[\s│╭╮╰╯─]+", " ", screen)


def picture() -> str:
    """The picture of this screen in the guide."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "manufacturing.md").read_text()
    found = re.search(r"```text\n(╭.*?)```", guide, re.DOTALL)
    assert found is not None
    return found[1]


def without_figures(screen: str) -> str:
    """What does not change from run to run."""
    return re.sub(r"pts/\d+|\d+\.\d (?=FAIL|PASS|simulated)|[\d,]+ an hour", "#", sentence(screen).strip())


def row(screen: str, serial: str) -> str:
    return next(line for line in screen.splitlines() if serial in line)


def assert_given_back(window: Terminal) -> None:
    assert not window.flag("alternate_on")
    assert window.flag("cursor_flag"), "the cursor is hidden"
    assert window.is_echoing()


def test_four_ports_one_of_them_failing(window: Terminal) -> None:
    window.type("echo what was there before")
    window.run(*FOUR, "--operator", "anna")
    talking = window.wait_for(lambda screen: "an hour" in screen)
    assert "simulated station · batch simulated-batch" in talking
    assert "SIMULATED: no device, no fleet; nothing of this counts" in talking
    assert window.flag("alternate_on")
    screen = window.wait_for(four_verdicts)
    for n in (1, 2, 3):
        assert re.search(
            r" PASS +pts/\d+ +simulated-000\d +simulated-000\d +\d+\.\d ", row(screen, f"simulated-000{n}")
        )
    assert re.search(r" FAIL +pts/\d+ +simulated-0004 +\d+\.\d ", row(screen, "simulated-0004"))
    reason = "simulated-0004 shows the key that was given to simulated-0001 before"
    assert f"{reason} > {REMEDIES[Code.KEY_SEEN]}" in sentence(screen)
    assert re.search(r"3 PASS +1 FAIL +yield 75\.0 % +[\d,]+ an hour", screen)
    assert "what was there before" not in screen
    assert without_figures(screen) == without_figures(picture()), "the guide shows what a technician sees"
    window.keys("C-c")
    code, after = window.exited()
    assert code == 1, "one failed"
    assert "what was there before" in after, "the former screen is back"
    assert "3 PASS, 1 FAIL" in after
    assert f"simulated-0004: FAIL: {reason}; {REMEDIES[Code.KEY_SEEN]}" in after.replace("\n", "")
    assert "simulated-0004" in after
    assert "Traceback" not in after
    assert_given_back(window)


def test_stopped_in_the_middle_it_says_what_is_unfinished_and_gives_the_terminal_back(window: Terminal) -> None:
    window.run(*FOUR, "--baud", "4800")
    window.wait_for(lambda screen: "granted" in screen or "identified" in screen or "greeted" in screen)
    window.keys("C-c")
    code, after = window.exited()
    assert code == 130
    assert re.search(r"unfinished: simulated-000\d on /dev/pts/\d+", after)
    assert "Traceback" not in after
    assert_given_back(window)


def test_enter_tries_again_and_a_scanner_is_heard_and_nothing_is_typed_across_the_screen(window: Terminal) -> None:
    window.run(*FOUR, *FAST)
    window.wait_for(four_verdicts)
    window.keys("C-z", "C-s", "Enter")  # neither stops the run or the screen
    window.wait_for(lambda screen: "no serial number" in screen)
    window.keys("Enter")
    window.wait_for(lambda screen: "trying again what failed" in screen)
    window.type("1000000012345678")
    screen = window.wait_for(lambda screen: "scanned 1000000012345678" in screen)
    assert screen.count("1000000012345678") == 1, "echoed"
    window.keys("C-c")
    assert window.exited()[0] in {1, 130}, "failed again, or is being tried again"
    assert_given_back(window)


def test_a_device_waits_until_its_label_was_scanned(window: Terminal, tmp_path: Path) -> None:
    world = World.make(tmp_path / "world", text=BATCH.replace('group = "presses"', 'group = "presses"\nscan = true'))
    window.run(EDGESEAL, "station", "run", "--simulate", 2, "--batch", world.place / "batch.toml", *FAST)
    waiting = window.wait_for(lambda screen: screen.count("scan it") == 2)
    assert "scan it" in row(waiting, "simulated-0002")
    window.type("simulated-0009")
    window.wait_for(lambda screen: "scanned simulated-0009" in screen)
    window.type("SIMULATED-0002")  # a scanner with the Caps Lock on
    screen = window.wait_for(lambda screen: "1 PASS" in screen)
    assert " PASS " in row(screen, "simulated-0002")
    assert "scan it" in row(screen, "simulated-0001")
    window.keys("C-c")
    assert window.exited()[0] == 0
    assert_given_back(window)


def test_a_window_that_shrinks_keeps_the_failure_and_the_yield(window: Terminal) -> None:
    window.run(*FOUR, *FAST)
    window.wait_for(four_verdicts)
    window.resize(60, 12)
    screen = window.wait_for(lambda screen: four_verdicts(screen) and all(len(s) <= 60 for s in screen.splitlines()))
    assert "simulated-0004" in sentence(screen)
    assert "its card is a copy" in sentence(screen)
    assert re.search(r"and \d ports more: \d PASS", screen)
    window.keys("C-c")
    assert window.exited()[0] == 1


def test_a_window_that_is_closed_ends_the_run_and_its_journal_in_order(window: Terminal, tmp_path: Path) -> None:
    station = tmp_path / "station"
    window.run(*FOUR, *FAST, "--keep", station)
    window.wait_for(four_verdicts)
    window.tmux("kill-server")
    at = ("--station", station, "--keys", station / "keys")
    ends = time.monotonic() + PATIENCE
    while ok("station", "status", *at)["running"]:
        assert time.monotonic() < ends
        time.sleep(0.1)
    found = ok("station", "verify-journal", *at)
    assert found["signed"] == found["entries"], "the run's end is in the journal, signed"
    assert len(ok("station", "export", *at)["devices"]) == 3


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(window: Terminal) -> None:
    window.run("env", "TERM=dumb", *FOUR, *FAST, "--once")
    code, after = window.exited()
    assert code == 1
    assert after.count(": PASS (") == 3


def test_into_a_pipe_there_is_no_screen(window: Terminal) -> None:
    window.run("sh", "-c", f"{EDGESEAL} station run --simulate 2 --once {' '.join(FAST)} | cat")
    code, after = window.exited()
    assert code == 0
    assert after.count(": PASS (") == 2
    assert "╭" not in after


@pytest.mark.parametrize("left", [r"\033[?1049h", r"\033[?25l", "quiet"])
def test_a_terminal_that_is_not_given_back_would_be_seen(window: Terminal, left: str) -> None:
    """Negative control of `assert_given_back`."""
    assert_given_back(window)
    window.type("stty -echo" if left == "quiet" else f"printf '{left}'")
    window.type("echo; echo done")
    window.wait_for(lambda screen: "\ndone" in screen)
    with pytest.raises(AssertionError):
        assert_given_back(window)

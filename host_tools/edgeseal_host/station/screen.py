"""The full-screen view: for each port one line that a technician can read from two metres, yield and rate below.

A port that needs somebody has its reason and what to do below its line, over the whole width. If there are more ports
than lines, those that need nobody make room and are counted instead. Not here: what happens at a port (lane).
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from edgeseal_host.station.lane import OVER, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType

    from edgeseal_host.station.lane import View
    from edgeseal_host.station.tally import Tally

HELP: Final = "Ctrl-C ends the run, Enter tries again what failed; scan labels when asked"
_STYLES: Final = {
    Phase.PASSED: "bold white on green",
    Phase.FAILED: "bold white on red",
    Phase.DONE: "bold black on yellow",
    Phase.SCAN: "bold black on cyan",
    Phase.TALKING: "bold cyan",
}
# Who makes room first where there are more ports than lines: failures are the last.
_QUIET: Final = (Phase.ABSENT, Phase.WAITING, Phase.DONE, Phase.PASSED, Phase.TALKING)
_ROOM_FIRST: Final = (*_QUIET, Phase.SCAN, Phase.FAILED)
_HEADER: Final = ("result", "port", "serial", "device", "seconds")
_NARROWEST: Final = (6, 6, 8, 8, 7)  # cells; a column that has less says nothing
_GAP: Final = 2
_FRAME: Final = 4  # cells of a panel's border and padding
_AROUND: Final = 5  # lines: border, header, foot, help
_MESSAGES: Final = 2
_INDENT: Final = 4


def possible(console: Console | None = None) -> bool:
    """Whether standard output is a terminal that can be drawn on: one that is `dumb` can not."""
    return sys.stdout.isatty() and not (console or Console()).is_dumb_terminal


class Screen:
    """A run's audience on a terminal; a context manager, because the terminal is given back at the end."""

    def __init__(self, title: str, *, console: Console | None = None) -> None:
        """`title` names station, batch and operator."""
        self._title = title
        self._said: deque[str] = deque(maxlen=_MESSAGES)
        self._failed: dict[str, View] = {}
        self._console = console or Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back, and leave on it why devices failed: the view with the reasons is gone."""
        self._live.__exit__(kind, error, trace)
        for view in self._failed.values():
            who = f"{view.port}: {view.serial or 'nobody'}"
            self._console.print(Text(f"{who}: FAIL: {view.reason}; {view.remedy}"), soft_wrap=True)

    def changed(self, view: View) -> None:
        """Remember failures; everything else is shown by the next tick."""
        who = view.serial or view.port
        if view.phase is Phase.FAILED:
            self._failed[who] = view
        elif view.phase in OVER:
            self._failed.pop(who, None)

    def said(self, text: str) -> None:
        """Show it at the bottom, until two others came."""
        self._said.append(text)

    def tick(self, views: Sequence[View], tally: Tally, now: float) -> None:
        """Draw everything."""
        self._live.update(render(self._console, self._title, views, tally, now, self._said), refresh=True)


def render(
    console: Console, title: str, views: Sequence[View], tally: Tally, now: float, said: Iterable[str]
) -> RenderableType:
    """Return the whole screen, as large as the console is."""
    foot = [_foot(tally, now), *(_message(text, "cyan") for text in said), _message(HELP, "dim")]
    room = console.height - _AROUND - (len(foot) - 2)
    shown, left_out = _chosen(console, views, room)
    lines = _lines(console, shown) if views else [Text("no port yet: plug one in", style="yellow")]
    if left_out:
        counts = ", ".join(f"{number} {phase}" for phase, number in Counter(v.phase for v in left_out).items())
        lines.append(Text(f"and {len(left_out)} ports more: {counts}", style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(Panel(Group(*lines), title=Text(title), title_align="left"), *foot)


def _chosen(console: Console, views: Sequence[View], room: int) -> tuple[list[View], list[View]]:
    """Return which ports are shown, in their order, and which made room."""
    shown = list(views)
    left_out: list[View] = []
    heights = {view.port: 1 + len(_why(console, view)) for view in views}
    if sum(heights.values()) > room:
        shown = [replace(v, reason="", remedy="") if v.phase in _QUIET else v for v in shown]
        heights |= {view.port: 1 for view in shown if view.phase in _QUIET}
    spare = sum(heights.values()) - room
    spare += spare > 0  # the line that counts who made room
    for phase in _ROOM_FIRST:
        for view in [v for v in reversed(shown) if v.phase is phase]:
            if spare <= 0:
                return shown, left_out
            shown.remove(view)
            left_out.append(view)
            spare -= heights[view.port]
    return shown, left_out


# Lines of the table ----------------------------------------------------------------------------------------------


def _lines(console: Console, views: Sequence[View]) -> list[Text]:
    rows = [_cells(view) for view in views]
    widths = _widths([_HEADER, *rows], console.width - _FRAME)
    lines = [_row(_HEADER, widths, "bold", "bold")]
    for view, row in zip(views, rows, strict=True):
        quiet = view.phase in {Phase.ABSENT, Phase.WAITING}
        lines.append(_row(row, widths, _STYLES.get(view.phase, "dim"), "dim" if quiet else ""))
        lines += _why(console, view)
    return lines


def _cells(view: View) -> tuple[str, ...]:
    result = str(view.step if view.phase is Phase.TALKING else view.phase)
    return result, view.port.removeprefix("/dev/"), view.serial, view.device, f"{view.seconds:.1f}"


def _widths(rows: Sequence[tuple[str, ...]], room: int) -> list[int]:
    """Return the columns' widths: what they need, and where that is too much, the widest gives first."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    room -= _GAP * len(widths)  # the first has a space on either side
    while sum(widths) > room and (wide := [i for i, w in enumerate(widths) if w > _NARROWEST[i]]):
        widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths


def _row(cells: Sequence[str], widths: Sequence[int], result: str, rest: str) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    line.append(f" {_short(cells[0], widths[0])} ", style=result)
    for cell, width in zip(cells[1:-1], widths[1:-1], strict=True):
        line.append(" " * (_GAP - 1)).append(_short(cell, width), style=rest).append(" ")
    return line.append(cells[-1].rjust(widths[-1] + _GAP - 1), style=rest)


def _short(text: str, width: int) -> str:
    """Return exactly so many cells; what is too long loses its middle: serial numbers differ at their ends."""
    if cell_len(text) > width:
        tail = (width - 1) // 2
        text = set_cell_size(text, width - 1 - tail) + "…" + set_cell_size(text[::-1], tail)[::-1]
    return set_cell_size(text, width)


def _why(console: Console, view: View) -> list[Text]:
    """Return reason and remedy, wrapped to the width."""
    texts = []
    if view.reason:
        texts.append(Text(view.reason, style="bold red" if view.phase is Phase.FAILED else ""))
    if view.remedy:
        texts.append(Text(f"> {view.remedy}", style="yellow"))
    wrapped = [line for text in texts for line in text.wrap(console, max(console.width - _FRAME - _INDENT, 1))]
    for line in wrapped:
        line.pad_left(_INDENT)
    return wrapped


def _message(text: str, style: str) -> Text:
    return Text(f" {text}", style=style, no_wrap=True, overflow="ellipsis")


def _foot(tally: Tally, now: float) -> Text:
    whole = "-" if tally.percent is None else f"{tally.percent:.1f} %"
    text = Text(" ", no_wrap=True, overflow="ellipsis")
    text.append(f"{len(tally.passed)} PASS", style="bold green").append("   ")
    text.append(f"{len(tally.failed)} FAIL", style="bold red" if tally.failed else "dim").append("   ")
    return text.append(f"yield {whole}   {tally.per_hour(now):,.0f} an hour")

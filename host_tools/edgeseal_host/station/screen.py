"""The full-screen view: one row for each port that a technician can read from two metres, yield and rate below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edgeseal_host.station.lane import OVER, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType

    from edgeseal_host.station.lane import View
    from edgeseal_host.station.tally import Tally

_STYLES: Final = {
    Phase.PASSED: "bold white on green",
    Phase.FAILED: "bold white on red",
    Phase.DONE: "bold black on yellow",
    Phase.SCAN: "bold black on cyan",
    Phase.TALKING: "bold cyan",
}


class Screen:
    """A run's audience on a terminal; a context manager, because the terminal is given back at the end."""

    def __init__(self, title: str, *, console: Console | None = None) -> None:
        """`title` names station, batch and operator."""
        self._title = title
        self._last = "Ctrl-C ends the run; Enter tries again what failed; a scanner types serial numbers"
        self._live = Live(console=console or Console(), screen=True, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back."""
        self._live.__exit__(kind, error, trace)

    def changed(self, view: View) -> None:
        """Nothing: the next tick shows it."""

    def said(self, text: str) -> None:
        """Show it in the last line."""
        self._last = text

    def tick(self, views: Sequence[View], tally: Tally, now: float) -> None:
        """Draw everything."""
        self._live.update(render(self._title, views, tally, now, self._last), refresh=True)


def render(title: str, views: Sequence[View], tally: Tally, now: float, last: str) -> RenderableType:
    """Return the whole screen."""
    table = Table(expand=True, box=None, padding=(0, 1), header_style="bold")
    for column, width in (("port", 14), ("serial", 20), ("device", 14), ("step", 12), ("s", 6)):
        table.add_column(column, min_width=min(width, 8), no_wrap=True, overflow="ellipsis")
    table.add_column("result", min_width=6, no_wrap=True)
    table.add_column("why, and what to do", ratio=1)
    for view in views:
        style = _STYLES.get(view.phase, "dim")
        result = Text(f" {view.phase} ", style=style) if view.phase in OVER or view.phase is Phase.SCAN else Text("")
        short = view.port.removeprefix("/dev/")
        step = "" if view.phase in OVER else view.step
        cells = [short, view.serial, view.device, step, f"{view.seconds:.1f}"]
        table.add_row(*(Text(cell, style=_text_style(view)) for cell in cells), result, _why(view))
    if not views:
        table.add_row(Text("no port yet: plug one in", style="yellow"), *[""] * 6)
    return Group(Panel(table, title=Text(title), title_align="left"), _foot(tally, now), Text(f" {last}", style="dim"))


def _text_style(view: View) -> str:
    return "dim" if view.phase in {Phase.ABSENT, Phase.WAITING} else ""


def _why(view: View) -> Text:
    text = Text(view.reason, style="bold red" if view.phase is Phase.FAILED else "")
    if view.remedy:
        text.append("\n" if view.reason else "").append(f"> {view.remedy}", style="yellow")
    return text


def _foot(tally: Tally, now: float) -> Text:
    whole = "-" if tally.percent is None else f"{tally.percent:.1f} %"
    text = Text(" ")
    text.append(f"{len(tally.passed)} PASS", style="bold green").append("   ")
    text.append(f"{len(tally.failed)} FAIL", style="bold red" if tally.failed else "dim").append("   ")
    text.append(f"yield {whole}   {tally.per_hour(now):,.0f} an hour")
    return text

"""How `edgeseal` talks: results on stdout (text, or one JSON object with --json), everything else on stderr.

Progress bars and colours appear only on a terminal. Not here: what is said.
"""

from __future__ import annotations

import errno
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import click

from edgeseal.errors import EdgesealError, NoSpaceError, NotAuthorisedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.table import Table

JSON_KEY: Final = "edgeseal.json"
_Command = TypeVar("_Command", bound="Callable[..., Any]")
Text: TypeAlias = "str | Table"


def json_option(command: _Command) -> _Command:
    """Give a command `--json`; `emit` and the error report obey it, so the function gets no parameter."""
    option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        help="Print one JSON object on stdout, errors included.",
        callback=_remember_json,
    )
    return option(command)


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        ctx.meta[JSON_KEY] = True


def json_wanted() -> bool:
    """Whether the running command was given --json."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.meta.get(JSON_KEY))


def emit(obj: object, text: Text | Callable[[], Text]) -> None:
    """Print the command's one result: `obj` as JSON with --json, else `text` (or what it returns) for a person."""
    if json_wanted():
        click.echo(json.dumps(obj, ensure_ascii=False))
        return
    shown = text() if callable(text) else text
    if isinstance(shown, str):
        if shown:
            click.echo(shown)
        return
    from rich.console import Console

    Console(file=sys.stdout).print(shown)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Text:
    """Rows for a person: a rich table on a terminal, else aligned text that a pipe can cut up (nothing shortened)."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        return _rich_table(columns, cells)
    everything = [list(columns), *cells]
    widths = [max(len(row[i]) for row in everything) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in everything)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=None, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    return shown


def note(message: str) -> None:
    """Say something beside the result, on stderr; --json silences it."""
    if not json_wanted():
        click.echo(message, err=True)


def warn(message: str) -> None:
    """Say what the user should change, on stderr, also with --json."""
    click.echo(f"warning: {message}", err=True)


@contextmanager
def progress(description: str, *, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Give a function that moves a bar on stderr forward by n; without a terminal, or with --json, it does nothing."""
    if json_wanted() or not sys.stderr.isatty():
        yield lambda _n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def errors_reported(ctx: click.Context) -> Iterator[None]:
    """Turn an expected error into its message and exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except EdgesealError as e:
        _fail(ctx, e.as_dict(), e)
    except OSError as e:
        if e.errno == errno.EPIPE:
            raise  # the reader went away: click ends quietly
        found = _from_os_error(e)
        _fail(ctx, found.as_dict(), found)
    except click.ClickException as e:
        # Click words usage errors well for people; --json alone needs our shape.
        if not ctx.meta.get(JSON_KEY) or isinstance(e, click.exceptions.NoArgsIsHelpError):
            raise
        click.echo(json.dumps({"error": "UsageError", "message": e.format_message(), "hint": None, "exit_code": 2}))
        ctx.exit(2)


def _fail(ctx: click.Context, obj: dict[str, object], error: EdgesealError) -> None:
    if ctx.meta.get(JSON_KEY):
        click.echo(json.dumps(obj, ensure_ascii=False))
    else:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
    ctx.exit(error.exit_code)


def _from_os_error(e: OSError) -> EdgesealError:
    """Name the file and the reason; never the arguments beyond that."""
    message = f"{e.strerror or type(e).__name__}: {e.filename}" if e.filename else str(e.strerror or e)
    if e.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(message, hint="free some space and run the command again")
    if e.errno in {errno.EACCES, errno.EPERM}:
        return NotAuthorisedError(message, hint="check the owner and mode of the file")
    return EdgesealError(message)

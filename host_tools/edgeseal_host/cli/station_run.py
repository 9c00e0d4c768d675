"""`edgeseal station run`: provision whatever is plugged in, until Ctrl-C or until every port had its device.

On a terminal a full screen, else a line of text for each event, with --json a JSON object for each.
"""

from __future__ import annotations

import getpass
import resource
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeseal.errors import UsageError
from edgeseal_host.cli import options, output
from edgeseal_host.cli.station import station_option
from edgeseal_host.station import batch as batches
from edgeseal_host.station import chain, ports
from edgeseal_host.station.reports import JsonReport, PlainReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    from edgeseal_host.station.batch import Batch
    from edgeseal_host.station.directory import StationDirectory, StationKey
    from edgeseal_host.station.hall import Audience
    from edgeseal_host.station.journal import Journal
    from edgeseal_host.station.run import Outcome
    from edgeseal_host.station.uploader import Client, Uploader

MAX_SIMULATED: Final = 64
MAX_TEXT: Final = 64
_SHOWN: Final = 5  # of what earlier runs left: a screen has few lines
_EXIT_CODES: Final = (
    "Exit codes: 0 every device passed, 1 a device failed or the fleet server refused its record, 130 stopped while "
    "devices were unfinished (they are named; the next run goes on with them), else as for every command."
)


@dataclass(frozen=True)
class _Line:
    """What a run works with: a station, its ports, what to make of them."""

    directory: StationDirectory
    passphrase: bytes | None
    batch: Batch
    find: Callable[[], Sequence[str]]
    client: Client | None = None
    notes: tuple[str, ...] = ()


@click.command(epilog=_EXIT_CODES)
@click.option(
    "--port",
    "names",
    multiple=True,
    metavar="auto|PATH",
    help="A serial port, which may be plugged in later; repeat it for more. auto, the default: all on USB.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="PATH",
    help="Leave this port alone where auto would take it: a noise source, a scanner. May be repeated.",
)
@click.option(
    "--batch", "file", type=click.Path(path_type=Path), metavar="FILE", help="What is wanted of every device (TOML)."
)
@click.option("--once", is_flag=True, help="One device for each port; end when all have their verdict.")
@click.option("--operator", default=None, help="Who is at the line, for the journal.  [default: the user]")
@click.option("--fixture", default="", help="Name of the jig, for the journal.")
@click.option("--baud", type=click.IntRange(1200, 12_000_000), default=115_200, show_default=True)
@click.option(
    "--simulate",
    type=click.IntRange(1, MAX_SIMULATED),
    metavar="N",
    help="N devices that are none, at a throw-away station: needs no hardware, no fleet and no batch.",
)
@click.option(
    "--copies",
    type=click.IntRange(0, MAX_SIMULATED),
    default=0,
    help="So many of the simulated devices are copies of the first: they fail.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the throw-away station of a simulation in this new directory.",
)
@options.server_options(required=False)
@options.passphrase_option
@station_option
@output.json_option
@click.pass_context
def run(  # noqa: PLR0913, PLR0917 - what a run needs
    ctx: click.Context,
    names: tuple[str, ...],
    without: tuple[str, ...],
    file: Path | None,
    once: bool,  # noqa: FBT001 - click's flag
    operator: str | None,
    fixture: str,
    baud: int,
    simulate: int | None,
    copies: int,
    keep: Path | None,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    passphrase_file: Path | None,
    station: StationDirectory,
) -> None:
    """Provision the devices on serial ports: PASS or FAIL, and why."""
    operator = _user() if operator is None else operator
    for option, text in (("--operator", operator), ("--fixture", fixture)):
        if len(text) > MAX_TEXT or not text.isprintable():
            raise UsageError(f"{option}: expected at most {MAX_TEXT} printable characters")
    line: AbstractContextManager[_Line]
    if simulate is None:
        if copies or keep is not None:
            raise UsageError("--copies and --keep are for --simulate")
        client = None if url is None else options.client(url, token_file, ca_file)
        find = ports.finder(names or (ports.AUTO,), without=without)
        line = nullcontext(_real(station, names, find, file, passphrase_file, client, once=once))
    else:
        if names or without or url is not None:
            raise UsageError("simulated devices have no --port and go to no fleet server", hint="leave that out")
        line = _simulated(simulate, min(copies, simulate - 1), file, keep, baud=baud)
    with line as found:
        outcome = _run(found, baud=baud, operator=operator, fixture=fixture, once=once)
    ctx.exit(outcome.exit_code)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return ""


def _real(
    station: StationDirectory,
    names: tuple[str, ...],
    find: Callable[[], Sequence[str]],
    file: Path | None,
    passphrase_file: Path | None,
    client: Client | None,
    *,
    once: bool,
) -> _Line:
    key = station.key_name
    if file is None:
        raise UsageError("which devices? --batch FILE says so", hint=f"{station.batch_file} is an example")
    batch = batches.load(file)
    notes = ports.check(names, once=once)
    if not notes and not find():
        notes = ["no serial port on USB yet: plug one in"]
    passphrase = options.passphrase_for(station.keys, key, passphrase_file)
    return _Line(station, passphrase, batch, find, client, tuple(notes))


@contextmanager
def _simulated(count: int, copies: int, file: Path | None, keep: Path | None, *, baud: int) -> Iterator[_Line]:
    from edgeseal_host.station.rehearsal import rehearsal
    from edgeseal_host.station.simulation import simulated

    with rehearsal(None if file is None else batches.load(file), keep=keep) as made:
        batch = made.batch
        with simulated(count, baud=baud, suite=batch.what.suite, hardware=made.hardware, copies=copies) as devices:
            paths = [device.path for device in devices]
            note = "SIMULATED: no device, no fleet; nothing of this counts"
            kept = () if keep is None else (f"kept: --station {keep} --keys {keep / 'keys'}",)
            yield _Line(made.directory, None, batch, lambda: paths, notes=(note, *kept))


def _run(line: _Line, *, baud: int, operator: str, fixture: str, once: bool) -> Outcome:
    from edgeseal_host.station.run import Run
    from edgeseal_host.station.scanner import standard_input
    from edgeseal_host.station.work import Work

    # A core file would hold the secrets of devices that are at work.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    public = line.directory.public()
    private = line.directory.keys.mldsa65(line.directory.key_name, line.passphrase)
    order = line.batch.order(station=public.name, pin=public.pin, now=int(time.time()))
    title = f"{public.name} · batch {line.batch.name} · {operator}"
    with line.directory.journal() as journal, standard_input() as scanner:
        with _audience(title) as audience:
            for note in (*line.notes, *_left_by_earlier_runs(journal)):
                audience.said(note)
            work = Work(
                order,
                journal,
                line.batch.naming,
                operator,
                fixture=fixture,
                rate=baud / 10,
                scan=line.batch.what.scan,
                once=once,
            )
            outcome = Run(
                work,
                line.find,
                baud=baud,
                audience=audience,
                sign=lambda head: private.sign(head, chain.CONTEXT),
                scanner=scanner,
                upload=None if line.client is None else _upload(line.client, public, private),
            )()
        _say_end(outcome, work.clock())
    return outcome


def _upload(
    client: Client, public: StationKey, private: MLDSA65PrivateKey
) -> Callable[[Journal, Callable[[str], None]], Uploader]:
    from edgeseal_host.station.enrolments import CONTEXT, Signer
    from edgeseal_host.station.uploader import SigningRegistrar, Uploader

    signer = Signer(public.name, public.pin, lambda record: private.sign(record, CONTEXT))
    return lambda journal, say: Uploader(journal, SigningRegistrar(client, signer), say)


def _left_by_earlier_runs(journal: Journal) -> Iterator[str]:
    from edgeseal_host.station.standing import standing

    unfinished = standing(journal).unfinished
    yield from (f"unfinished: {u.remedy}" for u in unfinished[:_SHOWN])
    if len(unfinished) > _SHOWN:
        yield f"and {len(unfinished) - _SHOWN} more: edgeseal station status"


@contextmanager
def _audience(title: str) -> Iterator[Audience]:
    if output.json_wanted():
        yield JsonReport(click.echo)
        return
    from edgeseal_host.station.screen import Screen, possible

    if possible():
        with Screen(title) as screen:
            yield screen
    else:
        click.echo(title)
        yield PlainReport(click.echo)


def _say_end(outcome: Outcome, now: float) -> None:
    summary = outcome.summary(now)
    if output.json_wanted():
        output.emit({"event": "end", **summary}, "")
        return
    for text in _end_lines(outcome, summary):
        click.echo(text)


def _end_lines(outcome: Outcome, summary: dict[str, Any]) -> Iterator[str]:
    percent = summary["yield_percent"]
    yield (
        f"{summary['passed']} PASS, {summary['failed']} FAIL, {summary['done_before']} done before, "
        f"yield {'-' if percent is None else f'{percent} %'}, {summary['per_hour']:.0f} an hour"
    )
    if outcome.tally.failed:
        yield f"FAIL: {', '.join(sorted(outcome.tally.failed))}"
    yield from (f"unfinished: {v.serial} on {v.port} ({v.step}); the next run goes on" for v in outcome.unfinished)
    if outcome.left:
        yield f"{outcome.left} records are not at the fleet server yet: edgeseal station upload, or carry"

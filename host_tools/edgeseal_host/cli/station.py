"""`edgeseal station`: make a manufacturing station, see how its journal stands.

Not here: what a station does (edgeseal_host.station).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import platformdirs

from edgeseal.errors import UsageError
from edgeseal_host.cli import options, output
from edgeseal_host.station.directory import StationDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal_host.keys import KeyDirectory

MAX_NAME = 64
_Command = TypeVar("_Command", bound="Callable[..., Any]")


def station_option(command: _Command) -> _Command:
    """Add `--station DIR` and `--keys DIR`; the function gets `station`, a StationDirectory that may not exist."""

    @functools.wraps(command)
    def with_directory(*args: Any, station: Path, keys: KeyDirectory, **more: Any) -> Any:  # noqa: ANN401 - any command's
        return command(*args, station=StationDirectory(station, keys), **more)

    option = click.option(
        "--station",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: Path(platformdirs.user_data_dir("edgeseal")) / "station",
        envvar="EDGESEAL_STATION",
        help="The station's directory (or EDGESEAL_STATION).",
    )
    return option(options.keys_option(with_directory))  # type: ignore[return-value]


@click.group()
def group() -> None:
    """Provision devices over serial lines."""


@group.command()
@click.option("--name", required=True, help="The station's name, as devices and journal keep it: 'line 1'.")
@click.option(
    "--key", default="station", show_default=True, metavar="NAME", help="Its key's name in the key directory."
)
@click.option("--no-passphrase", is_flag=True, help="Leave the key's file unencrypted (machines, demos).")
@options.passphrase_option
@station_option
@output.json_option
def init(name: str, key: str, no_passphrase: bool, passphrase_file: Path | None, station: StationDirectory) -> None:  # noqa: FBT001 - click's flag
    """Make a station: its signing key, its journal, and an example of a batch file."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise UsageError(f"{name!r} cannot be a station's name", hint=f"1 to {MAX_NAME} printable characters")
    made = station.create(name, key, options.new_passphrase(passphrase_file, none=no_passphrase))
    result = {
        "station": name,
        "directory": str(station.path),
        "pin": made.pin.hex(),
        "key": key,
        "journal": str(station.journal_file),
        "batch": str(station.batch_file),
    }
    text = (
        f"station {name} ready in {station.path}\n"
        f"  pin       {made.pin.hex()[:32]}…   (devices keep it: only this station can reset them)\n"
        f"  journal   {station.journal_file}   (back it up: it cannot be made again)\n"
        f"  batch     {station.batch_file}   (an example: edit it, then: edgeseal station run --batch FILE)"
    )
    output.emit(result, text)


@group.command()
@station_option
@output.json_option
def status(station: StationDirectory) -> None:
    """Check the journal from its first entry to its last, and show what was made and what is unfinished."""
    from edgeseal_host.station.standing import standing

    public = station.public()
    with station.journal(alone=False) as journal:
        entries, signed = journal.verify(public.check)
        found = standing(journal)
    running = station.is_running()
    result = {
        "station": public.name,
        "directory": str(station.path),
        "pin": public.pin.hex(),
        "running": running,
        "entries": entries,
        "signed": signed,
        **found.summary(),
    }
    output.emit(result, lambda: _standing_text(result))


def _standing_text(result: dict[str, Any]) -> str:
    lines = [
        f"station {result['station']}, pin {result['pin'][:32]}…",
        f"  {'a run is going on' if result['running'] else 'no run is going on'}",
        f"  the journal's {result['entries']} entries are whole, the first {result['signed']} of them signed",
    ]
    lines += [
        f"batch {b['batch'] or 'none'}: {b['granted']} begun, {b['provisioned']} provisioned, {b['locked']} locked, "
        f"{b['uploaded']} at the fleet server, {b['failed']} times FAIL"
        for b in result["batches"]
    ]
    lines += [f"unfinished: {u['remedy']}" for u in result["unfinished"]]
    return "\n".join(lines)

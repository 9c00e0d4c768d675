"""`edgeseal station export | labels | verify-journal`: what leaves a station on paper and in files.

All three only read the journal, checked from its first entry to its last, and work while a run is going on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeseal.durable import write_atomic
from edgeseal.errors import IntegrityError, UsageError
from edgeseal_host.cli import output
from edgeseal_host.cli.station import station_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal_host.station.devices import Made
    from edgeseal_host.station.directory import StationDirectory
    from edgeseal_host.station.journal import Journal

_PATH: Final = click.Path(path_type=Path)
_SHEETS: Final = "sheets"
_PAGE: Final = "page-{:03}.svg"
_KNOWN: Final = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{96})")


@click.command()
@click.option(
    "--csv", "as_csv", is_flag=True, help="RFC 4180, for spreadsheets: no text in it is a formula. The default."
)
@click.option("--failures", is_flag=True, help="Instead of devices, every FAIL with its reason.")
@click.option("--batch", metavar="NAME", help="Only those of this batch.")
@click.option("--out", type=_PATH, help="Write this file, whole or not at all, instead of standard output.")
@station_option
@output.json_option
def export(
    station: StationDirectory,
    as_csv: bool,  # noqa: FBT001
    failures: bool,  # noqa: FBT001
    batch: str | None,
    out: Path | None,
) -> None:
    """Write every device that was provisioned, oldest first, as CSV or (--json) as one JSON object."""
    from edgeseal_host.station import exports

    if as_csv and output.json_wanted():
        raise UsageError("--csv and --json are two formats", hint="leave one out")
    if failures:
        with station.journal(alone=False) as journal:
            listing = exports.failures(journal, batch=batch)
    else:
        listing = exports.devices(_devices(station, batch))
    text = listing.as_json() if output.json_wanted() else listing.as_csv()
    if out is None:
        click.echo(text.encode(), nl=False)  # UTF-8, whatever the locale is
        return
    write_atomic(out, text.encode(), mode=0o644)
    count = len(listing.rows)
    output.emit({"file": str(out), listing.name: count}, f"{count} {listing.name} in {out}")


@click.command()
@click.option("--out", required=True, type=_PATH, help="Directory for the files; those that are there are replaced.")
@click.option("--batch", metavar="NAME", help="Only the devices of this batch.")
@click.option("--device", "names", multiple=True, metavar="NAME", help="Only this device. May be repeated.")
@station_option
@output.json_option
def labels(station: StationDirectory, out: Path, batch: str | None, names: tuple[str, ...]) -> None:
    """Draw a label of 50 x 25 mm for each device, and A4 sheets of them, as SVG.

    The QR code holds the device's name. Print with scaling off, or it is not 50 x 25 mm.
    """
    from edgeseal_host.station.labels import PER_PAGE, label, sheets

    devices = _devices(station, batch)
    if names:
        devices = _named(devices, names)
    files = len(devices) + -(-len(devices) // PER_PAGE)
    pages = []
    with output.progress("labels", total=files, unit="files") as advance:
        for number, page in enumerate(sheets(devices)):
            pages.append(f"{_SHEETS}/{_PAGE.format(number + 1)}")
            on_it = devices[number * PER_PAGE : (number + 1) * PER_PAGE]
            for name, text in [(pages[-1], page), *((f"{d.entry.device}.svg", label(d)) for d in on_it)]:
                _write(out / name, text)
                advance(1)
    _remove_former(out / _SHEETS, len(pages))
    result = {"directory": str(out), "labels": len(devices), "sheets": pages}
    output.emit(result, f"{len(devices)} labels in {out}, {len(pages)} sheets in {out / _SHEETS}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode(), mode=0o644)


def _remove_former(folder: Path, pages: int) -> None:
    """Remove what an earlier, longer call left: somebody would print it. No device's label is in this folder."""
    number = pages + 1
    while (former := folder / _PAGE.format(number)).exists():
        former.unlink()
        number += 1


def _devices(station: StationDirectory, batch: str | None) -> list[Made]:
    """Return the devices of one batch or of all. Raises UsageError for a batch the journal does not know."""
    from edgeseal_host.station.devices import made

    with station.journal(alone=False) as journal:
        found = list(made(journal))
    chosen = [device for device in found if batch in {None, device.entry.batch}]
    if batch is not None and not chosen:
        known = sorted({device.entry.batch for device in found})
        hint = f"there are: {', '.join(known)}" if known else "no device was provisioned here yet"
        raise UsageError(f"no device of batch {batch!r} was provisioned here", hint=hint)
    return chosen


def _named(devices: Sequence[Made], names: Sequence[str]) -> list[Made]:
    known = {device.entry.device for device in devices}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no device {unknown[0]!r} was provisioned here", hint="edgeseal station export shows all")
    return [device for device in devices if device.entry.device in names]


@click.command()
@click.option(
    "--known", metavar="N:HASH", help="What an earlier check printed as head; the journal must still have that entry."
)
@station_option
@output.json_option
def verify_journal(station: StationDirectory, known: str | None) -> None:
    """Check every entry of the journal: none edited, removed, moved or cut off. If one was, exit code 3 names it.

    Write the head down that this prints, away from the station. Who has the station's key can write a whole journal
    anew; only somebody who knows a former head can see that, or that an old backup was put in its place.
    """
    expected = None if known is None else _parsed(known)
    public = station.public()
    with station.journal(alone=False) as journal:
        entries, signed = journal.verify(public.check)
        if expected is not None:
            _check_known(journal, *expected)
        head = journal.head
    shown = "" if head is None else f"{head.n}:{head.hash.hex()}"
    result = {"station": public.name, "entries": entries, "signed": signed, "head": shown}
    rest = f"the first {signed}; the others are of a run that goes on, or was killed"
    text = (
        f"{entries} entries of {public.name}: none was edited, removed, moved or cut off\n"
        f"  signed   {'all of them' if signed == entries else rest}\n"
        f"  head     {shown}"
    )
    output.emit(result, text)


def _parsed(known: str) -> tuple[int, str]:
    found = _KNOWN.fullmatch(known.strip())
    if found is None:
        raise UsageError("--known: expected N:HASH", hint="as `edgeseal station verify-journal` printed it for head")
    return int(found[1]), found[2]


def _check_known(journal: Journal, n: int, digest: str) -> None:
    """Raise IntegrityError unless entry `n` is the one that was seen then."""
    there = next((entry for entry in journal if entry.n == n), None)
    if there is None:
        raise IntegrityError(
            f"the journal had an entry {n} and does not any more: an older one was put in its place",
            hint="stop the line and restore the newest journal",
        )
    if there.hash.hex() != digest:
        raise IntegrityError(
            f"entry {n} is another one than it was: the journal was written anew by somebody with the station's key",
            hint="stop the line; trust the station's key no longer",
        )

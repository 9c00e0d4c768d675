"""`edgeseal fleet`: the manufacturing stations that a fleet server trusts, and the records they carried here.

All of these work on the server's directory, also while it runs. Not here: what they do (edgeseal_host.fleet).
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeseal.durable import write_atomic
from edgeseal.errors import RefusedError, UsageError
from edgeseal_host.cli import output
from edgeseal_host.cli.fleet import data_option
from edgeseal_host.fleet import imports
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.fleet.stations import TrustedStation
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.station import receipts
from edgeseal_host.station.probe import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgeseal_host.fleet.imports import Line

PUBLIC: Final = ".pub.json"
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@data_option
@click.argument("public", metavar="PUBKEY", type=_FILE)
@click.option("--id", "expected", metavar="HEX", help="The id that the station shows, to compare.")
@click.option("--name", help="What to call it here; default: the name of its key.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Only devices of this group. May be repeated.")
@click.option("--again", is_flag=True, help="Also if it was distrusted before, or trusted for other groups.")
@output.json_option
def trust_station(
    data: Path,
    public: Path,
    expected: str | None,
    name: str | None,
    groups: tuple[str, ...],
    again: bool,  # noqa: FBT001 - click's flag
) -> None:
    """Take records that a station has signed, from now on: PUBKEY is its NAME.pub.json.

    Compare the id with the one `edgeseal station status` shows over another channel: whatever device this station signs
    for joins the fleet. Once a station is trusted, an enrol token alone adds no device any more.
    """
    station = _station(public, name)
    if expected is not None and not _same_id(expected, station):
        raise RefusedError(
            f"{public.name} is the key of station {station.id}, not of {expected[:96]}",
            hint="get the file again from the station itself",
        )
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        new = fleet.stations.trust(station, groups=groups, now=int(time.time()), again=again)
    done = "is trusted" if new else "was trusted before: nothing changed"
    output.emit(
        {"id": station.id, "name": station.name, "pin": station.pin.hex(), "groups": list(groups), "new": new},
        f"station {station.name} {done}\n  id {station.id}   (edgeseal station status must show a pin that begins so)",
    )


def _station(public: Path, name: str | None) -> TrustedStation:
    """Read a public key by the rules of the key directory."""
    if not public.name.endswith(PUBLIC):
        raise UsageError(f"{public} is not a station's public key", hint=f"expected its NAME{PUBLIC}, not the .key")
    key = public.name.removesuffix(PUBLIC)
    return TrustedStation(name or key, KeyDirectory(public.parent).public_mldsa65(key))


def _same_id(expected: str, station: TrustedStation) -> bool:
    """Whether a person's copy of the id, or of the whole pin, is this station's."""
    text = expected.strip().lower()
    return text in {station.id, station.pin.hex()}


@click.command()
@data_option
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, help="For whoever asks later: stolen, sold, key lost, …")
@output.json_option
def distrust_station(data: Path, id_: str, reason: str) -> None:
    """Refuse a station's records from now on. Devices it has brought stay: list them, and revoke those in doubt."""
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        devices = fleet.stations.distrust(id_.strip().lower(), reason, now=int(time.time()))
    text = f"station {id_} is distrusted: its records are refused from now on"
    if devices:
        text += f"\n  {devices} devices are from it: edgeseal device list --station {id_}, edgeseal device revoke"
    output.emit({"id": id_, "distrusted": True, "reason": reason, "devices": devices}, text)


@click.command()
@data_option
@output.json_option
def stations(data: Path) -> None:
    """List stations: trusted or not since when, and how many devices each has brought."""
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        found = fleet.stations.listing()
    columns = ("id", "name", "state", "since", "groups", "devices", "reason")
    rows = [
        (
            s["id"],
            s["name"],
            "trusted" if s["distrusted_at"] is None else "distrusted",
            _day(s["trusted_at"] if s["distrusted_at"] is None else s["distrusted_at"]),
            ", ".join(s["groups"]) or "any",
            s["devices"],
            s["reason"] or "",
        )
        for s in found
    ]
    output.emit({"stations": found}, lambda: output.table(columns, rows))


@click.command()
@data_option
@click.argument("file", type=_FILE)
@click.option(
    "--receipt",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write here which records are in, for the station.",
)
@output.json_option
def import_enrolments(data: Path, file: Path, receipt: Path | None) -> None:
    """Register the devices of a FILE that `edgeseal station carry` wrote, line by line; the same file twice is one.

    A line that is refused changes nothing and stops no other; then the exit code is 3.
    """
    if receipt is not None and receipt.exists():
        raise UsageError(f"{receipt} is there already", hint="choose another name")
    directory = DataDirectory(data)
    directory.url()
    total = file.stat().st_size
    with directory.open() as fleet, file.open("rb") as stream, output.progress(file.name, total=total) as advance:
        lines = _told(imports.import_enrolments(fleet, stream, now=int(time.time())), stream.tell, advance)
    counts: Counter[str] = Counter(line.outcome for line in lines)
    if receipt is not None:
        write_atomic(receipt, receipts.write(line.digest for line in lines if line.digest), mode=0o644)
    result = {
        **{outcome: counts[outcome] for outcome in ("registered", "known", "refused")},
        "lines": [
            {"line": x.number, "station": x.station, "device": x.device, "outcome": x.outcome, "reason": x.reason}
            for x in lines
        ],
    }
    output.emit(result, _summary(counts))
    if counts["refused"]:
        click.get_current_context().exit(RefusedError.exit_code)


def _told(found: Iterable[Line], tell: Callable[[], int], advance: Callable[[int], None]) -> list[Line]:
    """Say what became of each line as it happens."""
    lines, before = [], 0
    for line in found:
        lines.append(line)
        reason = f": {line.reason}" if line.reason else ""
        output.note(printable(f"line {line.number}: {line.device or 'no device'}: {line.outcome}{reason}"))
        advance(tell() - before)
        before = tell()
    return lines


def _summary(counts: Counter[str]) -> str:
    if counts["known"] and not counts["registered"] and not counts["refused"]:
        return f"nothing changed: all {counts['known']} devices were registered before"
    return (
        f"{counts['registered']} devices registered, {counts['known']} were registered before, "
        f"{counts['refused']} lines refused"
    )


def _day(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"

"""`edgeseal device`: enrol, list, show, revoke and forget devices.

Not here: enrolment over a serial line; this is the one with files.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeseal.durable import write_atomic
from edgeseal.enrolment import MAX_RECORD, MAX_REQUEST, Request
from edgeseal.errors import EdgesealError, TemporaryError, UsageError
from edgeseal_host.bundle import read_bounded
from edgeseal_host.cli import options, output
from edgeseal_host.enrol import Enrolment, check_record
from edgeseal_host.repository.metadata import MAX_ROOT

if TYPE_CHECKING:
    from edgeseal_host.fleet.client import FleetClient

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def group() -> None:
    """Enrol, list, revoke and forget devices."""


@group.command()
@click.argument("request", type=_FILE)
@click.option("--name", required=True, help="The device's name in the fleet: a-z 0-9 . _ -")
@click.option("--group", "group_", default="", metavar="NAME", help="Its group, for assignments.")
@click.option("--fleet", type=_FILE, required=True, help="The fleet server's public.json.")
@click.option("--root", type=_FILE, required=True, help="The first root.json, which the device will trust.")
@options.server_options(required=False)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Write the enrolment record here instead of sending it."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The grant, to carry to the device.")
@output.json_option
def enrol(  # noqa: PLR0913, PLR0917 - what an enrolment needs
    request: Path,
    name: str,
    group_: str,
    fleet: Path,
    root: Path,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    record: Path | None,
    out: Path,
) -> None:
    """Answer a device's REQUEST: a grant sealed to its key, and a record for the fleet server."""
    from edgeseal_host.fleet.public import FleetPublic
    from edgeseal_host.repository.verify import trust_root

    for made_once in (out, record):
        if made_once is not None and made_once.exists():
            raise UsageError(f"{made_once} is there already", hint="it is made once; choose another file")
    asked = Request.from_bytes(read_bounded(request, MAX_REQUEST))
    public = FleetPublic.load(fleet)
    root_data = read_bounded(root, MAX_ROOT)
    trust_root(root_data)
    enrolment = Enrolment(asked, name, group_, public, root_data)
    if record is not None:
        enrolment.complete(out, lambda data: write_atomic(record, data), now=int(time.time()))
        where = f"record in {record}; next: edgeseal device register {record} --to URL --token FILE"
    else:
        client = options.client(url, token_file, ca_file)
        enrolment.complete(out, lambda data: _register(client, data), now=int(time.time()))
        where = f"registered at {url}"
    text = (
        f"enrolled {name} (key {enrolment.key.kid.hex()}), {where}\n"
        f"  grant in {out}; next, on the device: edgeseal-agent enrol accept {out}"
    )
    output.emit(
        {"device": name, "kid": enrolment.key.kid.hex(), "grant": str(out), "entropy": list(asked.entropy)}, text
    )


@group.command()
@click.argument("record", type=_FILE)
@options.server_options(required=True)
@output.json_option
def register(record: Path, url: str, token_file: Path, ca_file: Path | None) -> None:
    """Send a RECORD that `enrol --record` wrote to the fleet server; the same one twice is one device."""
    data = read_bounded(record, MAX_RECORD)
    device = check_record(data).device
    found = options.client(url, token_file, ca_file).enrol(data)
    output.emit(found, f"registered {device} at {url}")


@group.command(name="list")
@click.option("--station", metavar="ID", help="Only those whose record this manufacturing station has signed.")
@options.server_options(required=True)
@output.json_option
def list_(station: str | None, url: str, token_file: Path, ca_file: Path | None) -> None:
    """List the fleet's devices."""
    found = options.client(url, token_file, ca_file).devices()
    if station is not None:
        found = [d for d in found if d.get("station") == station.strip().lower()]
    columns = ("name", "group", "hardware", "revoked", "alarms")
    rows = [tuple(str(d[c]) for c in columns) for d in found]
    output.emit({"devices": found}, lambda: output.table(columns, rows))


@group.command()
@click.argument("name")
@options.server_options(required=True)
@output.json_option
def show(name: str, url: str, token_file: Path, ca_file: Path | None) -> None:
    """Show one device with its last report."""
    found = options.client(url, token_file, ca_file).device(name)
    rows = [(key, str(value)) for key, value in found.items()]
    rows += [("noise source", _source(source)) for source in (found["report"] or {}).get("sources", [])]
    output.emit(found, lambda: output.table(("field", "value"), rows))


def _source(source: dict[str, Any]) -> str:
    """One noise source for a person; the texts are the device's, so nothing in them may command a terminal."""
    qcnr = "" if source["qcnr_db"] is None else f", QCNR {source['qcnr_db']:.1f} dB"
    reason = f": {source['reason']}" if source["reason"] else ""
    text = (
        f"{source['name']} {source['state']}{reason}; {source['source_class']}, evidence {source['evidence']}{qcnr}, "
        f"{source['alarms']} alarms, {source['bytes_mixed']:,} bytes mixed"
    )
    return "".join(c if c.isprintable() else "?" for c in text)


@group.command()
@click.argument("name")
@click.option("--reason", required=True, help="For the log: lost, stolen, sold, …")
@options.server_options(required=True)
@output.json_option
def revoke(name: str, reason: str, url: str, token_file: Path, ca_file: Path | None) -> None:
    """Refuse a device from now on: it gets no content key any more and deletes those it has."""
    found = options.client(url, token_file, ca_file).revoke(name, reason)
    output.emit(found, f"{name} is revoked: no key will be released to it again")


@group.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@options.server_options(required=True)
@output.json_option
def forget(
    name: str,
    yes: bool,  # noqa: FBT001 - click's flag
    url: str,
    token_file: Path,
    ca_file: Path | None,
) -> None:
    """Erase a device with its keys, reports and orders, so that it may be enrolled anew. Needs an admin token.

    A stolen or lost device is to be revoked instead: then the server remembers not to serve it, and whose it was.
    """
    client = options.client(url, token_file, ca_file)
    found = client.device(name)
    if not yes:
        _confirm_forget(found)
    output.emit(client.forget(name), f"{name} is erased: its keys open nothing here, its name and key are free")


def _confirm_forget(found: dict[str, Any]) -> None:
    """Have a person at the terminal type the device's name.

    Raises UsageError if nobody is there, EdgesealError if it was another name.
    """
    name = str(found["name"])
    if _nobody_to_ask():
        raise UsageError(f"erasing {name} cannot be undone, and nobody is at the terminal to ask", hint="add --yes")
    seen = (
        "never" if found["seen_at"] is None else f"{datetime.fromtimestamp(found['seen_at'], UTC):%Y-%m-%d %H:%M} UTC"
    )
    click.echo(f"{name}: group {found['group'] or 'none'}, last seen {seen}; this cannot be undone.", err=True)
    if click.prompt("Type its name to erase it", err=True) != name:
        raise EdgesealError("nothing was erased", hint="edgeseal device list shows all names")


def _nobody_to_ask() -> bool:
    return not sys.stdin.isatty()


def _register(client: FleetClient, record: bytes) -> None:
    try:
        client.enrol(record)
    except TemporaryError as e:
        raise TemporaryError(e.message, hint="run the same command again: it goes on with the same grant") from e

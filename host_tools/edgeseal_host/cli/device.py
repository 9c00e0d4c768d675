"""`edgeseal device`: enrol, list, show and revoke devices.

Not here: enrolment over a serial line; this is the one with files.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from edgeseal.durable import write_atomic
from edgeseal.enrolment import MAX_REQUEST, Grant, Record, Request
from edgeseal.errors import UsageError
from edgeseal.session.messages import PSK_LENGTH
from edgeseal.suite import PublicKey
from edgeseal_host.bundle import read_bounded
from edgeseal_host.cli import options, output

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_K_RNG = 32


@click.group()
def group() -> None:
    """Enrol, list and revoke devices."""


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

    if out.exists():
        raise UsageError(f"{out} is there already", hint="a grant is made once; choose another file")
    asked = Request.from_bytes(read_bounded(request, MAX_REQUEST))
    public = FleetPublic.load(fleet)
    root_data = root.read_bytes()
    trust_root(root_data)
    key = PublicKey(asked.suite, asked.public)
    psk, k_rng = os.urandom(PSK_LENGTH), os.urandom(_K_RNG)
    grant = Grant(1, name, asked.suite, psk, k_rng, public.url, root_data, int(time.time()))
    made = Record.make(
        device=name, serial=asked.serial, hardware=asked.hardware, group=group_, key=key, psk=psk, enrol=public.enrol
    )
    if record is not None:
        write_atomic(record, made.to_bytes())
        where = f"record in {record}: edgeseal fleet import, on the server"
    else:
        # The server first: a grant without a registry row would make a device that nobody knows.
        options.client(url, token_file, ca_file).enrol(made.to_bytes())
        where = f"registered at {url}"
    write_atomic(out, grant.seal(key))
    text = (
        f"enrolled {name} (key {key.kid.hex()}), {where}\n"
        f"  grant in {out}; next, on the device: edgeseal-agent enrol accept {out}"
    )
    output.emit({"device": name, "kid": key.kid.hex(), "grant": str(out), "entropy": list(asked.entropy)}, text)


@group.command(name="list")
@options.server_options(required=True)
@output.json_option
def list_(url: str, token_file: Path, ca_file: Path | None) -> None:
    """List the fleet's devices."""
    found = options.client(url, token_file, ca_file).devices()
    columns = ("device", "group", "hardware", "revoked", "alarms")
    rows = [tuple(str(d.get(c, "")) for c in columns) for d in found]
    output.emit({"devices": found}, lambda: output.table(columns, rows))


@group.command()
@click.argument("name")
@options.server_options(required=True)
@output.json_option
def show(name: str, url: str, token_file: Path, ca_file: Path | None) -> None:
    """Show one device with its last report."""
    found = options.client(url, token_file, ca_file).device(name)
    rows = [(key, str(value)) for key, value in found.items()]
    output.emit(found, lambda: output.table(("field", "value"), rows))


@group.command()
@click.argument("name")
@click.option("--reason", required=True, help="For the log: lost, stolen, sold, …")
@options.server_options(required=True)
@output.json_option
def revoke(name: str, reason: str, url: str, token_file: Path, ca_file: Path | None) -> None:
    """Refuse a device from now on: it gets no content key any more and deletes those it has."""
    found = options.client(url, token_file, ca_file).revoke(name, reason)
    output.emit(found, f"{name} is revoked: no key will be released to it again")

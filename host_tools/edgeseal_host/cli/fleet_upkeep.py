"""`edgeseal fleet`: what is done to a fleet server's directory once in a while: new keys, restored, upgraded.

Not here: what these do (edgeseal_host.fleet).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from edgeseal_host.cli import output
from edgeseal_host.cli.fleet import data_option
from edgeseal_host.fleet import preflight
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.fleet.rings import RINGS

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@data_option
@click.argument("ring", type=click.Choice(RINGS))
@click.option("--force", is_flag=True, help="Rotate session keys although devices do not know the next one yet.")
@output.json_option
def rotate(data: Path, ring: str, force: bool) -> None:  # noqa: FBT001 - click's signature
    """Make the next key of a ring the current one; a running server follows within seconds."""
    DataDirectory(data).rotate(ring, now=int(time.time()), force=force)
    what = {
        "session": "announce the new next key: edgeseal repo stage DIR --fleet public.json, sign, publish",
        "wrap": "give publishers the new public.json; envelopes for the former key still open",
        "enrol": "give workstations the new public.json; records for the former key still open",
    }[ring]
    output.emit({"rotated": ring, "next": what}, f"{ring} keys rotated\nnext: {what}")


@click.command()
@data_option
@click.option("--force", is_flag=True, help="Replace new keys that no root names yet: they were stolen too.")
@output.json_option
def rotate_online_keys(data: Path, force: bool) -> None:  # noqa: FBT001 - click's signature
    """Make new snapshot and timestamp keys; the former sign until a published root names the new ones.

    A running server goes on, and changes over by itself when that root is published.
    """
    public = DataDirectory(data).rotate_online_keys(force=force)
    next_ = "edgeseal repo stage DIR --fleet public.json, sign the new root, publish"
    keys = {"snapshot": public.snapshot.keyid, "timestamp": public.timestamp.keyid}
    output.emit({**keys, "next": next_}, f"new online keys made, announced in public.json\nnext: {next_}")


@click.command()
@data_option
@output.json_option
def rotate_data_key(data: Path) -> None:
    """Seal the registry's secrets with a new key (stop the server first); the former is destroyed."""
    directory = DataDirectory(data)
    with preflight.alone(directory):
        count = directory.rotate_data_key()
    next_ = "back up database and secrets again: earlier copies of the database open with the former key only"
    output.emit({"sealed": count, "next": next_}, f"{count} secrets sealed with a new key\nnext: {next_}")


@click.command()
@data_option
@output.json_option
def restored(data: Path) -> None:
    """Bring a registry that came from a backup up to date (stop the server first).

    Devices have counted on since, and more may have been published: it is taken over from the public files, but for
    the content keys.
    """
    directory = DataDirectory(data)
    with preflight.alone(directory), directory.open() as fleet:
        devices = fleet.registry.after_restore()
        taken = fleet.publisher.catch_up() or {}
    changed, without_key = taken.get("changed", []), taken.get("without_key", [])
    lines = [f"{devices} devices will resynchronise at their next exchange; ignore clone alarms until then"]
    if changed:
        lines.append(f"taken over from the public files: {', '.join(changed)}")
    if without_key:
        lines.append(f"their keys must be sent again (edgeseal bundle publish): {', '.join(without_key)}")
    output.emit({"devices": devices, "changed": changed, "without_key": without_key}, "\n".join(lines))


@click.command()
@data_option
@output.json_option
def upgrade(data: Path) -> None:
    """Bring a registry that an older edgeseal wrote to this version (stop the server first)."""
    from edgeseal_host.fleet import schema
    from edgeseal_host.fleet.upgrade import upgrade as run

    directory = DataDirectory(data)
    with preflight.alone(directory):
        found, copy = run(directory.database)
    result = {"from": found, "to": schema.SCHEMA_VERSION, "copy": None if copy is None else str(copy)}
    done = f"upgraded from schema {found} to {schema.SCHEMA_VERSION}; the former registry is {copy}"
    output.emit(result, f"schema {found} is this version's: nothing to do" if copy is None else done)

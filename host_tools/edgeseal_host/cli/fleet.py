"""`edgeseal fleet`: make and run a fleet server and its tokens; say which devices run what.

Not here: what a server does (edgeseal_host.fleet), and its upkeep (fleet_upkeep.py). `assign`, `unassign` and
`assignments` talk to a running server; all others work on its directory.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edgeseal.durable import write_atomic
from edgeseal.errors import UsageError
from edgeseal_host.cli import output
from edgeseal_host.cli.options import client, server_options
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.fleet.wire import SCOPES

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ROOT: Final = 512_000
_Command = TypeVar("_Command", bound="Callable[..., Any]")
_PATH: Final = click.Path(path_type=Path)
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


def data_option(command: _Command) -> _Command:
    """Add `--data DIR`."""
    return click.option(
        "--data", required=True, type=_PATH, envvar="EDGESEAL_FLEET_DATA", help="The fleet server's directory."
    )(command)


def target_options(command: _Command) -> _Command:
    """Add `--device NAME` and `--group NAME`."""
    device = click.option("--device", metavar="NAME", help="One device; wins over its group.")
    return device(click.option("--group", metavar="NAME", help="All devices of a group.")(command))


@click.group()
def group() -> None:
    """Run a fleet server."""


@group.command()
@data_option
@click.option("--url", required=True, help="Address under which devices and publishers reach the server.")
@output.json_option
def init(data: Path, url: str) -> None:
    """Make a fleet server's keys, database and first token."""
    directory = DataDirectory(data)
    directory.create(url, now=_now())
    result = {"data": str(data), "public": str(directory.public_file), "token": str(directory.admin_token)}
    text = (
        f"fleet server ready in {data}\n"
        f"  public keys   {directory.public_file}   (for: edgeseal repo init --fleet)\n"
        f"  admin token   {directory.admin_token}   (keep it; whoever has it rules this server)\n"
        f"  back up       {directory.secrets} and {directory.database}, together and apart from each other"
    )
    output.emit(result, text)


@group.command()
@data_option
@click.argument("root", type=_FILE)
@output.json_option
def trust(data: Path, root: Path) -> None:
    """Take the first TUF root; later ones come by publication, signed by this one."""
    if root.stat().st_size > MAX_ROOT:
        raise UsageError(f"{root.name} is {root.stat().st_size} bytes; a root has at most {MAX_ROOT}")
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        fleet.objects.prepare()
        version = fleet.publisher.trust(root.read_bytes())
    output.emit({"root": version}, f"root version {version} is trusted")


@group.command()
@data_option
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="HOST:PORT; put HTTPS in front of it, or:")
@click.option("--tls-cert", type=_FILE, help="Certificate chain (PEM); read again at SIGHUP.")
@click.option("--tls-key", type=_FILE, help="Its private key (PEM, without a passphrase).")
@click.option("--ready-file", type=_PATH, help="Write the base address here once requests are answered.")
@output.json_option
def serve(data: Path, listen: str, tls_cert: Path | None, tls_key: Path | None, ready_file: Path | None) -> None:
    """Serve devices, publishers and operators until SIGTERM."""
    from edgeseal_host.fleet.serve import serve as run
    from edgeseal_host.fleet.tls import TlsFiles

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together", hint="give both, or neither behind a proxy")
    tls = None if tls_cert is None or tls_key is None else TlsFiles(tls_cert, tls_key)
    run(DataDirectory(data), listen=listen, ready_file=ready_file, tls=tls)


@group.group()
def token() -> None:
    """Make, list and revoke API tokens of publishers and operators."""


@token.command("new")
@data_option
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@click.option("--out", required=True, type=_PATH, help="File for the token, mode 0600; it is never printed.")
@output.json_option
def token_new(data: Path, scopes: tuple[str, ...], out: Path) -> None:
    """Make a token; only its hash is kept."""
    if out.exists():
        raise UsageError(f"{out} exists", hint="choose another --out, so that no token is lost")
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        text = fleet.tokens.create(scopes, now=_now())
    write_atomic(out, text.encode() + b"\n", mode=0o600)
    name = text.split("_")[1]
    output.emit({"id": name, "scopes": sorted(set(scopes)), "file": str(out)}, f"token {name} written to {out}")


@token.command("list")
@data_option
@output.json_option
def token_list(data: Path) -> None:
    """Show ids, scopes and age of all tokens."""
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        found = fleet.tokens.listing()
    rows = [
        (t["id"], ",".join(t["scopes"]), _date(t["made_at"]), "revoked" if t["revoked"] else "valid") for t in found
    ]
    output.emit({"tokens": found}, lambda: output.table(("id", "scopes", "made", "state"), rows))


@token.command("revoke")
@data_option
@click.argument("id_", metavar="ID")
@output.json_option
def token_revoke(data: Path, id_: str) -> None:
    """Refuse a token from now on."""
    directory = DataDirectory(data)
    directory.url()
    with directory.open() as fleet:
        fleet.tokens.revoke(id_)
    output.emit({"id": id_, "revoked": True}, f"token {id_} is revoked")


@group.command()
@click.argument("model")
@click.argument("release", type=click.IntRange(min=1))
@target_options
@click.option("--not-after", type=click.DateTime(["%Y-%m-%d"]), help="Devices drop the content key on that day (UTC).")
@server_options(required=True)
@output.json_option
def assign(
    model: str,
    release: int,
    device: str | None,
    group: str | None,
    not_after: datetime | None,
    url: str,
    token_file: Path,
    ca_file: Path | None,
) -> None:
    """Say which release of MODEL a device or a group shall run."""
    _check_target(device, group)
    ends = None if not_after is None else int(not_after.replace(tzinfo=UTC).timestamp())
    result = client(url, token_file, ca_file).assign(model, release, device=device, group=group, not_after=ends)
    whom = f"device {device}" if device else f"group {group}"
    output.emit(result, f"{whom}: {model} release {release}")


@group.command()
@click.argument("model")
@target_options
@server_options(required=True)
@output.json_option
def unassign(
    model: str, device: str | None, group: str | None, url: str, token_file: Path, ca_file: Path | None
) -> None:
    """Take an assignment back; devices keep running what they have."""
    _check_target(device, group)
    result = client(url, token_file, ca_file).unassign(model, device=device, group=group)
    output.emit(result, f"{model} is no longer assigned to {device or group}")


@group.command()
@server_options(required=True)
@output.json_option
def assignments(url: str, token_file: Path, ca_file: Path | None) -> None:
    """Show who shall run what."""
    found = client(url, token_file, ca_file).assignments()
    rows = [
        (
            a["model"],
            a["release"],
            f"device {a['device']}" if "device" in a else f"group {a['group']}",
            "" if a["not_after"] is None else _date(a["not_after"]),
        )
        for a in found
    ]
    output.emit({"assignments": found}, lambda: output.table(("model", "release", "for", "until"), rows))


def _check_target(device: str | None, group: str | None) -> None:
    if (device is None) == (group is None):
        raise UsageError("name either --device or --group")


def _now() -> int:
    return int(time.time())


def _date(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"

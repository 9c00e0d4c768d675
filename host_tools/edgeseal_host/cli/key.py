"""`edgeseal key`: make and show signing keys and family secrets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - click reads the annotations of nobody, but keeps types together

import click

from edgeseal_host.cli import options, output
from edgeseal_host.keys import KINDS, KeyDirectory


@click.group()
def group() -> None:
    """Make and show signing keys and family secrets."""


@group.command()
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True, help="What it is for: see the guide."
)
@click.option("--no-passphrase", is_flag=True, help="Leave the file unencrypted (machines, demos).")
@options.passphrase_option
@options.keys_option
@output.json_option
def new(name: str, kind: str, no_passphrase: bool, passphrase_file: Path | None, keys: KeyDirectory) -> None:  # noqa: FBT001
    """Make a key called NAME: whose it is, or which family of models."""
    entry = keys.new(name, kind, options.new_passphrase(passphrase_file, none=no_passphrase))
    shown = f"{kind} key {entry.keyid[:16]}…" if entry.keyid else "family secret"
    text = f"made {name}: {shown}\n  keep     {keys.path / f'{name}.key'}\n  may show {keys.path / f'{name}.pub.json'}"
    output.emit({**asdict(entry), "file": str(keys.path / f"{name}.key")}, text)


@group.command(name="list")
@options.keys_option
@output.json_option
def list_(keys: KeyDirectory) -> None:
    """List all keys."""
    entries = keys.list()
    rows = [(e.name, e.kind, (e.keyid or "")[:16], "yes" if e.encrypted else "no") for e in entries]
    output.emit(
        {"keys": [asdict(e) for e in entries]}, lambda: output.table(("name", "kind", "key id", "passphrase"), rows)
    )


@group.command()
@click.argument("name")
@options.keys_option
@output.json_option
def show(name: str, keys: KeyDirectory) -> None:
    """Show what may be shown of a key."""
    entry = keys.show(name)
    public = keys.public(name).to_dict() if entry.keyid else None
    lines = [f"{entry.name}: {entry.kind}", f"  key id      {entry.keyid or 'none: a family secret signs nothing'}"]
    lines.append(f"  passphrase  {'yes' if entry.encrypted else 'no'}")
    output.emit({**asdict(entry), "public": public}, "\n".join(lines))

"""Options that several commands share: keys, passphrases, the fleet server.

A secret is never on the command line: passphrases come from a file or the terminal, tokens from a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import platformdirs

from edgeseal.errors import NotAuthorisedError, UsageError
from edgeseal_host.keys import KeyDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from securesystemslib.signer import CryptoSigner

    from edgeseal_host.fleet.client import FleetClient

MAX_SECRET_FILE: Final = 4096
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)
_Command = TypeVar("_Command", bound="Callable[..., Any]")


def keys_option(command: _Command) -> _Command:
    """Add `--keys DIR`; the function gets a `KeyDirectory`."""
    return click.option(
        "--keys",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: Path(platformdirs.user_data_dir("edgeseal")) / "keys",
        envvar="EDGESEAL_KEYS",
        callback=lambda _ctx, _param, value: KeyDirectory(value),
        help="Directory of keys (or EDGESEAL_KEYS).",
    )(command)


def passphrase_option(command: _Command) -> _Command:
    """Add `--passphrase-file FILE`."""
    return click.option(
        "--passphrase-file",
        type=_FILE,
        envvar="EDGESEAL_PASSPHRASE_FILE",
        help="File whose first line is the passphrase.",
    )(command)


def server_options(*, required: bool) -> Callable[[_Command], _Command]:
    """Add `--to URL`, `--token FILE`, `--ca-file FILE`."""

    def add(command: _Command) -> _Command:
        token = click.option(
            "--token",
            "token_file",
            required=required,
            type=_FILE,
            envvar="EDGESEAL_TOKEN_FILE",
            help="File with the API token (or EDGESEAL_TOKEN_FILE).",
        )
        url = click.option("--to", "url", required=required, metavar="URL", help="The fleet server's address.")
        ca = click.option("--ca-file", type=_FILE, help="Certificates to trust instead of the system's.")
        return url(token(ca(command)))

    return add


def client(url: str | None, token_file: Path | None, ca_file: Path | None) -> FleetClient:
    """Return a client with the token of that file.

    Raises UsageError if one of the two is missing.
    """
    from edgeseal_host.fleet.client import FleetClient

    if url is None or token_file is None:
        raise UsageError("--to URL and --token FILE are needed for that")
    return FleetClient(url, token=secret_line(token_file).decode(), ca_file=str(ca_file) if ca_file else None)


def secret_line(path: Path) -> bytes:
    """Return the first line of a small file.

    Raises UsageError if it is empty or too long.
    """
    with path.open("rb") as f:
        line = f.read(MAX_SECRET_FILE + 1).split(b"\n", 1)[0].rstrip(b"\r")
    if not line or len(line) > MAX_SECRET_FILE:
        raise UsageError(f"{path} has no secret on its first line")
    return line


def passphrase_for(keys: KeyDirectory, name: str, file: Path | None) -> bytes | None:
    """Return the passphrase of an existing key: none needed, from the file, or asked for on a terminal.

    Raises NotAuthorisedError if one is needed and there is neither.
    """
    if not keys.needs_passphrase(name):
        return None
    if file is not None:
        return secret_line(file)
    if not sys.stdin.isatty():
        raise NotAuthorisedError(f"{name} is under a passphrase", hint="give --passphrase-file, or run on a terminal")
    return str(click.prompt(f"Passphrase of {name}", hide_input=True, err=True)).encode()


def new_passphrase(file: Path | None, *, none: bool) -> bytes | None:
    """Return the passphrase for a new key.

    Raises UsageError if it is not said how the key is to be protected.
    """
    if none and file is not None:
        raise UsageError(
            "--no-passphrase, and yet a passphrase file is given", hint="leave one out (or EDGESEAL_PASSPHRASE_FILE)"
        )
    if none:
        return None
    if file is not None:
        return secret_line(file)
    if not sys.stdin.isatty():
        raise UsageError(
            "how is the key protected?", hint="--passphrase-file FILE, --no-passphrase, or run on a terminal"
        )
    return str(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()


def signer(keys: KeyDirectory, name: str, file: Path | None) -> CryptoSigner:
    """Open a signing key."""
    return keys.signer(name, passphrase_for(keys, name, file))

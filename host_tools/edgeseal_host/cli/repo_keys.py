"""`edgeseal repo add-key` and `remove-key`: who may sign root and targets, and how many of them must.

Like every change these are staged: enough keys of the old root and enough of the new one sign, on files, in any order.
Not here: the replacement of one key by another (`edgeseal repo rotate`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edgeseal_host.cli import options, output
from edgeseal_host.cli.repo import show_staged
from edgeseal_host.repository import staging
from edgeseal_host.repository.layout import RepositoryDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal_host.keys import KeyDirectory

_Command = TypeVar("_Command", bound="Callable[..., Any]")
_DIRECTORY: Final = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))


def _change_options(command: _Command) -> _Command:
    role = click.option("--role", type=click.Choice(["root", "targets"]), required=True, help="Whose keys change.")
    key = click.option("--key", "name", required=True, metavar="NAME", help="The key that comes or goes.")
    threshold = click.option("--threshold", type=int, metavar="N", help="How many must sign from then on.")
    return _DIRECTORY(role(key(threshold(options.keys_option(output.json_option(command))))))


@click.command()
@_change_options
def add_key(directory: Path, role: str, name: str, threshold: int | None, keys: KeyDirectory) -> None:
    """Stage a root with one key more; keys of the old and of the new root must sign it."""
    repository = RepositoryDirectory(directory)
    with repository.locked():
        staging.add_key(repository, role, keys.public(name), threshold=threshold)
    show_staged(repository, "staged")


@click.command()
@_change_options
def remove_key(directory: Path, role: str, name: str, threshold: int | None, keys: KeyDirectory) -> None:
    """Stage a root with one key less; keys of the old and of the new root must sign it."""
    repository = RepositoryDirectory(directory)
    with repository.locked():
        staging.remove_key(repository, role, keys.public(name), threshold=threshold)
    show_staged(repository, "staged")

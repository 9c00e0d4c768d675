"""`edgeseal repo`: stage, sign and publish the signed list of models (TUF). Signing is asynchronous, on files."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseal.errors import EdgesealError, UsageError
from edgeseal_host.cli import options, output
from edgeseal_host.repository import doctor as doctor_
from edgeseal_host.repository import plain, selection, signing, staging
from edgeseal_host.repository.layout import RepositoryDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgeseal_host.keys import KeyDirectory

_DIRECTORY = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
_RELEASE = re.compile(r"[1-9][0-9]{0,18}")  # as target paths have it
_FLEET = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def group() -> None:
    """Stage, sign and publish the signed list of models (TUF)."""


@group.command()
@_DIRECTORY
@click.option("--fleet", type=_FLEET, required=True, help="The fleet server's public.json.")
@click.option("--root-key", "root_keys", multiple=True, required=True, metavar="NAME", help="A root key (repeat).")
@click.option("--threshold", type=int, default=2, show_default=True, help="How many root keys must sign.")
@click.option("--targets-key", "targets_keys", multiple=True, required=True, metavar="NAME", help="A targets key.")
@options.keys_option
@output.json_option
def init(
    directory: Path,
    fleet: Path,
    root_keys: tuple[str, ...],
    threshold: int,
    targets_keys: tuple[str, ...],
    keys: KeyDirectory,
) -> None:
    """Stage the first root and targets in DIRECTORY."""
    from edgeseal_host.fleet.public import FleetPublic

    repository = RepositoryDirectory(directory)
    staging.init(
        repository,
        roots=[keys.public(n) for n in root_keys],
        threshold=threshold,
        targets=[keys.public(n) for n in targets_keys],
        fleet=FleetPublic.load(fleet),
    )
    show_staged(repository, f"repository started in {directory}")


@group.command()
@_DIRECTORY
@click.option("--model", help="Delegate a model to the keys of --publisher-key.")
@click.option("--publisher-key", "publisher_keys", multiple=True, metavar="NAME", help="Who may publish the model.")
@click.option("--retire", metavar="MODEL/RELEASE", help="Take a release off the list.")
@click.option("--renew", metavar="ROLE", help="Next version of a role with a new expiry.")
@click.option("--fleet", type=_FLEET, help="List the session keys of a public.json again.")
@click.option(
    "--min-suite", type=click.IntRange(1, 2), default=1, show_default=True, help="Lowest suite (with --fleet)."
)
@click.option("--discard", is_flag=True, help="Forget everything staged.")
@options.keys_option
@output.json_option
def stage(
    directory: Path,
    model: str | None,
    publisher_keys: tuple[str, ...],
    retire: str | None,
    renew: str | None,
    fleet: Path | None,
    min_suite: int,
    discard: bool,  # noqa: FBT001 - click's flag
    keys: KeyDirectory,
) -> None:
    """Stage a change; signatures on what it touches are dropped."""
    repository = RepositoryDirectory(directory)
    if not any((discard, model, retire, renew, fleet)):
        raise UsageError("nothing to stage", hint="--model, --retire, --renew, --fleet or --discard")
    with repository.locked(), repository.changing(afresh=discard):
        if model:
            if not publisher_keys:
                raise UsageError("--model needs --publisher-key NAME")
            staging.stage_model(repository, model, [keys.public(n) for n in publisher_keys])
        if retire:
            name, _, release = retire.rpartition("/")
            if not name or not _RELEASE.fullmatch(release):
                raise UsageError(f"--retire {retire}: expected MODEL/RELEASE, for example bearing/3")
            staging.retire(repository, name, int(release))
        if renew:
            staging.renew(repository, renew)
        if fleet:
            from edgeseal_host.fleet.public import FleetPublic

            staging.stage_servers(repository, FleetPublic.load(fleet), min_suite=min_suite)
    show_staged(repository, "staged")


@group.command()
@_DIRECTORY
@output.json_option
def status(directory: Path) -> None:
    """Show what is published, what is staged, who has signed and who can."""
    repository = RepositoryDirectory(directory)
    repository.check()
    show_staged(repository, "")


@group.command()
@_DIRECTORY
@click.option("--key", "name", required=True, metavar="NAME", help="Whose key signs.")
@click.option("--role", help="Sign only this role.")
@click.option("--yes", is_flag=True, help="Do not ask (without a terminal nothing is asked anyway).")
@options.passphrase_option
@options.keys_option
@output.json_option
def sign(
    directory: Path,
    name: str,
    role: str | None,
    yes: bool,  # noqa: FBT001 - click's flag
    passphrase_file: Path | None,
    keys: KeyDirectory,
) -> None:
    """Show what changes, ask, then sign every staged role that names the key."""
    repository = RepositoryDirectory(directory)
    with repository.locked():
        seen = repository.staged()
        for staged in seen if role is None else set(seen) & {role}:  # also of what this key may not or must not sign
            for line in signing.changes(repository, staged, staged=seen):
                output.note(line)
        mine = signing.signable(repository, keys.public(name), only=role)
        changes = {r: signing.changes(repository, r, staged=seen) for r in mine}
        if sys.stdin.isatty() and not yes:
            _confirm(name, changes)
        done = signing.sign(repository, options.signer(keys, name, passphrase_file), only=role, seen=seen)
    output.emit({"signed": done, "key": name, "changes": changes}, f"{name} signed: {', '.join(done)}")


@group.command()
@_DIRECTORY
@options.server_options(required=False)
@click.option(
    "--directory-out",
    "--directory",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a repository for a plain web server or a disk instead.",
)
@click.option("--online-key", metavar="NAME", help="With --directory: the key that signs snapshot and timestamp.")
@options.passphrase_option
@options.keys_option
@output.json_option
def publish(
    directory: Path,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    out: Path | None,
    online_key: str | None,
    passphrase_file: Path | None,
    keys: KeyDirectory,
) -> None:
    """Publish what is staged and sufficiently signed. Sending it again after an interruption is harmless.

    With --directory the whole repository is written, under a fresh snapshot and timestamp, also if nothing is staged.
    """
    repository = RepositoryDirectory(directory)
    with repository.locked():
        if out is None and not repository.staged():
            output.emit({"published": []}, "nothing is staged")
            return
        ready = selection.select(repository, or_nothing=out is not None)
        if out is not None:
            if online_key is None:
                raise UsageError("--directory needs --online-key NAME, which root names for snapshot and timestamp")
            plain.write(repository, ready.verified, out, options.signer(keys, online_key, passphrase_file))
            place = str(out)
        else:
            options.client(url, token_file, ca_file).publish(repository.publication())
            place = str(url)
        repository.mark_published(ready.verified)
    published = ({"root"} if ready.publication.roots else set()) | set(ready.publication.roles)
    published |= {"targets"} if ready.publication.targets else set()
    if ready.waiting:
        output.warn(f"not published: {', '.join(ready.waiting)}: {ready.why}")
    what = ", ".join(sorted(published)) or "what was published before, under a new timestamp,"
    about = {"published": sorted(published), "waiting": list(ready.waiting), "to": place}
    output.emit(about, f"published {what} to {place}")


@group.command()
@_DIRECTORY
@click.option("--role", type=click.Choice(["root", "targets"]), required=True, help="Whose key is replaced.")
@click.option("--old", required=True, metavar="NAME", help="The key that goes.")
@click.option("--new", "new", required=True, metavar="NAME", help="The key that comes.")
@options.keys_option
@output.json_option
def rotate(directory: Path, role: str, old: str, new: str, keys: KeyDirectory) -> None:
    """Stage a root that replaces a key; old and new root keys must sign it."""
    repository = RepositoryDirectory(directory)
    with repository.locked():
        staging.replace_key(repository, role, keys.public(old), keys.public(new))
    show_staged(repository, "staged")


@group.command()
@_DIRECTORY
@click.option("--to", "url", metavar="URL", help="Where devices fetch from.")
@output.json_option
def doctor(directory: Path, url: str | None) -> None:
    """Try devices of every age against the repository, and look for what expires."""
    repository = RepositoryDirectory(directory)
    repository.check()

    def source() -> object:
        from edgeseal.trust import HttpFetcher

        return HttpFetcher(str(url))

    findings = doctor_.examine(repository, source if url else None)  # type: ignore[arg-type]
    rows = [(f.verdict, f.check, f.detail) for f in findings]
    output.emit({"findings": [asdict(f) for f in findings]}, lambda: output.table(("verdict", "check", "detail"), rows))
    if any(f.verdict == "failed" for f in findings):
        click.get_current_context().exit(1)


def _confirm(name: str, changes: Mapping[str, Sequence[str]]) -> None:
    """Ask the person at the terminal.

    Raises EdgesealError if the answer is no.
    """
    if output.json_wanted():  # not shown yet
        for line in (line for lines in changes.values() for line in lines):
            click.echo(line, err=True)
    if not click.confirm(f"Sign {', '.join(changes)} as {name}?", err=True):
        raise EdgesealError("nothing was signed", hint="edgeseal repo status shows what is staged, and who has signed")


def show_staged(repository: RepositoryDirectory, title: str) -> None:
    """Print what is published and staged, and who has signed and who can."""
    standings = signing.standings(repository)
    changes = {role: signing.changes(repository, role) for role in repository.staged()}
    published = dict(_published(repository).items())
    lines = [title] if title else [f"published: {', '.join(f'{r} {v}' for r, v in published.items()) or 'nothing yet'}"]
    for role, found in changes.items():
        lines += found
        for s in (s for s in standings if s.role == role):
            left = "" if s.done else f"; can still sign: {', '.join(s.open) or 'nobody'}"
            lines.append(
                f"  {len(s.signed)} of {s.threshold} signatures for {s.by} ({', '.join(s.signed) or 'nobody'}){left}"
            )
    if not changes:
        lines.append("nothing is staged")
    elif all(s.done for s in standings):
        lines.append("ready: edgeseal repo publish")
    about = {
        "published": published,
        "staged": changes,
        "signatures": [{**asdict(s), "done": s.done} for s in standings],
        "ready": bool(changes) and all(s.done for s in standings),
    }
    output.emit(about, "\n".join(lines))


def _published(repository: RepositoryDirectory) -> dict[str, int]:
    from tuf.api.metadata import Metadata

    state = repository.published()
    if state is None:
        return {}
    found = {"root": state.root, "targets": state.targets, **state.roles}
    return {role: Metadata.from_bytes(data).signed.version for role, data in found.items() if data is not None}

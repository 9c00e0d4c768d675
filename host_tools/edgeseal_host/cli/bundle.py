"""`edgeseal bundle`: build, inspect, verify, publish and export models."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeseal.errors import NotAuthorisedError, RefusedError, UsageError
from edgeseal.runtime.engine_settings import MAX_THREADS
from edgeseal_host import audit
from edgeseal_host.bundle import BundleDirectory
from edgeseal_host.cli import options, output
from edgeseal_host.repository import metadata, selection, signing, staging
from edgeseal_host.repository.layout import RepositoryDirectory
from edgeseal_host.sources import collect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgeseal.manifest import Manifest
    from edgeseal_host.fleet.client import FleetClient
    from edgeseal_host.keys import KeyDirectory

_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
_REPO = click.option(
    "--repo", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False), help="Repository directory."
)


def family_option(command: Any) -> Any:  # noqa: ANN401 - a click decorator
    """Add `--family NAME`."""
    return click.option(
        "--family", required=True, metavar="NAME", help="Family secret: see edgeseal key new --kind family."
    )(command)


@click.group()
def group() -> None:
    """Build, inspect, verify, publish and export models."""


@group.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, help="The model's name: a-z 0-9 . _ -")
@click.option("--release", required=True, type=click.IntRange(min=1), help="Counts up; never used twice.")
@family_option
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where the bundle goes.")
@click.option(
    "--previous", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Bundle of an earlier release."
)
@click.option(
    "--suite", type=click.IntRange(1, 2), default=1, show_default=True, help="1 ChaCha20-Poly1305, 2 AES-256-GCM."
)
@click.option("--hardware", multiple=True, metavar="NAME", help="Only for boards that call themselves so (repeat).")
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="NAME", help="Only for devices with such a runtime (repeat)."
)
@click.option("--min-agent", metavar="VERSION", help="Only for agents from this version on.")
@click.option(
    "--accept",
    "acceptance",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Acceptance vectors (.npz or .json): what a device must reproduce before the release serves.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Most threads of one inference. A device may use fewer, never more.  [default: its cores]",
)
@click.option(
    "--prepacking/--no-prepacking",
    "prepack",
    default=None,
    help="Whether the engine keeps a second copy of the weights in its own order: faster, more memory.",
)
@click.option(
    "--spinning/--no-spinning",
    "spin",
    default=None,
    help="Whether threads of an inference wait without sleeping: quicker answers, cores busy between them, too.",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="What may compute, most wanted first: cpu, xnnpack, acl, … (repeat). A device takes the first that it has.",
)
@click.option("--provenance", multiple=True, metavar="KEY=VALUE", help="Goes into the public manifest (repeat).")
@options.passphrase_option
@options.keys_option
@output.json_option
def build(  # noqa: PLR0913, PLR0917 - one option for each thing a release has
    paths: tuple[Path, ...],
    model: str,
    release: int,
    family: str,
    out: Path,
    previous: Path | None,
    suite: int,
    hardware: tuple[str, ...],
    runtimes: tuple[str, ...],
    min_agent: str | None,
    acceptance: Path | None,
    threads: int | None,
    prepack: bool | None,  # noqa: FBT001 - click passes options by name
    spin: bool | None,  # noqa: FBT001 - as above
    providers: tuple[str, ...],
    provenance: tuple[str, ...],
    passphrase_file: Path | None,
    keys: KeyDirectory,
) -> None:
    """Cut PATHS into encrypted chunks, and write table and manifest."""
    from edgeseal_host import accept
    from edgeseal_host.build import build_bundle

    tests = accept.to_table(accept.read(acceptance)) if acceptance else None
    secret = keys.family(family, options.passphrase_for(keys, family, passphrase_file))
    requirements: dict[str, object] = {}
    for name, values in (("hw", hardware), ("rt", runtimes)):
        if values:
            requirements[name] = list(values)
    if min_agent:
        requirements["min_agent"] = min_agent
    asked = {"threads": threads, "prepack": prepack, "spin": spin, "providers": list(providers) or None}
    if settings := {name: value for name, value in asked.items() if value is not None}:
        requirements["engine"] = settings
    total = sum(s.size for s in collect(paths))
    with output.progress(f"build {model} release {release}", total=total) as advance:
        manifest = build_bundle(
            paths,
            model=model,
            release=release,
            suite=suite,
            family_secret=secret,
            previous=previous,
            requirements=requirements,
            tests=tests,
            provenance={**_git(paths[0]), **_pairs(provenance)},
            out=out,
            progress=advance,
        )
    about = audit.describe(out, None)
    new = _new_bytes(out, previous) if previous else manifest.stored_size
    text = (
        f"built {manifest.model} release {manifest.release} in {out}\n"
        f"  {manifest.plain_size:,} bytes in {about['chunks']} chunks, {manifest.stored_size:,} stored"
    )
    text += f"\n  {new:,} bytes are new since {previous}" if previous else ""
    output.emit({**about, "new_bytes": new, "out": str(out)}, text)


@group.command()
@_BUNDLE
@click.option("--family", metavar="NAME", help="Show the files too, with this family secret.")
@options.passphrase_option
@options.keys_option
@output.json_option
def inspect(bundle: Path, family: str | None, passphrase_file: Path | None, keys: KeyDirectory) -> None:
    """Show what a bundle holds."""
    secret = keys.family(family, options.passphrase_for(keys, family, passphrase_file)) if family else None
    about = audit.describe(bundle, secret)
    rows = [(name, _shown(value)) for name, value in about.items()]
    output.emit(about, lambda: output.table(("field", "value"), rows))


@group.command()
@_BUNDLE
@family_option
@options.passphrase_option
@options.keys_option
@output.json_option
def verify(bundle: Path, family: str, passphrase_file: Path | None, keys: KeyDirectory) -> None:
    """Check everything a device will check: table, every chunk, every file."""
    secret = keys.family(family, options.passphrase_for(keys, family, passphrase_file))
    size = BundleDirectory(bundle).manifest().plain_size
    with output.progress("verify", total=size) as advance:
        found = audit.audit(bundle, secret, progress=advance)
    text = f"{bundle} is whole: {found.files} files, {found.chunks} chunks, {found.plain_size:,} bytes"
    output.emit({"files": found.files, "chunks": found.chunks, "plain_size": found.plain_size}, text)


@group.command()
@_BUNDLE
@_REPO
@click.option("--key", "name", required=True, metavar="NAME", help="The publisher's key.")
@family_option
@options.server_options(required=True)
@options.passphrase_option
@options.keys_option
@output.json_option
def publish(
    bundle: Path,
    repo: Path,
    name: str,
    family: str,
    url: str,
    token_file: Path,
    ca_file: Path | None,
    passphrase_file: Path | None,
    keys: KeyDirectory,
) -> None:
    """Upload a bundle, list it under the publisher's signature, and give the fleet server its content key.

    Running it again after any interruption completes it.
    """
    from edgeseal.contentkey import wrap

    directory, repository = BundleDirectory(bundle), RepositoryDirectory(repo)
    manifest = directory.manifest()
    secret = keys.family(family, options.passphrase_for(keys, family, passphrase_file))
    ck = directory.content_key(manifest, secret)
    chunks = audit.chunk_files(directory, directory.table(manifest, ck))
    client = options.client(url, token_file, ca_file)
    with repository.locked():
        signer = options.signer(keys, name, passphrase_file)
        data = manifest.to_bytes()
        path = staging.stage_release(repository, manifest, data, _custom(manifest))
        role = metadata.role_of(manifest.model)
        try:
            if role in repository.staged():
                signing.sign(repository, signer, only=role)
            ready = selection.select(repository) if repository.staged() else None
        except NotAuthorisedError:
            _forget(repository, role, path)
            raise
        if ready is not None and role in ready.waiting:  # others could go; this release could not be listed
            raise RefusedError(
                f"{role} cannot be published yet: {ready.why}",
                hint="edgeseal repo status says who must sign; then run this again: nothing was uploaded",
            )
        uploaded = _upload(client, directory, manifest, chunks)
        envelope = wrap(client.public().wrap, model=manifest.model, release=manifest.release, ck=ck)
        client.publish(repository.publication(), {path: envelope})
        if ready is not None:
            repository.mark_published(ready.verified)
    what = f"{manifest.model} release {manifest.release}"
    text = f"published {what}: {uploaded:,} of {manifest.stored_size + manifest.table_length:,} bytes were new to {url}"
    output.emit({"model": manifest.model, "release": manifest.release, "path": path, "uploaded": uploaded}, text)


@group.command()
@_BUNDLE
@_REPO
@click.option("--device", "devices", multiple=True, required=True, metavar="NAME", help="For which device (repeat).")
@options.server_options(required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory, or a file that ends in .tar")
@output.json_option
def export(
    bundle: Path, repo: Path, devices: tuple[str, ...], url: str, token_file: Path, ca_file: Path | None, out: Path
) -> None:
    """Write a published release to removable media, with tickets for devices that have no network."""
    import tempfile

    from edgeseal_host.export import export as export_
    from edgeseal_host.export import pack

    client = options.client(url, token_file, ca_file)
    manifest = BundleDirectory(bundle).manifest()
    tickets = {_kid(client, d): client.ticket(d, manifest.model, manifest.release) for d in devices}
    arguments = {"url": url, "ca_file": str(ca_file) if ca_file else None, "tickets": tickets}
    with output.progress("export", total=manifest.stored_size + manifest.table_length) as advance:
        if out.suffix == ".tar":
            with tempfile.TemporaryDirectory(dir=out.parent) as place:
                written = export_(bundle, RepositoryDirectory(repo), Path(place), **arguments, progress=advance)  # type: ignore[arg-type]
                pack(Path(place), out)
        else:
            written = export_(bundle, RepositoryDirectory(repo), out, **arguments, progress=advance)  # type: ignore[arg-type]
    text = (
        f"wrote {written:,} bytes to {out} for {', '.join(devices)}\nnext, on the device: edgeseal-agent install {out}"
    )
    output.emit({"out": str(out), "bytes": written, "devices": list(devices)}, text)


def _upload(client: FleetClient, directory: BundleDirectory, manifest: Manifest, chunks: Mapping[bytes, Path]) -> int:
    """Upload what the server lacks: chunks first, the table that names them last. Returns bytes."""
    tables = {manifest.table_sha256: directory.object_path("tables", manifest.table_sha256)}
    wanted_chunks = {n: chunks[n] for n in client.missing("chunks", list(chunks))}
    wanted_tables = {n: tables[n] for n in client.missing("tables", list(tables))}
    total = sum(p.stat().st_size for p in (*wanted_chunks.values(), *wanted_tables.values()))
    with output.progress(f"upload {manifest.model} release {manifest.release}", total=total) as advance:
        client.upload_all("chunks", wanted_chunks, advance)
        client.upload_all("tables", wanted_tables, advance)
    return total


def _forget(repository: RepositoryDirectory, role: str, path: str) -> None:
    """Unstage a release whose signer may not sign it: nobody else's work is in that role's staged version."""
    (repository.staged_path / f"{role}.json").unlink(missing_ok=True)
    repository.unstage_file(path)


def _custom(manifest: Manifest) -> dict[str, Any]:
    """Return what devices read in the signed list before they fetch anything."""
    wanted = manifest.requirements
    return {key: wanted[key] for key in ("hw", "rt", "min_agent") if key in wanted}


def _kid(client: FleetClient, device: str) -> str:
    """Key id of the generation that a ticket is sealed to: the one in use, not one that is pending."""
    keys = [k["kid"] for k in client.device(device).get("generations", []) if not k["pending"]]
    if not keys:
        raise UsageError(f"the fleet server knows no key of {device}", hint="enrol it first")
    return str(keys[0])


def _new_bytes(out: Path, previous: Path) -> int:
    """Return the stored bytes of chunks that the previous bundle does not have."""
    had = {p.name for p in BundleDirectory(previous).objects("chunks")}
    return sum(p.stat().st_size for p in BundleDirectory(out).objects("chunks") if p.name not in had)


def _git(path: Path) -> dict[str, object]:
    """Commit of the source tree that the model lies in, if it lies in one."""
    folder = path if path.is_dir() else path.parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"source_commit": done.stdout.strip()} if done.returncode == 0 else {}


def _pairs(texts: tuple[str, ...]) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"--provenance {text}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(_shown(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_inline(v)}" for k, v in value.items()) or "none"
    return f"{value:,}" if type(value) is int else str(value)


def _inline(value: object) -> str:
    """Show a value within a value: engine (threads 2, providers xnnpack/cpu)."""
    if isinstance(value, list):
        return "/".join(map(_inline, value))
    return f"({_shown(value)})" if isinstance(value, dict) else str(value)

"""`edgeseal bundle` as a person types it, against a real fleet server: what is done, said, refused and resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import publisher_world
from tests.unit.publisher_world import FAMILY, MODEL, SIZE, Publisher, edgeseal, ok, refused
from tuf.api.metadata import Metadata, Targets

from edgeseal.contentkey import open_ticket
from edgeseal.enrolment import Grant
from edgeseal.errors import TemporaryError
from edgeseal.manifest import CHUNK_MAX
from edgeseal_host.bundle import BundleDirectory, bundle_content_key
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.repository.layout import RepositoryDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit


world = publisher_world.world


@pytest.fixture
def local(tmp_path: Path) -> Publisher:
    """Keys only, no server."""
    made = Publisher(tmp_path)
    for name in (FAMILY, "other-family"):
        ok("key", "new", name, "--kind", "family", "--no-passphrase", *made.keys)
    ok("key", "new", "publisher", "--no-passphrase", *made.keys)
    return made


# Build, inspect, verify ---------------------------------------------------------------------------------------------


def test_build_says_what_was_made_and_what_is_new(local: Publisher) -> None:
    first = local.build(1)
    second = ok(
        "bundle", "build", local.place / "model-1.bin", "--model", MODEL, "--release", 2, "--family", FAMILY,
        "--out", local.place / "b2", "--previous", first, *local.keys,
    )  # fmt: skip
    assert second["new_bytes"] == 0
    assert second["plain_size"] == SIZE
    assert len(second["hints"]) == 1


def test_build_notes_requirements_and_provenance(local: Publisher) -> None:
    subprocess.run(["git", "init", "-q", local.place], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", local.place, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run(["git", "-C", local.place, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    out = local.build(
        1, "--hardware", "pi-4", "--hardware", "pi-5", "--runtime", "onnxruntime", "--min-agent", "0.1",
        "--provenance", "dataset=cwru=v2",
    )  # fmt: skip
    about = ok("bundle", "inspect", out, *local.keys)
    assert about["requirements"] == {
        "format": "unknown", "hw": ["pi-4", "pi-5"], "rt": ["onnxruntime"], "min_agent": "0.1",
    }  # fmt: skip
    assert about["provenance"] == {"source_commit": commit.stdout.strip(), "dataset": "cwru=v2"}


def test_inspect_shows_files_with_the_family_and_never_a_secret(local: Publisher) -> None:
    out = local.build(1)
    secret = KeyDirectory(local.place / "keys").family(FAMILY, None)
    ck = bundle_content_key(out, secret)
    for arguments in ((), ("--family", FAMILY)):
        for form in ((), ("--json",)):
            result = edgeseal("bundle", "inspect", out, *arguments, *form, *local.keys)
            assert result.exit_code == 0, result.output
            assert MODEL in result.output
            assert ("model.bin" in result.output) == bool(arguments)
            assert not any(s.hex() in result.output for s in (secret, ck))
    assert refused(3, "bundle", "inspect", out, "--family", "other-family", *local.keys)


def test_verify_of_a_whole_and_of_a_changed_bundle(local: Publisher) -> None:
    out = local.build(1)
    arguments = ("bundle", "verify", out, "--family", FAMILY, *local.keys)
    assert "is whole" in edgeseal(*arguments).output
    assert ok(*arguments)["plain_size"] == SIZE
    path = next(BundleDirectory(out).objects("chunks"))
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(bytes(data))
    assert path.name in refused(3, *arguments)
    error = json.loads(edgeseal(*arguments, "--json").stdout)
    assert (error["error"], error["exit_code"]) == ("IntegrityError", 3)


def test_exit_codes_of_wrong_use(local: Publisher) -> None:
    out, source = local.build(1), local.place / "model-1.bin"
    build: tuple[object, ...] = ("bundle", "build", source, "--family", FAMILY, *local.keys)
    new = ("--out", local.place / "x")
    refused(2, *build, "--model", MODEL, "--release", 0, *new)
    refused(2, *build, "--model", MODEL, "--release", 1, "--suite", 3, *new)
    refused(2, *build, "--model", MODEL, "--release", 1, "--out", out)
    refused(2, *build, "--model", MODEL, "--release", 1, "--provenance", "novalue", *new)
    refused(3, *build, "--model", "Bearing", "--release", 1, *new)
    refused(3, *build, "--model", MODEL, "--release", 1, "--previous", out, *new)
    refused(2, *build, "--model", MODEL, "--release", 2, "--previous", local.place, *new)
    refused(2, "bundle", "build", source, "--model", MODEL, "--release", 1, "--family", "nobody", *new, *local.keys)
    refused(2, "bundle", "build", source, "--model", MODEL, "--release", 1, "--family", "publisher", *new, *local.keys)
    refused(2, "bundle", "build", local.place / "nowhere", "--model", MODEL, *new, "--family", FAMILY, *local.keys)
    refused(2, "bundle", "verify", local.place, "--family", FAMILY, *local.keys)
    refused(2, "bundle", "inspect", local.place)
    assert not (local.place / "x").exists()


def test_family_under_a_passphrase(local: Publisher) -> None:
    word = local.place / "word"
    word.write_text("correct horse\n")
    ok("key", "new", "sealed", "--kind", "family", "--passphrase-file", word, *local.keys)
    (local.place / "m.bin").write_bytes(b"x" * 1000)
    arguments = (
        "bundle", "build", local.place / "m.bin", "--model", MODEL, "--release", 1, "--family", "sealed",
        "--out", local.place / "b", *local.keys,
    )  # fmt: skip
    assert "passphrase" in refused(4, *arguments)
    wrong = local.place / "wrong"
    wrong.write_text("wrong horse\n")
    said = refused(4, *arguments, "--passphrase-file", wrong)
    assert "wrong horse" not in said
    ok(*arguments, "--passphrase-file", word)


# Publish ------------------------------------------------------------------------------------------------------------


def published(world: Publisher) -> dict[str, Any]:
    """What the server's signed list says of the model: version and releases."""
    versions = world.client().publish(RepositoryDirectory(world.repo).publication(), {})["versions"]
    name = f"{versions[f'model-{MODEL}']}.model-{MODEL}.json"
    signed: Targets = Metadata[Targets].from_bytes((world.repo / "published/metadata" / name).read_bytes()).signed
    return {"version": versions[f"model-{MODEL}"], "releases": sorted(signed.targets)}


def test_publish_uploads_only_what_is_new(world: Publisher) -> None:
    # Where a file is cut depends on the family secret, and a piece may be as long as CHUNK_MAX. Nine tenths are the
    # same in both releases: longer than that, so one piece at least is shared whatever the secret.
    size = CHUNK_MAX * 6 // 5
    first, second = world.build(1, size=size), world.build(2, "--previous", world.place / "b1", size=size)
    one, two = world.publish(first), world.publish(second)
    assert one["uploaded"] > size
    assert two["uploaded"] < one["uploaded"] - 60_000  # no piece but the last is shorter than 64 KiB
    assert two["path"] == f"models/{MODEL}/2.cbor"
    assert published(world)["releases"] == [f"models/{MODEL}/1.cbor", f"models/{MODEL}/2.cbor"]
    assert not RepositoryDirectory(world.repo).staged()


def test_publish_again_changes_nothing(world: Publisher) -> None:
    bundle = world.build(1)
    world.publish(bundle)
    before = published(world)
    assert world.publish(bundle)["uploaded"] == 0
    assert published(world) == before


def _fail(*_: object, **__: object) -> None:
    raise TemporaryError("interrupted")


def _after(original: Callable[..., Any]) -> Callable[..., Any]:
    """Do it, then lose the answer."""

    def lost(*arguments: object, **more: object) -> None:
        original(*arguments, **more)
        raise TemporaryError("interrupted")

    return lost


def _second(original: Callable[..., Any]) -> Callable[..., Any]:
    """Fail from the second call on."""
    calls = 0

    def failing(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise TemporaryError("interrupted")
        return original(*arguments, **more)

    return failing


def _before(_original: Callable[..., Any]) -> Callable[..., Any]:
    return _fail


@pytest.mark.parametrize(
    ("where", "name", "how"),
    [
        (FleetClient, "missing", _before),
        (FleetClient, "upload", _second),
        (FleetClient, "public", _before),
        (FleetClient, "publish", _before),
        (FleetClient, "publish", _after),
        (RepositoryDirectory, "mark_published", _before),
    ],
    ids=["before-upload", "during-upload", "after-upload", "before-publish", "answer-lost", "not-noted"],
)
def test_publish_interrupted_anywhere_is_completed_by_the_same_command(
    world: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    name: str,
    how: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    bundle = world.build(1)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, how(getattr(where, name)))
        assert "interrupted" in refused(5, *world.publish_arguments(bundle))
    world.publish(bundle)
    assert not RepositoryDirectory(world.repo).staged()
    assert published(world) == {"version": 2, "releases": [f"models/{MODEL}/1.cbor"]}
    assert world.client().publish(RepositoryDirectory(world.repo).publication(), {})["without_key"] == []


def test_publish_of_a_bundle_without_one_of_its_chunks(world: Publisher) -> None:
    bundle = world.build(1)
    path = next(BundleDirectory(bundle).objects("chunks"))
    path.unlink()
    assert path.name in refused(3, *world.publish_arguments(bundle))
    assert published(world)["releases"] == []
    assert not RepositoryDirectory(world.repo).staged()


def test_publish_of_a_bundle_with_a_changed_chunk(world: Publisher) -> None:
    bundle = world.build(1)
    path = next(BundleDirectory(bundle).objects("chunks"))
    path.write_bytes(bytes(path.stat().st_size))
    refused(3, *world.publish_arguments(bundle))
    shutil.rmtree(bundle)
    world.build(1)  # built again: another content key, so another manifest for what is staged already
    assert "listed already with other content" in refused(2, *world.publish_arguments(bundle))
    ok("repo", "stage", world.repo, "--discard", *world.keys)
    world.publish(bundle)


def test_publish_with_a_key_that_may_not_leaves_nothing_staged(world: Publisher) -> None:
    bundle = world.build(1)
    assert "stranger" in refused(4, *world.publish_arguments(bundle, key="stranger"))
    assert not RepositoryDirectory(world.repo).staged()
    assert not RepositoryDirectory(world.repo).staged_files()
    world.publish(bundle)


def test_publish_of_other_content_under_the_same_number(world: Publisher) -> None:
    world.publish(world.build(1))
    shutil.rmtree(world.place / "b1")
    assert "listed already" in refused(2, *world.publish_arguments(world.build(1)))


def test_publish_of_an_unknown_model_or_with_a_wrong_token(world: Publisher) -> None:
    bundle = world.build(1)
    other = world.place / "other"
    source = world.place / "model-1.bin"
    ok("bundle", "build", source, "--model", "other", "--release", 1, "--family", FAMILY, "--out", other, *world.keys)
    assert "does not know the model" in refused(2, *world.publish_arguments(other))
    (world.place / "fleet" / "admin.token").write_text("not-a-token-1234\n")
    assert "not-a-token-1234" not in refused(4, *world.publish_arguments(bundle))


def test_publish_without_a_server(world: Publisher) -> None:
    bundle = world.build(1)
    world.base = "http://127.0.0.1:1"
    assert "no answer" in refused(5, *world.publish_arguments(bundle))


# Export -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def enrolled(world: Publisher) -> Any:
    key = world.request(world.place / "dev.request")
    ok(*world.enrol_arguments(world.place / "dev.request", "press-7", *world.to, "--out", world.place / "g"))
    return world, key, Grant.open(key, (world.place / "g").read_bytes())


@pytest.mark.parametrize("form", ["usb", "usb.tar"])
def test_export_holds_all_that_a_device_needs(enrolled: Any, form: str) -> None:
    world, key, grant = enrolled
    bundle = world.build(1)
    world.publish(bundle)
    out = world.place / form
    export = ("bundle", "export", bundle, "--repo", world.repo, "--device", "press-7", "--out", out, *world.to)
    assert ok(*export)["devices"] == ["press-7"]
    if out.suffix == ".tar":
        with tarfile.open(out, format=tarfile.USTAR_FORMAT) as tar:
            if hasattr(tarfile, "data_filter"):  # Debian 12's Python 3.11.2 has no filters yet
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(world.place / "unpacked")  # noqa: S202 - what we have just made
        out = world.place / "unpacked"
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    ticket = f"tickets/{key.public.kid.hex()}/{MODEL}/1"
    assert ticket in names
    assert {n.split("/")[0] for n in names} == {"metadata", "targets", "tables", "chunks", "tickets"}
    assert {"metadata/timestamp.json", "metadata/1.root.json"} <= names
    ck, _ = open_ticket(key, grant.psk, (out / ticket).read_bytes(), model=MODEL, release=1)
    assert ck == bundle_content_key(bundle, KeyDirectory(world.place / "keys").family(FAMILY, None))
    for kind in ("tables", "chunks"):
        for path in BundleDirectory(bundle).objects(kind):
            assert (out / kind / path.name[:2] / path.name).read_bytes() == path.read_bytes()


def test_exported_media_install_on_a_device_without_a_network(world: Publisher) -> None:
    """The agent itself, as a command: request, grant, media."""
    bundle = world.build(1)
    world.publish(bundle)
    models = world.place / "models"
    config = world.place / "agent.toml"
    config.write_text(
        f'[device]\nhardware = "pi-4"\n[paths]\nstate = "{world.place / "state"}"\nmodels = "{models}"\n'
        '[runtime]\nadapter = "none"\nprobe = false\nallow_disk = true\n[fleet]\nurl = "http://127.0.0.1:1"\n'
    )

    def agent(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeseal.device.cli", "--config", str(config), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    request = agent("enrol", "request", "--out", world.place / "r")
    assert request.returncode == 0, request.stderr
    ok(*world.enrol_arguments(world.place / "r", "press-7", *world.to, "--out", world.place / "g"))
    accepted = agent("enrol", "accept", world.place / "g")
    assert accepted.returncode == 0, accepted.stderr
    usb = world.place / "usb"
    ok("bundle", "export", bundle, "--repo", world.repo, "--device", "press-7", "--out", usb, *world.to)
    installed = agent("install", usb)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    found = models / MODEL / "current" / "model.bin"
    assert (
        hashlib.sha256(found.read_bytes()).digest()
        == hashlib.sha256((world.place / "model-1.bin").read_bytes()).digest()
    )
    for path in models.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)  # for pytest's clean-up


def test_export_refusals(enrolled: Any) -> None:
    world, *_ = enrolled
    bundle = world.build(1)
    export = ("bundle", "export", bundle, "--repo", world.repo, *world.to)
    out = ("--out", world.place / "usb")
    refused(4, *export, "--device", "nobody", *out)
    said = edgeseal(*export, "--device", "press-7", *out)  # not published yet
    assert said.exit_code in {2, 3, 4}, said.output
    world.publish(bundle)
    occupied = world.place / "occupied"
    occupied.mkdir()
    (occupied / "holiday.jpg").write_bytes(b"x")
    assert "holds something else" in refused(2, *export, "--device", "press-7", "--out", occupied)
    assert "holds something else" in refused(2, *export, "--device", "press-7", "--out", occupied / "holiday.jpg")
    shutil.copytree(world.repo, world.place / "old")
    world.publish(world.build(2))
    stale = ("bundle", "export", bundle, "--repo", world.place / "old", *world.to)
    assert "somebody else has published" in refused(3, *stale, "--device", "press-7", *out)
    assert not (world.place / "usb" / "metadata" / "timestamp.json").exists()

"""Staging all or nothing, and a release whose role waits for other people's signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit import publisher_world
from tests.unit.publisher_world import FAMILY, MODEL, Publisher, ok, refused
from tuf.api.metadata import Metadata, Root

from edgeseal.errors import RollbackError
from edgeseal.trust import ArchiveFetcher, HttpFetcher, Trust
from edgeseal_host.bundle import BundleDirectory
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.repository import staging
from edgeseal_host.repository.layout import RepositoryDirectory
from edgeseal_host.testing.repository import serving

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.trust.trust import Source


world, offline = publisher_world.world, publisher_world.offline


def files(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


# Staging -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        ("--retire", "bearing"),
        ("--retire", "bearing/9"),
        ("--renew", "nobody"),
        ("--model", "pump"),
        ("--model", "pump", "--publisher-key", "missing"),
        ("--renew", "root", "--retire", "bearing/9"),
    ],
)
def test_wrong_option_beside_discard_discards_nothing(offline: Publisher, wrong: tuple[str, ...]) -> None:
    before = files(offline.repo)
    refused(2, "repo", "stage", offline.repo, "--discard", *wrong, *offline.keys)
    assert files(offline.repo) == before


def test_first_half_of_a_failed_change_is_not_staged(offline: Publisher) -> None:
    before = files(offline.repo)
    refused(
        2,
        "repo",
        "stage",
        offline.repo,
        "--model",
        "pump",
        "--publisher-key",
        "publisher",
        "--renew",
        "x",
        *offline.keys,
    )
    assert files(offline.repo) == before


def test_discard_discards(offline: Publisher) -> None:
    """Negative control; alone it also leaves nothing of what was kept aside."""
    ok("repo", "stage", offline.repo, "--discard", *offline.keys)
    assert [n for n in files(offline.repo) if n != ".lock"] == []


def test_discard_and_a_change_at_once(world: Publisher) -> None:
    ok("repo", "stage", world.repo, "--renew", "root", *world.keys)
    found = ok("repo", "stage", world.repo, "--discard", "--renew", "targets", *world.keys)
    assert set(found["staged"]) == {"targets"}


def test_release_retired_before_it_was_published_leaves_no_file(world: Publisher) -> None:
    repository = RepositoryDirectory(world.repo)
    release(world, 1)
    assert list(repository.staged_files()) == [f"models/{MODEL}/1.cbor"]
    ok("repo", "stage", world.repo, "--retire", f"{MODEL}/1", *world.keys)
    assert repository.staged_files() == {}
    ok("repo", "sign", world.repo, "--key", "publisher", *world.keys)
    assert ok("repo", "publish", world.repo, *world.to)["published"] == [f"model-{MODEL}"]


# A role that waits ---------------------------------------------------------------------------------------------------


def pump(world: Publisher) -> tuple[object, ...]:
    """Delegate a second model, which the targets key has not signed yet; return how its first release is published."""
    source, out = world.place / "pump.bin", world.place / "pump"
    source.write_bytes(b"pump" * 50_000)
    ok("repo", "stage", world.repo, "--model", "pump", "--publisher-key", "publisher", *world.keys)
    words = ("--model", "pump", "--release", 1, "--family", FAMILY, "--out", out, *world.keys)
    ok("bundle", "build", source, *words)
    return world.publish_arguments(out)


def stored(world: Publisher) -> dict[str, bytes]:
    found = files(world.place / "fleet" / "objects")
    return {name: data for name, data in found.items() if not name.startswith("metadata")}


def test_nothing_is_uploaded_for_a_role_that_waits_while_another_could_go(world: Publisher) -> None:
    publish = pump(world)
    ok("repo", "stage", world.repo, "--renew", f"model-{MODEL}", *world.keys)
    ok("repo", "sign", world.repo, "--key", "publisher", "--role", f"model-{MODEL}", *world.keys)
    before = stored(world)
    said = refused(3, *publish)
    assert "model-pump cannot be published yet" in said
    assert "nothing was uploaded" in said
    assert stored(world) == before
    ok("repo", "sign", world.repo, "--key", "targets", *world.keys)
    assert ok(*publish)["model"] == "pump"  # the same command completes it
    assert len(stored(world)) > len(before)


def test_nothing_is_uploaded_when_nothing_could_go(world: Publisher) -> None:
    publish = pump(world)
    before = stored(world)
    refused(3, *publish)
    assert stored(world) == before


# Whose token was revoked ---------------------------------------------------------------------------------------------


def new_token(world: Publisher, name: str, scope: str) -> tuple[str, Path]:
    out = world.place / name
    made = ok("fleet", "token", "new", "--data", world.place / "fleet", "--scope", scope, "--out", out)
    return made["id"], out


def with_token(words: tuple[object, ...], token: Path) -> list[object]:
    """Return the same command with another token."""
    out = list(words)
    out[out.index("--token") + 1] = token
    return out


def test_revoked_publisher_token_sends_nothing_and_loses_nothing(world: Publisher) -> None:
    id_, token = new_token(world, "publish.token", "publish")
    publish = world.publish_arguments(world.build(1))
    ok("fleet", "token", "revoke", id_, "--data", world.place / "fleet")
    before, secret = stored(world), token.read_text().strip()
    said = refused(4, *with_token(publish, token))
    assert "unknown, wrong or revoked" in said
    assert secret not in said
    assert secret.split("_", 2)[2] not in said
    assert stored(world) == before
    listed = ok("fleet", "token", "list", "--data", world.place / "fleet")["tokens"]
    assert [t["revoked"] for t in listed if t["id"] == id_] == [True]
    _, fresh = new_token(world, "fresh.token", "publish")
    assert ok(*with_token(publish, fresh))["release"] == 1


def test_token_of_another_scope_publishes_nothing(world: Publisher) -> None:
    _, token = new_token(world, "operate.token", "operate")
    before = stored(world)
    assert "needs publish" in refused(4, *with_token(world.publish_arguments(world.build(1)), token))
    assert stored(world) == before


@pytest.mark.parametrize("command", ["repo publish", "device list", "device show press-7", "fleet assignments"])
def test_revoked_token_at_every_other_door(world: Publisher, command: str) -> None:
    id_, token = new_token(world, "admin.token", "admin")
    ok("fleet", "token", "revoke", id_, "--data", world.place / "fleet")
    ok("repo", "stage", world.repo, "--renew", f"model-{MODEL}", *world.keys)
    ok("repo", "sign", world.repo, "--key", "publisher", *world.keys)
    words = [*command.split(), *([world.repo] if command.startswith("repo") else [])]
    assert "revoked" in refused(4, *words, "--to", world.base, "--token", token)
    assert f"model-{MODEL}" in RepositoryDirectory(world.repo).staged()


# To a directory ------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(offline: Publisher) -> Publisher:
    """Its root names a key of our own for snapshot and timestamp; release 1 is staged and signed."""
    ok("key", "new", "online", "--kind", "ml-dsa-44", "--no-passphrase", *offline.keys)
    staged = offline.repo / "staged/root.json"
    root, key = Metadata[Root].from_bytes(staged.read_bytes()), KeyDirectory(offline.place / "keys").public("online")
    for role in ("snapshot", "timestamp"):
        root.signed.revoke_key(root.signed.roles[role].keyids[0], role)
        root.signed.add_key(key, role)
    root.signatures.clear()
    staged.write_bytes(root.to_bytes())
    release(offline, 1)
    for name in ("alice", "bob", "publisher"):
        ok("repo", "sign", offline.repo, "--key", name, *offline.keys)
    return offline


def release(world: Publisher, number: int) -> None:
    repository = RepositoryDirectory(world.repo)
    manifest = BundleDirectory(world.build(number)).manifest()
    with repository.locked():
        staging.stage_release(repository, manifest, manifest.to_bytes())


def to(world: Publisher, name: str) -> Path:
    """Publish to a directory."""
    out = world.place / name
    ok("repo", "publish", world.repo, "--directory", out, "--online-key", "online", *world.keys)
    return out


def device(world: Publisher, source: Source) -> Trust:
    return Trust(world.place / "device", bootstrap=world.root.read_bytes(), fetcher=source)


def test_device_accepts_a_repository_in_a_directory(plain: Publisher) -> None:
    out = to(plain, "www")
    trust = device(plain, ArchiveFetcher(out))
    assert trust.refresh().refused == {}
    assert [t.release for t in trust.targets_for(MODEL)] == [1]
    manifest = (plain.place / "b1/manifest.cbor").read_bytes()
    assert trust.fetch_target(f"models/{MODEL}/1.cbor") == manifest
    files_ = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with serving(files_) as server:  # any static web server will do
        other = Trust(plain.place / "other", bootstrap=plain.root.read_bytes(), fetcher=HttpFetcher(server.base))
        other.refresh()
        assert other.fetch_target(f"models/{MODEL}/1.cbor") == manifest


def test_device_follows_from_directory_to_directory_and_not_back(plain: Publisher) -> None:
    first = to(plain, "first")
    device(plain, ArchiveFetcher(first)).refresh()
    release(plain, 2)
    ok("repo", "stage", plain.repo, "--renew", "root", "--retire", f"{MODEL}/1", *plain.keys)
    for name in ("alice", "carol", "publisher"):
        ok("repo", "sign", plain.repo, "--key", name, *plain.keys)
    second = to(plain, "second")
    trust = device(plain, ArchiveFetcher(second))
    trust.refresh()
    assert trust.versions()["root"] == 2
    assert [t.release for t in trust.targets_for(MODEL)] == [2]
    with pytest.raises(RollbackError):
        device(plain, ArchiveFetcher(first)).refresh()
    assert [t.release for t in trust.targets_for(MODEL)] == [2]


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--online-key", "stranger"), 4), (("--online-key", "no"), 2)])
def test_directory_is_not_written_without_the_right_key(plain: Publisher, words: tuple[str, ...], code: int) -> None:
    refused(code, "repo", "publish", plain.repo, "--directory", plain.place / "www", *words, *plain.keys)
    assert not (plain.place / "www").exists()
    assert "root" in RepositoryDirectory(plain.repo).staged()

"""The repository directory goes from hand to hand: what somebody did to it before it reached the next signer.

Commands are the real ones, run in this process; the question on a terminal is asked of a real pseudo-terminal.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.publisher_world import MODEL, Publisher, edgeseal, ok, refused
from tuf.api.metadata import Metadata, Root, Targets

from edgeseal.errors import FormatError, IntegrityError, RefusedError
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.repository import signing
from edgeseal_host.repository.layout import RepositoryDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROLE = f"model-{MODEL}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed, unpublished repository, and a key that may sign snapshot and timestamp."""
    place = tmp_path_factory.mktemp("made")
    world = Publisher(place)
    world.make()
    keys = world.keys
    ok("key", "new", "online", "--no-passphrase", *keys)
    ok("key", "new", "dave", "--no-passphrase", *keys)
    root = place / "repo/staged/root.json"
    parsed = Metadata[Root].from_bytes(root.read_bytes())
    key = KeyDirectory(place / "keys").public("online")
    for role in ("snapshot", "timestamp"):
        parsed.signed.revoke_key(parsed.signed.roles[role].keyids[0], role)
        parsed.signed.add_key(key, role)
    parsed.signatures.clear()
    root.write_bytes(parsed.to_bytes())
    for name in ("alice", "bob"):
        ok("repo", "sign", world.repo, "--key", name, *keys)
    return place


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Publisher:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "w")
    return Publisher(tmp_path / "w")


def publish(world: Publisher, out: Path) -> dict[str, Any]:
    return ok("repo", "publish", world.repo, "--directory", out, "--online-key", "online", *world.keys)


@pytest.fixture
def published(world: Publisher) -> Publisher:
    """The same, published to a directory `out`."""
    publish(world, world.place / "out")
    return world


def change(world: Publisher, role: str, edit: Callable[[Any], None]) -> None:
    """Do to a staged role what somebody with an editor does."""
    path = world.repo / "staged" / f"{role}.json"
    parsed = Metadata[Any].from_bytes(path.read_bytes())
    edit(parsed.signed)
    parsed.signatures.clear()
    path.write_bytes(parsed.to_bytes())


def signatures(world: Publisher, role: str) -> int:
    return len(Metadata[Any].from_bytes((world.repo / "staged" / f"{role}.json").read_bytes()).signatures)


def _widen(targets: Targets) -> None:
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    role = targets.delegations.roles[ROLE]
    role.paths, role.terminating = ["*"], False


# 1 -------------------------------------------------------------------------------------------------------------------


def test_a_widened_delegation_is_shown_and_not_signed(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    change(published, "targets", _widen)
    said = refused(3, "repo", "sign", published.repo, "--key", "targets", *published.keys)
    assert "may list *; NOT terminating" in said
    assert signatures(published, "targets") == 0


def test_a_release_is_not_signed_under_a_widened_delegation(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    ok("repo", "stage", published.repo, "--renew", ROLE, *published.keys)
    change(published, "targets", _widen)
    refused(3, "repo", "sign", published.repo, "--key", "publisher", *published.keys)
    assert signatures(published, ROLE) == 0


def test_a_foreign_key_under_a_known_name_is_shown_by_its_id(published: Publisher) -> None:
    stranger = KeyDirectory(published.place / "keys").public("stranger")
    stranger.unrecognized_fields["x-edgeseal-name"] = "publisher"

    def swap(targets: Targets) -> None:
        assert targets.delegations is not None
        assert targets.delegations.roles is not None
        targets.delegations.roles[ROLE].keyids = [stranger.keyid]
        targets.delegations.keys = {stranger.keyid: stranger}

    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    change(published, "targets", swap)
    lines = "\n".join(signing.changes(RepositoryDirectory(published.repo), "targets"))
    assert f"publisher ({stranger.keyid[:12]}…)" in lines


def test_a_root_with_other_options_is_not_signed(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "root", *published.keys)
    change(published, "root", lambda root: setattr(root, "consistent_snapshot", False))
    refused(3, "repo", "sign", published.repo, "--key", "alice", *published.keys)
    assert signatures(published, "root") == 0


def test_what_was_not_shown_is_not_signed(published: Publisher) -> None:
    directory = RepositoryDirectory(published.repo)
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    seen = directory.staged()
    change(published, "targets", lambda targets: setattr(targets, "version", 7))
    signer = KeyDirectory(published.place / "keys").signer("targets", None)
    with pytest.raises(RefusedError, match="changed since it was shown"):
        signing.sign(directory, signer, seen=seen)
    assert signing.sign(directory, signer, seen=directory.staged()) == ["targets"]  # control


# 2 -------------------------------------------------------------------------------------------------------------------


def test_rotation_to_a_key_that_root_has_is_refused(published: Publisher) -> None:
    rotate = ("repo", "rotate", published.repo, "--role", "root", "--old", "carol", *published.keys, "--new")
    assert "already" in refused(2, *rotate, "bob")
    assert "root" not in RepositoryDirectory(published.repo).staged()
    ok(*rotate, "dave")  # control


def test_n_of_n_written_by_hand_is_not_signed(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "root", *published.keys)
    change(published, "root", lambda root: setattr(root.roles["root"], "threshold", 3))
    assert "3 of 3" in refused(3, "repo", "sign", published.repo, "--key", "alice", *published.keys)


# 3 -------------------------------------------------------------------------------------------------------------------


def test_json_holds_what_was_signed(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    found = ok("repo", "sign", published.repo, "--key", "targets", *published.keys)
    assert found["changes"]["targets"][0].startswith("targets version 1 -> 2")


@pytest.mark.parametrize(("answer", "more", "signed"), [("n", (), 0), ("y", (), 1), ("", ("--yes",), 1)])
def test_a_person_at_a_terminal_is_asked(published: Publisher, answer: str, more: tuple[str, ...], signed: int) -> None:
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    ours, theirs = pty.openpty()
    code = "from edgeseal_host.cli import main; main()"
    arguments = ("repo", "sign", str(published.repo), "--key", "targets", *published.keys, *more)
    try:
        os.write(ours, f"{answer}\n".encode())
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode == 0) is bool(signed), done.stderr
    assert ("Sign targets as targets?" in done.stderr) is (not more)
    assert signatures(published, "targets") == signed


# 4 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["target", "snapshot", "timestamp", "model-nosuch", "../root"])
def test_a_role_that_nobody_signs_is_not_renewed(published: Publisher, role: str) -> None:
    said = refused(2, "repo", "stage", published.repo, "--renew", role, *published.keys)
    assert "fleet server" in said or f"roles here: root, targets, {ROLE}" in said
    assert not RepositoryDirectory(published.repo).staged()


def test_a_junk_file_among_the_staged_is_named(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    shutil.copy(published.repo / "staged/targets.json", published.repo / "staged/target.json")
    assert "target.json" in refused(3, "repo", "status", published.repo)
    to = ("--directory", published.place / "out", "--online-key", "online", *published.keys)
    assert "target.json" in refused(3, "repo", "publish", published.repo, *to)
    ok("repo", "stage", published.repo, "--discard", *published.keys)  # a way out


# 5 -------------------------------------------------------------------------------------------------------------------


def test_a_signed_model_goes_out_while_root_waits(published: Publisher) -> None:
    directory = RepositoryDirectory(published.repo)
    ok("repo", "stage", published.repo, "--renew", "root", *published.keys)
    ok("repo", "stage", published.repo, "--renew", ROLE, *published.keys)
    ok("repo", "sign", published.repo, "--key", "alice", *published.keys)
    ok("repo", "sign", published.repo, "--key", "publisher", *published.keys)
    publication = directory.publication()
    assert list(publication.roles) == [ROLE]
    assert publication.roots == (directory.current("root"),)
    found = publish(published, published.place / "out")
    assert (found["published"], found["waiting"]) == ([ROLE], ["root"])
    assert list(directory.staged()) == ["root"]
    assert signatures(published, "root") == 1  # what alice signed is kept
    ok("repo", "sign", published.repo, "--key", "bob", *published.keys)
    assert publish(published, published.place / "out")["published"] == ["root"]
    assert not directory.staged()


def test_targets_does_not_go_out_without_the_root_it_rests_on(published: Publisher) -> None:
    rotate = ("repo", "rotate", published.repo, "--role", "targets", "--old", "targets", "--new", "dave")
    ok(*rotate, *published.keys)
    ok("repo", "sign", published.repo, "--key", "dave", *published.keys)
    with pytest.raises(IntegrityError):
        RepositoryDirectory(published.repo).publication()
    for name in ("alice", "bob"):
        ok("repo", "sign", published.repo, "--key", name, *published.keys)
    assert publish(published, published.place / "out")["published"] == ["root", "targets"]


def test_root_does_not_go_out_when_it_takes_the_keys_of_what_is_published(published: Publisher) -> None:
    rotate = ("repo", "rotate", published.repo, "--role", "targets", "--old", "targets", "--new", "dave")
    ok(*rotate, *published.keys)
    for name in ("alice", "bob"):
        ok("repo", "sign", published.repo, "--key", name, *published.keys)
    with pytest.raises(IntegrityError):
        RepositoryDirectory(published.repo).publication()


# 6 -------------------------------------------------------------------------------------------------------------------


def test_a_weak_root_key_does_not_start_a_repository(world: Publisher) -> None:
    ok("key", "new", "weak", "--kind", "ml-dsa-44", "--no-passphrase", *world.keys)
    init = ("repo", "init", world.place / "other", "--fleet", world.public, *world.keys)
    roots = [x for name in ("alice", "bob", "weak") for x in ("--root-key", name)]
    assert "ml-dsa-44" in refused(3, *init, *roots, "--targets-key", "targets")
    assert not (world.place / "other").exists()
    roots[-1] = "carol"
    refused(3, *init, *roots, "--targets-key", "weak")
    ok(*init, *roots, "--targets-key", "targets")  # control


# 7 -------------------------------------------------------------------------------------------------------------------


def test_a_key_under_a_foreign_id_is_refused(world: Publisher) -> None:
    keys = KeyDirectory(world.place / "keys")
    path = keys.path / "bob.pub.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"keyid": keys.public("alice").keyid}))
    with pytest.raises(FormatError, match="id"):
        keys.public("bob")
    path.write_text(json.dumps(fields | {"kind": "ml-dsa-44"}))
    with pytest.raises(FormatError):
        keys.public("bob")
    path.write_text(json.dumps(fields))
    assert keys.public("bob").keyid == fields["keyid"]  # control


# 8 -------------------------------------------------------------------------------------------------------------------


def _version(path: Path) -> int:
    return int(Metadata[Any].from_bytes(path.read_bytes()).signed.version)


def test_a_directory_is_always_written_whole_and_fresh(published: Publisher) -> None:
    first, second = published.place / "out", published.place / "second"
    found = publish(published, first)
    assert found["published"] == []
    assert _version(first / "metadata/timestamp.json") == 2
    publish(published, second)
    names = {str(p.relative_to(first)) for p in first.rglob("*") if p.is_file()}
    assert names - {"metadata/1.snapshot.json", "metadata/2.snapshot.json"} <= {
        str(p.relative_to(second)) for p in second.rglob("*") if p.is_file()
    }
    assert _version(second / "metadata/timestamp.json") == 3  # a device that saw the first accepts it
    assert ok("repo", "doctor", published.repo)["findings"]


def test_a_directory_is_renewed_while_root_waits(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "root", *published.keys)
    found = publish(published, published.place / "out")
    assert (found["published"], found["waiting"]) == ([], ["root"])
    assert list(RepositoryDirectory(published.repo).staged()) == ["root"]


# 9 -------------------------------------------------------------------------------------------------------------------


def test_an_overtaken_role_is_not_signed(published: Publisher) -> None:
    ok("repo", "stage", published.repo, "--renew", "targets", *published.keys)
    change(published, "targets", lambda targets: setattr(targets, "version", 1))
    said = refused(3, "repo", "sign", published.repo, "--key", "targets", *published.keys)
    assert "does not follow" in said
    assert "--discard" in said


# 10 ------------------------------------------------------------------------------------------------------------------


def test_a_damaged_key_is_not_called_a_wrong_passphrase(world: Publisher) -> None:
    path = world.place / "keys/alice.key"
    text = path.read_text()
    path.write_text(text[:60] + text[70:])
    result = edgeseal("repo", "sign", world.repo, "--key", "alice", *world.keys)
    assert result.exit_code == FormatError.exit_code
    assert "damaged" in result.output
    assert "passphrase" not in result.output

"""`edgeseal repo add-key` and `remove-key`: signatures of the old and the new root, on files, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.publisher_world import Publisher, ok, publisher, refused
from tuf.api.metadata import Metadata, Root

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    with publisher(tmp_path_factory.mktemp("keys")) as made:
        for name in ("dora", "erin", "targets-2"):
            ok("key", "new", name, "--no-passphrase", *made.keys)
        ok("key", "new", "weak", "--kind", "ml-dsa-44", "--no-passphrase", *made.keys)
        yield made


@pytest.fixture
def repo(served: Publisher) -> Iterator[Publisher]:
    """The published repository with nothing staged, before and after."""
    yield served
    ok("repo", "stage", served.repo, "--discard", *served.keys)


def change(repo: Publisher, verb: str, role: str, key: str, *more: object) -> tuple[object, ...]:
    return ("repo", verb, repo.repo, "--role", role, "--key", key, *more, *repo.keys)


def missing(found: dict[str, Any], role: str) -> dict[str, tuple[int, int]]:
    """Who asks for signatures of a role -> how many are there and how many must be."""
    return {s["by"]: (len(s["signed"]), s["threshold"]) for s in found["signatures"] if s["role"] == role}


def root_of(repo: Publisher) -> Root:
    newest = max((repo.repo / "published/metadata").glob("*.root.json"), key=lambda p: int(p.name.split(".")[0]))
    return Metadata[Root].from_bytes(newest.read_bytes()).signed


def sign(repo: Publisher, *names: str) -> None:
    for name in names:
        ok("repo", "sign", repo.repo, "--key", name, *repo.keys)


def test_added_key_counts_only_from_the_root_that_names_it(repo: Publisher) -> None:
    version = root_of(repo).version
    found = ok(*change(repo, "add-key", "root", "dora", "--threshold", 3))
    assert missing(found, "root") == {f"root {version}": (0, 2), f"root {version + 1}": (0, 3)}
    sign(repo, "dora", "alice")  # two of the new root; one of the old, which does not know dora
    assert missing(ok("repo", "status", repo.repo), "root") == {
        f"root {version}": (1, 2),
        f"root {version + 1}": (2, 3),
    }
    assert "1 valid of 2" in refused(3, "repo", "publish", repo.repo, *repo.to)
    sign(repo, "carol")
    assert ok("repo", "publish", repo.repo, *repo.to)["published"] == ["root"]
    assert (root_of(repo).roles["root"].threshold, len(root_of(repo).roles["root"].keyids)) == (3, 4)

    ok(*change(repo, "remove-key", "root", "dora", "--threshold", 2))
    sign(repo, "alice", "bob")
    assert "2 valid of 3" in refused(3, "repo", "publish", repo.repo, *repo.to)  # two are enough for the new root only
    sign(repo, "dora")  # the one that goes may still sign its own departure
    ok("repo", "publish", repo.repo, *repo.to)
    assert (root_of(repo).roles["root"].threshold, len(root_of(repo).roles["root"].keyids)) == (2, 3)


def test_second_targets_key_signs_alone_and_the_first_may_go(repo: Publisher) -> None:
    found = ok(*change(repo, "add-key", "targets", "targets-2"))
    assert list(found["staged"]) == ["root"]  # what the first key signed still counts
    sign(repo, "alice", "bob")
    ok("repo", "publish", repo.repo, *repo.to)
    found = ok(*change(repo, "remove-key", "targets", "targets"))
    assert sorted(found["staged"]) == ["root", "targets"]  # its signature counts no more
    sign(repo, "alice", "bob", "targets-2")
    assert ok("repo", "publish", repo.repo, *repo.to)["published"] == ["root", "targets"]
    ok(*change(repo, "add-key", "targets", "targets", "--threshold", 2))
    sign(repo, "alice", "bob", "targets-2")
    found = ok("repo", "publish", repo.repo, *repo.to)
    assert (found["published"], found["waiting"]) == (["targets"], ["root"])  # one signature is enough for the old root
    ok("repo", "stage", repo.repo, "--renew", "targets", *repo.keys)
    sign(repo, "targets-2", "targets")
    assert ok("repo", "publish", repo.repo, *repo.to)["published"] == ["root", "targets"]
    ok(*change(repo, "remove-key", "targets", "targets-2", "--threshold", 1))
    sign(repo, "alice", "bob", "targets")
    ok("repo", "publish", repo.repo, *repo.to)


@pytest.mark.parametrize(
    ("verb", "role", "key", "more", "code", "words"),
    [
        ("add-key", "root", "alice", (), 2, "is a key of root already"),
        ("add-key", "root", "weak", (), 3, "allowed: ml-dsa-65"),
        ("add-key", "root", "nobody", (), 2, "nobody"),
        ("add-key", "root", "erin", ("--threshold", 5), 2, "2 to 4"),
        ("add-key", "root", "erin", ("--threshold", 4), 3, "one lost key ends it"),
        ("add-key", "root", "erin", ("--threshold", 1), 2, "2 to 4"),
        ("add-key", "root", "erin", ("--threshold", 0), 2, "2 to 4"),
        ("add-key", "targets", "erin", ("--threshold", -1), 2, "1 to 2"),
        ("add-key", "timestamp", "erin", (), 2, "timestamp"),
        ("remove-key", "root", "erin", (), 2, "its keys: "),
        ("remove-key", "root", "carol", (), 3, "one lost key ends it"),
        ("remove-key", "root", "carol", ("--threshold", 1), 2, "2 to 2"),
        ("remove-key", "targets", "targets", (), 2, "1 to 0"),
    ],
)
def test_change_that_would_lock_people_out_is_refused(
    repo: Publisher, verb: str, role: str, key: str, more: tuple[object, ...], code: int, words: str
) -> None:
    assert words in refused(code, *change(repo, verb, role, key, *more))
    assert ok("repo", "status", repo.repo)["staged"] == {}


def test_change_of_keys_drops_signatures_on_what_was_staged(repo: Publisher) -> None:
    ok(*change(repo, "add-key", "root", "erin"))
    sign(repo, "alice", "bob")
    found = ok(*change(repo, "add-key", "root", "dora"))
    assert {signed for signed, _ in missing(found, "root").values()} == {0}

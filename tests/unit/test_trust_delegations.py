"""Whom a client asks for a target (TUF §5.6.7), under which names, and what proves that it got it (§5.7)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tests.unit.trust_world import DAY, NOW, World, delegate
from tuf.api.metadata import DelegatedRole, Delegations, TargetFile

from edgeseal.errors import FormatError, IntegrityError, RefusedError
from edgeseal_host.testing.repository import new_key

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_expired_delegated_role(world: World) -> None:
    repository = world.repository
    delegate(repository, [("targets", "A", ["a/*"], False)])
    repository.add_target("A", "a/one", b"one")
    repository.publish("A", expires=NOW + DAY // 2)
    repository.publish("snapshot", "timestamp")
    world.refresh("a/one")
    assert world.client.fetch_target("a/one") == b"one"
    world.time = NOW + DAY * 0.75
    with pytest.raises(RefusedError, match="A version 2 expired"):
        world.refresh("a/one")
    with pytest.raises(RefusedError, match="expired"):
        world.client.fetch_target("a/one")
    repository.publish("A", "snapshot", "timestamp")
    world.refresh("a/one")
    assert world.client.fetch_target("a/one") == b"one"


# Delegations ---------------------------------------------------------------------------------------------------------

ALL = ["*"]
GRAPHS: dict[
    str, tuple[list[tuple[str, str, list[str], bool]], str]
] = {  # edges, roles in the order they are asked for
    "one": ([("targets", "A", ALL, False)], "A"),
    "two beside each other": ([("targets", "A", ALL, False), ("targets", "B", ALL, False)], "AB"),
    "depth before breadth": (
        [("targets", "A", ALL, False), ("targets", "B", ALL, False), ("A", "C", ALL, False), ("A", "D", ALL, False)],
        "ACDB",
    ),
    "three deep": (
        [("targets", "A", ALL, False), ("targets", "B", ALL, False), ("A", "C", ALL, False), ("C", "D", ALL, False)],
        "ACDB",
    ),
    "terminating ends the search": (
        [("targets", "A", ALL, False), ("targets", "B", ALL, False), ("A", "C", ALL, True), ("A", "D", ALL, False)],
        "AC",
    ),
    "terminating still asks its own": (
        [("targets", "A", ALL, False), ("targets", "B", ALL, False), ("A", "C", ALL, True), ("C", "D", ALL, False)],
        "ACD",
    ),
    "other paths": ([("targets", "A", ["*.py"], False), ("targets", "B", ALL, False), ("A", "C", ALL, False)], "B"),
    "circle": (
        [("targets", "A", ALL, False), ("targets", "B", ALL, False), ("B", "C", ALL, False), ("C", "B", ALL, False)],
        "ABC",
    ),
    "two ways to one": (
        [("targets", "A", ALL, False), ("targets", "B", ALL, False), ("B", "C", ALL, False), ("A", "C", ALL, False)],
        "ACB",
    ),
    "only one of two ways fits": (
        [
            ("targets", "A", ALL, False),
            ("targets", "B", ALL, False),
            ("B", "C", ALL, False),
            ("A", "C", ["x.py"], False),
        ],
        "ABC",
    ),
}


@pytest.mark.parametrize(("edges", "order"), GRAPHS.values(), ids=GRAPHS)
def test_order_of_the_search(world: World, edges: list[tuple[str, str, list[str], bool]], order: str) -> None:
    delegate(world.repository, edges)
    world.refresh("missing")
    assert world.asked()[4:] == [f"1.{role}" for role in order]
    assert world.client.target("missing") is None
    for role in order:  # what is found is found in that order, without network, from the files of the generation
        world.repository.add_target(role, "missing", f"by {role}".encode())
    world.repository.publish(*order, "snapshot", "timestamp")
    world.refresh("missing")
    assert world.client.fetch_target("missing") == f"by {order[0]}".encode()


def test_target_that_not_every_role_above_may_list(world: World) -> None:
    repository = world.repository
    delegate(repository, [("targets", "A", ["a/*/*"], False), ("A", "B", ["a/x/*"], False)])
    for path in ("a/x/1", "a/y/1"):
        repository.add_target("B", path, path.encode())
    repository.publish("B", "snapshot", "timestamp")
    world.refresh("a/x/1", "a/y/1")
    assert world.client.fetch_target("a/x/1") == b"a/x/1"
    assert world.client.target("a/y/1") is None


def test_role_known_under_one_delegator_is_verified_under_the_other_too(world: World) -> None:
    """Two roles delegate to one name with different keys: what the first accepts, the second must not."""
    repository, both = world.repository, ["a/*", "b/*"]
    delegate(repository, [("targets", "A", ["a/*"], False), ("targets", "B", ["b/*"], False), ("A", "C", both, False)])
    stranger = new_key().public_key
    repository.metadata["B"].signed.delegations = Delegations(
        {stranger.keyid: stranger}, {"C": DelegatedRole("C", [stranger.keyid], 1, terminating=False, paths=both)}
    )
    repository.add_target("C", "a/1", b"one")
    repository.add_target("C", "b/1", b"two")
    repository.publish("B", "C", "snapshot", "timestamp")
    world.refresh("a/1")
    refused = dict(world.client.refresh(models=(), paths=["a/1", "b/1"]).refused)
    assert isinstance(refused.pop("b/1"), IntegrityError)
    assert refused == {}
    assert world.client.fetch_target("a/1") == b"one"
    with pytest.raises(IntegrityError, match="role C does not verify"):
        world.client.fetch_target("b/1")


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role", "..", "a b%2f"])
def test_role_name_that_is_no_file_name(world: World, role: str) -> None:
    delegate(world.repository, [("targets", role, ALL, False)])
    world.refresh("missing")
    assert world.asked()[-1] == f"1.{quote(role, '')}"
    assert world.client.versions()[role] == 1
    outside = [
        p for p in world.directory.rglob("*") if p.is_file() and "trust" not in p.relative_to(world.directory).parts
    ]
    assert outside == []


# Targets -------------------------------------------------------------------------------------------------------------


def listed(world: World, kinds: list[str], rename: str | None = None) -> None:
    target = TargetFile.from_data("a.txt", b"content", kinds)
    if rename:
        target.hashes[rename] = target.hashes.pop(kinds[0])
    world.repository.targets.targets["a.txt"] = target
    world.repository.publish()
    for kind in kinds:
        world.repository.files[f"targets/{hashlib.new(kind, b'content').hexdigest()}.a.txt"] = b"content"
    world.refresh()


@pytest.mark.parametrize("kinds", [["sha256"], ["sha512"], ["sha256", "sha512"]], ids="+".join)
def test_hashes_of_a_target(world: World, kinds: list[str]) -> None:
    listed(world, kinds)
    assert world.client.fetch_target("a.txt") == b"content"
    info = world.client.target("a.txt")
    assert info is not None
    assert not info.matches(b"c0ntent")
    assert not info.matches(b"content ")
    if "sha256" not in kinds:
        with pytest.raises(FormatError, match="without its SHA-256"):
            _ = info.sha256


@pytest.mark.parametrize("kinds", [["sha512"], ["sha256", "sha512"]], ids="+".join)
def test_every_listed_hash_must_be_the_files(world: World, kinds: list[str]) -> None:
    listed(world, kinds)
    world.repository.targets.targets["a.txt"].hashes["sha512"] = "0" * 128
    world.repository.files[f"targets/{'0' * 128}.a.txt"] = b"content"
    world.repository.publish()
    world.refresh()
    with pytest.raises(IntegrityError, match="not the 7 signed ones"):
        world.client.fetch_target("a.txt")


def test_hash_of_an_unknown_kind_proves_nothing(world: World) -> None:
    listed(world, ["sha512"], rename="sha513")
    with pytest.raises(FormatError, match=r"needed is one of \['sha256', 'sha512'\]"):
        world.client.fetch_target("a.txt")


@pytest.mark.parametrize("digest", ["", "../../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_hash_that_is_none(world: World, digest: str) -> None:
    """It would become part of an address."""
    listed(world, ["sha256"])
    world.repository.targets.targets["a.txt"].hashes["sha256"] = digest
    world.repository.publish()
    world.refresh()
    world.asked()
    with pytest.raises(FormatError, match="sha256 that is not one"):
        world.client.fetch_target("a.txt")
    assert world.asked() == []

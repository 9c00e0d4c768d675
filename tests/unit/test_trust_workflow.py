"""The client workflow of TUF §5, step by step, with ML-DSA keys: the ground of the public conformance suite.

What an attacker makes of each step is in tests/attacks/test_tuf_metadata.py; here is what a client asks for, in which
order, what it keeps when a step fails, and what it must put up with.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.formats import encode_canonical
from tests.unit.trust_world import DAY, NOW, TOP, World
from tuf.api.metadata import MetaFile

from edgeseal.errors import FormatError, IntegrityError, RefusedError, RollbackError, TemporaryError
from edgeseal.trust import Trust
from edgeseal_host.testing.repository import ONLINE, Repository, new_key

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_requests_of_a_first_and_of_an_unchanged_refresh(world: World) -> None:
    world.refresh()
    assert world.asked() == ["2.root", "timestamp", "1.snapshot", "1.targets"]
    world.refresh()
    assert world.asked() == ["2.root", "timestamp"]


def test_metadata_are_kept_byte_for_byte(world: World) -> None:
    """Hashes are of the bytes that came, so no other spelling of the same metadata will do."""
    world.repository.files["metadata/timestamp.json"] += b" \n"
    world.refresh()
    for role in ("timestamp", "1.snapshot", "1.targets", "1.root"):
        kept = world.client.files()[f"{role.removeprefix('1.')}.json"]
        assert kept == world.repository.files[f"metadata/{role}.json"]


@pytest.mark.parametrize("fault", ["no version", "wrong signature", "not JSON", "empty", "a timestamp"])
def test_useless_provisioned_root_asks_for_nothing(world: World, fault: str) -> None:
    root = json.loads(world.root)
    if fault == "no version":
        del root["signed"]["version"]
    elif fault == "wrong signature":
        root["signatures"][0]["sig"] = "5a" * 3309
    world.root = {
        "not JSON": b"\x00",
        "empty": b"",
        "a timestamp": world.repository.files["metadata/timestamp.json"],
    }.get(fault, json.dumps(root).encode())
    with pytest.raises(RefusedError):
        world.refresh()
    assert world.asked() == []


@pytest.mark.parametrize(("role", "kept"), [("root", 0), ("timestamp", 1), ("snapshot", 2), ("targets", 3)])
def test_what_was_verified_before_an_unsigned_role_is_kept(world: World, role: str, kept: int) -> None:
    repository = world.repository
    repository.publish("root", "targets", "snapshot", "timestamp")
    data = json.loads(repository.sign(role))
    data["signatures"] = []
    repository.serve_signed(role, json.dumps(data).encode())
    for above in TOP[TOP.index(role) - 1 : 0 : -1]:
        repository.publish(above, same_version=True)
    with pytest.raises(IntegrityError, match="lacks valid signatures"):
        world.refresh()
    assert world.client.versions() == (dict.fromkeys(TOP[:kept], 2) or {"root": 1})


@pytest.mark.parametrize("role", ["root", "snapshot", "targets"])
def test_file_under_the_name_of_another_version(world: World, role: str) -> None:
    repository = world.repository
    repository.publish("root", "targets", "snapshot", "timestamp")
    repository.metadata[role].signed.version = 3
    repository.files[f"metadata/2.{role}.json"] = repository.sign(role)
    repository.metadata[role].signed.version = 2
    if role == "targets":
        repository.snapshot.meta["targets.json"] = MetaFile(2)
        repository.publish("snapshot", "timestamp", same_version=True)
    elif role == "snapshot":
        repository.timestamp.snapshot_meta = MetaFile(2)
        repository.publish("timestamp", same_version=True)
    with pytest.raises(RollbackError, match=f"{role}.json goes back or does not follow"):
        world.refresh()
    assert world.client.versions().get(role, 1) == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_missing_file_stops_at_its_step(world: World, role: str) -> None:
    world.refresh()
    repository = world.repository
    repository.publish()
    name = "metadata/timestamp.json" if role == "timestamp" else f"metadata/2.{role}.json"
    held = repository.files.pop(name)
    world.asked()
    with pytest.raises(TemporaryError, match=f"{role}.json was not served"):
        world.refresh()
    assert world.asked()[-1] == name.removeprefix("metadata/").removesuffix(".json")
    after = {r: 2 if TOP.index(r) < TOP.index(role) else 1 for r in TOP} | {"root": 1}
    assert world.client.versions() == after
    repository.files[name] = held
    world.refresh()
    assert world.client.versions() == dict.fromkeys(TOP, 2) | {"root": 1}


def test_snapshot_in_place_of_a_timestamp(world: World) -> None:
    """Signed by the right key, complete and of the right version: only the type is another."""
    repository = world.repository
    both = new_key(ONLINE)
    repository.set_keys("timestamp", [both])
    repository.set_keys("snapshot", [both])
    repository.publish("root")
    repository.snapshot.meta = {"snapshot.json": MetaFile(1)}
    repository.publish("snapshot")
    repository.files["metadata/timestamp.json"] = repository.files["metadata/2.snapshot.json"]
    with pytest.raises(FormatError, match="timestamp"):
        world.refresh()
    assert world.client.versions() == {"root": 2}


def test_fields_that_nobody_knows_are_part_of_what_is_signed(world: World) -> None:
    repository = world.repository
    key = new_key()
    key.public_key.unrecognized_fields |= {"keyid_hash_algorithms": "md5", "extra": {"a": 1}}
    repository.set_keys("targets", [key])
    repository.root.unrecognized_fields["custom"] = "value"
    repository.root.roles["root"].unrecognized_fields["another"] = [1, 2]
    repository.publish("root", "targets", "snapshot", "timestamp")
    world.refresh()
    assert world.client.versions()["root"] == 2
    data = json.loads(repository.sign("root"))
    data["signed"]["custom"] = "changed"
    data["signed"]["version"] = 3
    repository.files["metadata/3.root.json"] = json.dumps(data).encode()
    with pytest.raises(IntegrityError):
        world.refresh()


# Keys and thresholds -------------------------------------------------------------------------------------------------


def spoilt(repository: Repository, *, keyid: str, signature: str) -> None:
    """Serve the timestamp with one signature more or another one."""
    data = json.loads(repository.sign("timestamp"))
    others = [s for s in data["signatures"] if s["keyid"] != keyid]
    data["signatures"] = [*others, {"keyid": keyid, "sig": signature}]
    repository.serve_signed("timestamp", json.dumps(data).encode())


@pytest.mark.parametrize("signature", ["5a" * 2420, "", "zz"], ids=["plausible", "empty", "not hex"])
def test_bad_signature_beside_enough_good_ones(world: World, signature: str) -> None:
    """TUF §4.2.2 counts valid signatures; one signer's mishap must not stop a fleet."""
    repository = world.repository
    keys = [new_key(ONLINE), new_key(ONLINE)]
    repository.set_keys("timestamp", keys, threshold=1)
    repository.publish("root", "timestamp")
    spoilt(repository, keyid=keys[1].public_key.keyid, signature=signature)
    world.refresh()
    assert world.client.versions()["timestamp"] == 2


def test_bad_signature_where_all_are_needed(world: World) -> None:
    """Negative control of the test above."""
    repository = world.repository
    keys = [new_key(ONLINE), new_key(ONLINE)]
    repository.set_keys("timestamp", keys, threshold=2)
    repository.publish("root", "timestamp")
    spoilt(repository, keyid=keys[1].public_key.keyid, signature="5a" * 2420)
    with pytest.raises(IntegrityError):
        world.refresh()


def test_signature_twice_under_one_key_id(world: World) -> None:
    data = json.loads(world.repository.sign("timestamp"))
    data["signatures"] *= 2
    world.repository.serve_signed("timestamp", json.dumps(data).encode())
    with pytest.raises(FormatError, match="timestamp"):
        world.refresh()


def test_role_that_needs_more_keys_than_it_has(world: World) -> None:
    world.repository.root.roles["snapshot"].threshold = 2
    world.repository.publish("root", "snapshot", "timestamp")
    with pytest.raises(IntegrityError):
        world.refresh()
    assert world.client.versions() == {"root": 2, "timestamp": 2}


def test_one_key_listed_many_times_counts_once(world: World) -> None:
    """Written as JSON, since tuf's own classes would not write it."""
    repository = world.repository
    root = repository.metadata["root"]
    root.signed.version = 2
    raw = root.signed.to_dict()
    raw["roles"]["snapshot"] |= {"keyids": raw["roles"]["snapshot"]["keyids"] * 3, "threshold": 2}
    text = encode_canonical(raw)
    assert text is not None
    signatures = [s.sign(text.encode()).to_dict() for s in repository.signers["root"]]
    repository.files["metadata/2.root.json"] = json.dumps({"signatures": signatures, "signed": raw}).encode()
    with pytest.raises(FormatError, match=r"root\.json"):
        world.refresh()
    assert world.client.versions().get("root", 1) == 1


ROOTS: dict[str, tuple[bool, list[Any]]] = {  # accepted?, then per version: keys, threshold, signed by
    "a new key, signed by both": (True, [([1], 1, [1]), ([2], 1, [1, 2]), ([2], 1, [2])]),
    "signatures of strangers": (True, [([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4]), ([2], 1, [3, 2, 4])]),
    "any three of five": (True, [([0, 1, 2, 3, 4], 3, s) for s in ([0, 2, 4], [0, 4, 1], [0, 1, 3], [1, 2, 3])]),
    "one of five replaced": (True, [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1])]),
    "one of five, the one that signs": (
        True,
        [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4, 5]), ([0, 1, 3, 4, 5], 3, [0, 4, 5])],
    ),
    "all five replaced": (
        True,
        [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7]), ([5, 6, 7, 8, 9], 3, [5, 6, 7])],
    ),
    "threshold up": (True, [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])]),
    "threshold down": (True, [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1, 2]), ([1, 2, 3], 1, [1])]),
    "key and threshold more": (True, [([1], 1, [1]), ([1, 2], 2, [1, 2])]),
    "old key does not sign": (False, [([1], 1, [1]), ([2], 1, [2, 3, 4])]),
    "new key does not sign": (False, [([1], 1, [1]), ([2], 1, [1, 3, 4])]),
    "too few new keys sign": (False, [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4])]),
    "too few old keys sign": (False, [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 5])]),
    "new threshold not reached": (False, [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2])]),
    "old threshold not reached": (False, [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1])]),
}


@pytest.mark.parametrize(("accepted", "steps"), ROOTS.values(), ids=ROOTS)
def test_chain_of_roots(tmp_path: Path, *, accepted: bool, steps: list[Any]) -> None:
    keys = [new_key() for _ in range(10)]
    repository = Repository(now=NOW, root_keys=1, threshold=1)
    repository.root.version = 0
    for members, threshold, signed_by in steps:
        repository.set_keys("root", [keys[i] for i in members], threshold=threshold)
        repository.signers["root"] = [keys[i] for i in signed_by]
        repository.publish("root")
    client = Trust(tmp_path, bootstrap=repository.root_bytes(1), fetcher=repository, clock=lambda: NOW)
    if accepted:
        client.refresh()
        assert client.versions()["root"] == len(steps)
    else:
        with pytest.raises(IntegrityError):
            client.refresh()
        assert client.versions().get("root", 1) == len(steps) - 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize(
    ("accepted", "signed_by"),
    [(True, [0, 2, 4]), (True, [9, 0, 4, 1]), (False, [0, 4]), (False, [0, 4, 9]), (False, [7, 8, 9])],
)
def test_three_of_five_keys_of_a_role(world: World, role: str, *, accepted: bool, signed_by: list[int]) -> None:
    keys = [new_key(world.repository.signers[role][0].public_key.scheme) for _ in range(10)]
    world.repository.set_keys(role, keys[:5], threshold=3)
    world.repository.signers[role] = [keys[i] for i in signed_by]
    world.repository.publish("root", "targets", "snapshot", "timestamp")
    if accepted:
        world.refresh()
        assert world.client.versions()[role] == 2
    else:
        with pytest.raises(IntegrityError, match=f"{role}.json lacks valid signatures"):
            world.refresh()
        assert role not in world.client.versions()


# Time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", TOP)
def test_expired_role_is_refused_and_its_successor_is_not(world: World, role: str) -> None:
    """Local metadata may be past their end: they still are what newer ones are compared with."""
    world.refresh()
    repository = world.repository
    repository.publish(role, expires=NOW + DAY // 2)
    for above in TOP[TOP.index(role) - 1 : 0 : -1]:
        repository.publish(above)
    world.refresh()
    world.time = NOW + DAY * 0.75
    with pytest.raises(RefusedError, match=f"{role} version 2 expired"):
        world.refresh()
    assert world.client.versions()[role] == 2
    repository.publish(role)
    for above in TOP[TOP.index(role) - 1 : 0 : -1]:
        repository.publish(above)
    world.refresh()
    assert world.client.versions()[role] == 3


def test_lost_state_is_fetched_again(world: World) -> None:
    """Negative control of what is kept above: with no directory the client begins at the provisioned root."""
    world.refresh()
    shutil.rmtree(world.directory / "trust")
    world.asked()
    world.refresh()
    assert world.asked() == ["2.root", "timestamp", "1.snapshot", "1.targets"]

"""Attacks on update systems (TUF §1.5.2, Uptane) against `edgeseal.trust`, each by its name.

Every refusal is followed by proof that the device still has what it had and still accepts the honest repository.
Eavesdropping (Uptane) is not an attack on this layer: metadata, manifests and chunks are public, keys travel in X1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, TargetFile

from edgeseal.errors import EdgesealError, FormatError, IntegrityError, RefusedError, RollbackError, TemporaryError
from edgeseal.trust import Trust
from edgeseal_host.testing.repository import ONLINE, Repository, new_key, role_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_800_000_000  # 2027-01-15
DAY = 86_400
MODEL = "bearing"
ONE = "models/bearing/1.cbor"
TWO = "models/bearing/2.cbor"


class World:
    """An honest repository with one release, and a device that knows it."""

    def __init__(self, directory: Path) -> None:
        self.time: float = NOW
        self.repository = Repository([MODEL], now=NOW)
        self.repository.add_release(MODEL, 1, b"manifest one")
        self.repository.publish()
        self.directory = directory
        self.root = self.repository.root_bytes(1)
        self.device = self.new_device()
        self.device.refresh()

    def new_device(self, **options: int) -> Trust:
        """Start the agent again on the same card."""
        return Trust(
            self.directory,
            bootstrap=self.root,
            fetcher=self.repository,
            clock=lambda: self.time,
            **options,  # type: ignore[arg-type]
        )

    def publish_two(self) -> None:
        self.repository.add_release(MODEL, 2, b"manifest two")
        self.repository.publish()

    def refused(self, error: type[EdgesealError], match: str) -> None:
        """The next refresh is refused and release 1 stays installable, with no network."""
        with pytest.raises(error, match=match):
            self.device.refresh()
        self.still_has(1)

    def still_has(self, release: int) -> None:
        assert self.new_device().targets_for(MODEL)[-1].release == release

    def recovers(self) -> None:
        """The honest repository is still accepted."""
        self.publish_two()
        assert self.device.refresh().changed
        assert self.device.fetch_target(TWO) == b"manifest two"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "trust")


def test_honest_refresh_is_accepted(world: World) -> None:
    """Negative control of every test below."""
    world.recovers()


def test_arbitrary_installation_of_an_unlisted_target(world: World) -> None:
    world.repository.files["targets/models/bearing/" + "0" * 64 + ".9.cbor"] = b"evil"
    assert world.device.target("models/bearing/9.cbor") is None
    with pytest.raises(RefusedError, match="not listed"):
        world.device.fetch_target("models/bearing/9.cbor")


def test_arbitrary_installation_by_replacing_a_target(world: World) -> None:
    for name in [n for n in world.repository.files if n.startswith("targets/")]:
        world.repository.files[name] = b"evil one now"  # same length
    with pytest.raises(IntegrityError, match="not the 12 signed ones"):
        world.device.fetch_target(ONE)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "model-bearing", "root"])
def test_arbitrary_metadata_signed_by_somebody_else(world: World, role: str) -> None:
    repository = world.repository
    scheme = repository.signers[role][0].public_key.scheme
    honest, repository.signers[role] = repository.signers[role], [new_key(scheme), new_key(scheme)]
    repository.publish(role)
    for above in ("snapshot", "timestamp"):
        if role not in {"root", "timestamp", above}:
            repository.publish(above)
    if role == "model-bearing":
        assert isinstance(world.device.refresh().refused[MODEL], IntegrityError)
        with pytest.raises(EdgesealError):
            world.device.target(ONE)  # the snapshot names another version: the old one is not installable either
    else:
        world.refused(IntegrityError, "lacks valid signatures")
    repository.signers[role] = honest
    repository.publish(*(["root"] if role == "root" else []), same_version=True)
    world.recovers()


def test_endless_data_metadata(world: World) -> None:
    world.repository.files["metadata/timestamp.json"] = b" " * 65_537
    world.refused(RefusedError, r"timestamp\.json is longer than allowed")


def test_endless_data_snapshot_longer_than_listed(world: World) -> None:
    repository = world.repository
    repository.publish("snapshot", "timestamp")
    name = f"metadata/{repository.snapshot.version}.snapshot.json"
    repository.files[name] += b" "
    world.refused(RefusedError, r"snapshot\.json is longer than allowed")
    repository.files[name] = repository.files[name][:-1]
    world.recovers()


def test_endless_data_target(world: World) -> None:
    for name in [n for n in world.repository.files if n.startswith("targets/")]:
        world.repository.files[name] += b"!"
    with pytest.raises(RefusedError, match="longer than allowed"):
        world.device.fetch_target(ONE)


def test_huge_target_is_refused_before_it_is_fetched(world: World) -> None:
    repository = world.repository
    repository.model(MODEL).targets[TWO] = TargetFile(2**40, {"sha256": "0" * 64}, TWO)
    repository.publish()
    world.device.refresh()
    repository.requests.clear()
    with pytest.raises(RefusedError, match="1099511627776 bytes"):
        world.device.fetch_target(TWO)
    assert not repository.requests


def test_extraneous_dependencies_another_models_publisher_lists_our_model(world: World) -> None:
    """A publisher's role has only its own paths: what it lists elsewhere is not seen."""
    world.repository.add_model("pump")
    world.repository.add_target(role_of("pump"), TWO, b"evil", {})
    world.repository.publish()
    world.device.refresh()
    assert world.device.target(TWO) is None
    world.still_has(1)


def test_extraneous_roles_below_a_terminating_role(world: World) -> None:
    """After a model's own role the search ends: a later catch-all role cannot add releases."""
    repository = world.repository
    repository.add_model("pump")
    assert repository.targets.delegations
    assert repository.targets.delegations.roles
    repository.targets.delegations.roles["model-pump"] = DelegatedRole(
        "model-pump", repository.targets.delegations.roles["model-pump"].keyids, 1, terminating=False, paths=["*/*/*"]
    )
    repository.add_target(role_of("pump"), TWO, b"evil", {})
    repository.publish()
    world.device.refresh()
    assert world.device.target(TWO) is None


def test_fast_forward_of_versions_is_undone_by_rotating_keys(world: World) -> None:
    """Thieves of the online keys push versions to the end; a new root with new keys brings them back."""
    repository = world.repository
    repository.timestamp.version = repository.snapshot.version = 2**31
    repository.publish("snapshot", "timestamp")
    world.device.refresh()
    repository.timestamp.version = repository.snapshot.version = 7
    repository.publish("snapshot", "timestamp")
    world.refused(RollbackError, "2147483649")
    repository.rotate("snapshot", "timestamp")
    repository.publish("snapshot", "timestamp")
    assert world.device.refresh().versions["timestamp"] == 9
    world.recovers()


def test_fast_forward_of_targets_is_undone_by_rotating_the_snapshot_key(world: World) -> None:
    repository = world.repository
    repository.targets.version = repository.model(MODEL).version = 99_999
    repository.publish()
    world.device.refresh()
    repository.targets.version = repository.model(MODEL).version = 10
    repository.rotate("snapshot")
    repository.publish()
    assert world.device.refresh().versions["targets"] == 11
    assert world.device.versions()["model-bearing"] == 11
    world.recovers()


def test_fast_forward_of_the_time_is_undone_by_rotating_the_timestamp_key(world: World) -> None:
    """A stolen online key vouches for a time half a year ahead; the new key's timestamps must still be accepted."""
    repository = world.repository
    repository.now = NOW + 170 * DAY
    repository.publish("snapshot", "timestamp")
    world.device.refresh()
    assert world.device.time_floor() == NOW + 170 * DAY
    repository.now = NOW + DAY
    repository.publish("snapshot", "timestamp")
    world.refused(RefusedError, "expired")
    repository.rotate("snapshot", "timestamp")
    repository.publish("snapshot", "timestamp")
    with pytest.raises(RefusedError, match="expired"):
        world.device.refresh()  # learns the new root; the old key's time still counts during this one
    assert world.device.refresh().changed
    assert world.device.time_floor() == NOW + DAY
    world.recovers()


def test_online_keys_cannot_push_the_time_beyond_what_offline_keys_signed(world: World) -> None:
    """A timestamp from after the expiry of root or targets would lock the device: it is refused as a whole."""
    repository = world.repository
    floor = world.device.time_floor()
    repository.now = NOW + 366 * DAY
    repository.publish("snapshot", "timestamp")
    world.refused(RefusedError, "targets version 2 expired")
    assert world.device.time_floor() == floor
    repository.now = NOW
    world.recovers()


def test_indefinite_freeze(world: World) -> None:
    """A mirror serves the same state for ever: it stops being accepted, and being installable, when it expires."""
    world.time = NOW + DAY + 1
    with pytest.raises(RefusedError, match=r"timestamp version 2 expired on 2027-01-16") as caught:
        world.device.refresh()
    assert "keeps running" in str(caught.value)
    with pytest.raises(RefusedError, match="expired"):
        world.device.target(ONE)
    assert world.device.versions()["timestamp"] == 2  # still to be shown
    world.repository.now = world.time
    world.recovers()


def test_malicious_mirror_serves_nothing(world: World) -> None:
    files, world.repository.files = world.repository.files, {}
    world.refused(TemporaryError, r"timestamp\.json was not served")
    world.repository.files = files
    world.recovers()


def test_malicious_mirror_serves_rubbish(world: World) -> None:
    good = world.repository.freeze()
    for data in (
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff" * 100,
        b"<html>",
        b'{"signed":{},"signatures":[]}',
        good["metadata/1.root.json"],
    ):
        world.repository.files["metadata/timestamp.json"] = data
        world.refused(RefusedError, r"timestamp\.json")
    world.repository.files = good
    world.recovers()


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_mix_and_match(world: World, role: str) -> None:
    """Targets of one state under the snapshot of another, or a snapshot under another timestamp."""
    repository = world.repository
    old = repository.freeze()
    world.publish_two()
    name = f"metadata/{repository.metadata[role].signed.version}.{role}.json"
    good, repository.files[name] = repository.files[name], old[f"metadata/2.{role}.json"]
    world.refused(RefusedError, f"{role}.json")
    repository.files[name] = good
    assert world.device.refresh().changed
    world.still_has(2)


def test_partial_bundle_keeps_the_last_complete_state(world: World) -> None:
    """A new timestamp and snapshot arrive, targets never: what belonged together before stays installable."""
    world.publish_two()
    name = f"metadata/{world.repository.targets.version}.targets.json"
    held = world.repository.files.pop(name)
    world.refused(TemporaryError, "targets.json was not served")
    world.refused(TemporaryError, "targets.json was not served")  # and again, from the interrupted state
    assert world.device.versions()["timestamp"] == 3
    assert world.device.versions()["targets"] == 2
    world.repository.files[name] = held
    assert world.device.refresh().changed
    world.still_has(2)


def test_rollback_to_an_older_signed_state(world: World) -> None:
    """A mirror's full copy of yesterday."""
    old = world.repository.freeze()
    world.publish_two()
    world.device.refresh()
    world.repository.files = old
    with pytest.raises(RollbackError, match="nothing was changed"):
        world.device.refresh()
    world.still_has(2)


@pytest.mark.parametrize("role", ["snapshot", "targets", "model-bearing"])
def test_rollback_by_thieves_of_the_online_keys(world: World, role: str) -> None:
    """They can sign a timestamp and a snapshot that list an older version, not make the device go there."""
    repository = world.repository
    world.publish_two()
    world.device.refresh()
    if role == "snapshot":
        repository.timestamp.snapshot_meta.version = 2
    else:
        repository.snapshot.meta[f"{role}.json"].version = 2
        repository.publish("snapshot")
    repository.publish("timestamp")
    with pytest.raises(RollbackError, match="nothing was changed"):
        world.device.refresh()
    world.still_has(2)


def test_rollback_with_the_cache_torn_is_caught_by_the_floors(world: World) -> None:
    """A power cut or a bad card empties the metadata; a replayed old state is older than the floors."""
    old = world.repository.freeze()
    world.publish_two()
    world.device.refresh()
    (generation,) = world.directory.glob("generation-*")
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (generation / name).write_bytes(b"")
    new, world.repository.files = world.repository.files, old
    with pytest.raises(RollbackError, match="has accepted version 3 before"):
        world.device.refresh()
    world.repository.files = new
    world.device.refresh()
    world.still_has(2)


def test_rollback_is_possible_without_floors(world: World) -> None:
    """Negative control of the test above: it is the floors that refuse."""
    old = world.repository.freeze()
    world.publish_two()
    world.device.refresh()
    (generation,) = world.directory.glob("generation-*")
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (generation / name).write_bytes(b"")
    for slot in world.directory.glob("floors.*"):
        slot.unlink()
    world.repository.files = old
    world.device.refresh()
    world.still_has(1)


def test_rollback_of_root_after_losing_the_cache(world: World) -> None:
    """The provisioned root is version 1; a mirror that hides version 2 would bring revoked keys back."""
    before = world.repository.freeze()
    world.repository.rotate("timestamp")
    world.repository.publish()
    world.device.refresh()
    for path in world.directory.glob("generation-*/root_history/*"):
        path.write_bytes(b"")
    new, world.repository.files = world.repository.files, before
    with pytest.raises(EdgesealError):
        world.device.refresh()
    world.repository.files = new
    world.device.refresh()


def test_key_compromise_a_revoked_key_is_refused_even_if_the_refresh_then_fails(world: World) -> None:
    """The new root is kept although nothing else arrived: the thief cannot use the pause."""
    repository = world.repository
    stolen = repository.signers["timestamp"]
    repository.rotate("timestamp")
    del repository.files["metadata/timestamp.json"]
    with pytest.raises(TemporaryError):
        world.device.refresh()
    assert world.device.versions()["root"] == 2
    with pytest.raises(EdgesealError):
        world.device.target(ONE)  # signed with the revoked key: no new install, what runs keeps running
    repository.signers["timestamp"], honest = stolen, repository.signers["timestamp"]
    repository.publish("timestamp")
    with pytest.raises(IntegrityError, match="lacks valid signatures"):
        world.device.refresh()
    repository.signers["timestamp"] = honest
    world.recovers()


def test_key_compromise_one_root_key_is_not_enough(world: World) -> None:
    repository = world.repository
    thief = repository.signers["root"][:1]
    repository.set_keys("targets", [new_key()])
    honest, repository.signers["root"] = repository.signers["root"], thief
    repository.publish("root")
    world.refused(IntegrityError, "1/2 keys")
    repository.signers["root"] = honest


def test_key_compromise_snapshot_and_timestamp_cannot_make_a_release(world: World) -> None:
    """The fleet server can withhold; it cannot forge a model."""
    repository = world.repository
    repository.add_release(MODEL, 2, b"evil")
    repository.signers[role_of(MODEL)] = [new_key()]
    repository.publish(role_of(MODEL), "snapshot", "timestamp")
    assert MODEL in world.device.refresh().refused


def test_wrong_software_other_model_under_our_path(world: World) -> None:
    """Target path and role bind a manifest to its model; a release's own content is bound by its hash."""
    world.repository.add_model("pump")
    world.repository.add_release("pump", 1, b"pump manifest")
    world.repository.publish()
    world.device.refresh()
    assert [i.path for i in world.device.targets_for(MODEL)] == [ONE]
    assert world.device.fetch_target("models/pump/1.cbor") == b"pump manifest"
    served = world.repository.files
    pump = next(d for n, d in served.items() if n.startswith("targets/models/pump"))
    for name in [n for n in served if n.startswith("targets/models/bearing")]:
        served[name] = pump
    with pytest.raises(RefusedError):
        world.device.fetch_target(ONE)


def test_drop_request_is_noticed_by_expiry(world: World) -> None:
    """Somebody drops the answers: the device goes on, and says since when it has heard nothing."""
    world.repository.files.clear()
    world.time = NOW + 2 * DAY
    with pytest.raises(TemporaryError):
        world.device.refresh()
    assert world.device.roles()["timestamp"].expires < world.time


# Algorithms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("make", [CryptoSigner.generate_ed25519, CryptoSigner.generate_ecdsa], ids=["ed25519", "ecdsa"])
def test_algorithm_downgrade_in_root(world: World, role: str, make: Callable[[], CryptoSigner]) -> None:
    """Even a correctly signed root cannot bring a quantum-vulnerable key in."""
    repository = world.repository
    old = repository.signers["root"]
    repository.set_keys(role, [make(), *(old[:2] if role == "root" else [])])
    repository.signers["root"] = list({s.public_key.keyid: s for s in [*old, *repository.signers["root"]]}.values())
    repository.publish("root")
    repository.publish()
    with pytest.raises(RefusedError, match="allowed: ml-dsa-"):
        world.device.refresh()
    assert world.device.versions()["root"] == 1
    world.still_has(1)


def test_algorithm_downgrade_in_a_delegation(world: World) -> None:
    world.repository.add_model("pump", CryptoSigner.generate_ed25519())
    world.repository.publish()
    world.refused(RefusedError, "a key of a role delegated by targets.json is ed25519")


def test_wrong_parameter_set_for_an_offline_role(world: World) -> None:
    """ML-DSA-44 will do for keys that are replaced in a day, not for those that outlive the device."""
    world.repository.add_model("pump", new_key(ONLINE))
    world.repository.publish()
    world.refused(RefusedError, "ml-dsa/ml-dsa-44/1; allowed: ml-dsa-65/1, ml-dsa-87/1")


def test_wrong_parameter_set_in_the_scheme_of_a_key(world: World) -> None:
    """A key labelled with another parameter set than its own verifies nothing."""
    repository = world.repository
    key = repository.signers["timestamp"][0].public_key
    key.scheme = "ml-dsa-65/1"
    repository.publish("root")
    repository.publish()
    with pytest.raises(IntegrityError, match="lacks valid signatures"):
        world.device.refresh()


def test_algorithm_stripping_unsigned_metadata(world: World) -> None:
    data = json.loads(world.repository.files["metadata/timestamp.json"])
    data["signed"]["version"] += 1
    for signatures in ([], [{"keyid": data["signatures"][0]["keyid"], "sig": ""}]):
        world.repository.files["metadata/timestamp.json"] = json.dumps({**data, "signatures": signatures}).encode()
        world.refused(IntegrityError, "lacks valid signatures")


def test_unknown_key_type_makes_root_unusable_not_the_device(world: World) -> None:
    repository = world.repository
    root = json.loads(repository.root_bytes(1))
    root["signed"]["version"] = 2
    next(iter(root["signed"]["keys"].values()))["keytype"] = "quantum"
    repository.files["metadata/2.root.json"] = json.dumps(root).encode()
    world.refused(RefusedError, r"2\.root\.json")
    del repository.files["metadata/2.root.json"]
    world.recovers()


def test_one_key_under_two_ids_does_not_reach_a_threshold(world: World) -> None:
    repository = world.repository
    one = repository.signers["root"][0]
    data = Metadata.from_bytes(repository.root_bytes(1))
    again = json.loads(data.to_bytes())
    again["signed"]["version"] = 2
    again["signatures"] = [s for s in again["signatures"] if s["keyid"] == one.public_key.keyid] * 2
    repository.files["metadata/2.root.json"] = json.dumps(again).encode()
    world.refused(FormatError, "root")


def test_cross_hardware_install_is_visible_before_anything_is_fetched(world: World) -> None:
    """What hardware a release is for is signed with its listing; the update pass reads it there."""
    world.repository.add_release(MODEL, 2, b"m", hw=["rpi5"], rt=["onnx"])
    world.repository.publish()
    world.device.refresh()
    info = world.device.target(TWO)
    assert info is not None
    assert info.custom["edgeseal"]["hw"] == ["rpi5"]


def test_snapshot_that_forgets_a_model(world: World) -> None:
    """Removing a role from the snapshot would let an older one come back later."""
    del world.repository.snapshot.meta["model-bearing.json"]
    world.repository.publish("snapshot", "timestamp")
    world.refused(RefusedError, "snapshot")


def test_timestamp_of_the_same_version_with_another_content_is_ignored(world: World) -> None:
    world.repository.timestamp.snapshot_meta = MetaFile(100)
    world.repository.publish("timestamp", same_version=True)
    assert not world.device.refresh().changed
    world.still_has(1)

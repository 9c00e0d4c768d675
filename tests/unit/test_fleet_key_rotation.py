"""The fleet server's signing keys and data key, replaced: each step, a cut between any two, keys that do not fit."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

import pytest
from tests.unit import fleet_world
from tests.unit.fleet_world import World, check_in, enrol, make_bundle, orders, run, serving
from tuf.api.metadata import Metadata, Root, Snapshot, Timestamp

from edgeseal.durable import locked
from edgeseal.errors import IntegrityError, NotAuthorisedError, RefusedError, TemporaryError
from edgeseal.trust.fetch_http import HttpFetcher
from edgeseal.trust.trust import Trust
from edgeseal_host.fleet import data_key
from edgeseal_host.fleet.online_keys import ROLES, OnlineKeys
from edgeseal_host.repository.verify import Publication

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


world = fleet_world.world


def next_root(world: World) -> bytes:
    """The publisher's next root, which names what public.json announces."""
    root, public = world.publisher.root, world.data.public()
    for role, key in (("snapshot", public.snapshot), ("timestamp", public.timestamp)):
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(key, role)
    root.version += 1
    signed: Metadata[Root] = Metadata(root)
    signed.sign(world.publisher.root_key)
    return signed.to_bytes()


def signer_of(world: World, name: str) -> set[str]:
    data = (world.data.path / "objects/metadata" / name).read_bytes()
    kind = Metadata[Timestamp] if name == "timestamp.json" else Metadata[Snapshot]
    return set(kind.from_bytes(data).signatures)


# Snapshot and timestamp --------------------------------------------------------------------------------------------


def test_new_online_keys_sign_from_the_root_that_names_them_while_serving(world: World, tmp_path: Path) -> None:
    first, before = world.publisher.root_bytes(), world.data.public()
    old = {role: (world.data.secrets / f"{role}.key").read_bytes() for role in ROLES}
    with serving(world.data.path) as server:
        client = world.client(server)
        world.publish(client, make_bundle("bearing", 1))
        trust = Trust(tmp_path / "trust", bootstrap=first, fetcher=HttpFetcher(server.base))
        trust.refresh(models=["bearing"])
        done = run("fleet", "rotate-online-keys", "--data", str(world.data.path), "--json")
        announced = client.public()
        assert json.loads(done.stdout)["timestamp"] == announced.timestamp.keyid != before.timestamp.keyid
        world.publish(client, make_bundle("bearing", 2))  # the former keys sign on
        assert signer_of(world, "timestamp.json") == {before.timestamp.keyid}
        assert client.publish(Publication(roots=(next_root(world),)))["changed"] == ["root"]
        assert signer_of(world, "timestamp.json") == {announced.timestamp.keyid}
        assert signer_of(world, "3.snapshot.json") == {announced.snapshot.keyid}
        trust.refresh(models=["bearing"])
        assert trust.versions()["root"] == 2
        world.publish(client, make_bundle("bearing", 3))
        trust.refresh(models=["bearing"])
        assert server.stop() == 0
    files = [f.read_bytes() for f in world.data.secrets.iterdir()]
    assert not any(key in data for key in old.values() for data in files)
    with serving(world.data.path) as server:
        world.publish(world.client(server), make_bundle("bearing", 4))


def test_second_rotation_before_the_root_is_refused(world: World) -> None:
    world.data.rotate_online_keys()
    announced = world.data.public()
    done = run("fleet", "rotate-online-keys", "--data", str(world.data.path))
    assert done.returncode == RefusedError.exit_code
    assert "wait already" in done.stderr
    assert world.data.public().timestamp.keyid == announced.timestamp.keyid
    assert run("fleet", "rotate-online-keys", "--force", "--data", str(world.data.path)).returncode == 0
    assert world.data.public().timestamp.keyid != announced.timestamp.keyid


def test_root_that_names_neither_key_is_refused_and_changes_nothing(world: World) -> None:
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), {})
        world.data.rotate_online_keys()
        stale = next_root(world)
        world.data.rotate_online_keys(force=True)
        before = fleet.publisher.published()
        with pytest.raises(NotAuthorisedError, match="does not name this snapshot key"):
            fleet.publisher.publish(Publication(roots=(stale,)), {})
        assert fleet.publisher.published() == before
    assert sorted(p.name for p in world.data.secrets.glob("*.key")) == [
        "data.key",
        "snapshot.key",
        "snapshot.next.key",
        "timestamp.key",
        "timestamp.next.key",
    ]


def test_root_that_replaces_one_of_both_keys_is_enough_for_that_one(world: World) -> None:
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), {})
        old = world.data.public()
        world.data.rotate_online_keys()
        root = Metadata[Root].from_bytes(next_root(world)).signed
        root.revoke_key(root.roles["snapshot"].keyids[0], "snapshot")
        root.add_key(old.snapshot, "snapshot")
        signed: Metadata[Root] = Metadata(root)
        signed.sign(world.publisher.root_key)
        fleet.publisher.publish(Publication(roots=(signed.to_bytes(),)), {})
    assert signer_of(world, "timestamp.json") == {world.data.public().timestamp.keyid}
    assert signer_of(world, "2.snapshot.json") == {old.snapshot.keyid}
    assert (world.data.secrets / "snapshot.next.key").exists()


def test_kill_between_publication_and_change_over_is_made_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), {})
        world.data.rotate_online_keys()
        with monkeypatch.context() as cut:
            cut.setattr(OnlineKeys, "settle", killed)
            with pytest.raises(KeyboardInterrupt):
                fleet.publisher.publish(Publication(roots=(next_root(world),)), {})
    assert (world.data.secrets / "timestamp.next.key").exists()
    with world.data.open() as fleet:
        fleet.publisher.recover()
        assert not (world.data.secrets / "timestamp.next.key").exists()
        world.publisher.targets.expires = world.publisher.targets.expires.replace(year=2099)
        fleet.publisher.publish(world.publisher.publication(), {})
    assert signer_of(world, "timestamp.json") == {world.data.public().timestamp.keyid}


def killed(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


# Data key ----------------------------------------------------------------------------------------------------------


def test_new_data_key_opens_everything_and_the_old_one_nothing(world: World) -> None:
    old = (world.data.secrets / "data.key").read_bytes()
    with serving(world.data.path) as server:
        client = world.client(server)
        public = client.public()
        bundle = make_bundle("bearing", 1)
        world.publish(client, bundle)
        client.assign("bearing", 1, group="line-1")
        card, other = enrol(client, public, "press-7"), enrol(client, public, "press-8", suite=2)
        check_in(card, server, public)
        refused = run("fleet", "rotate-data-key", "--data", str(world.data.path))
        assert refused.returncode == TemporaryError.exit_code  # a running server holds the old key
        server.stop()
    done = run("fleet", "rotate-data-key", "--data", str(world.data.path), "--json")
    assert json.loads(done.stdout)["sealed"] == 3
    assert old not in [f.read_bytes() for f in world.data.secrets.iterdir()]
    with serving(world.data.path) as server:
        assert [k.ck for k in orders(card, server, public).keys] == [bundle.ck]
        assert [k.ck for k in orders(other, server, public).keys] == [bundle.ck]
        server.stop()
    new = (world.data.secrets / "data.key").read_bytes()
    (world.data.secrets / "data.key").write_bytes(old)
    with pytest.raises(IntegrityError, match="another key"), world.data.open():
        pass
    (world.data.secrets / "data.key").write_bytes(new)


def sealed_values(world: World) -> list[bytes]:
    with closing(sqlite3.connect(world.data.database)) as connection:
        query = "SELECT psk FROM generation UNION SELECT ck FROM release WHERE ck IS NOT NULL"
        return [row[0] for row in connection.execute(query)]


def fill(world: World, devices: int) -> list[str]:
    names = [f"d{n}" for n in range(devices)]
    with world.data.open() as fleet:
        from edgeseal.enrolment import Record
        from edgeseal.suite import PrivateKey

        for name in names:
            key, psk = PrivateKey(2, os.urandom(64)).public, name.encode().ljust(32)
            enrol_key = world.data.public().enrol
            record = Record.make(device=name, serial="", hardware="", group="", key=key, psk=psk, enrol=enrol_key)
            fleet.registry.enrol(record, psk, now=0)
    return names


def check_all_open(world: World, names: list[str]) -> None:
    with world.data.open() as fleet:
        for name in names:
            assert fleet.registry.current_generation(name).psk == name.encode().ljust(32)


def test_what_the_old_key_sealed_leaves_no_trace_in_the_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = fill(world, 25)
    before = sealed_values(world)
    monkeypatch.setattr(data_key, "_BATCH", 7)
    assert world.data.rotate_data_key() == 25
    check_all_open(world, names)
    everything = b"".join(p.read_bytes() for p in world.data.path.glob("fleet.db*"))
    assert not any(value in everything for value in before)
    assert all(value in everything for value in sealed_values(world))  # negative control


@pytest.mark.parametrize("cut", ["_reseal", "_name", "_settle", "_forget_old_pages"])
def test_kill_anywhere_leaves_one_key_that_opens_everything(
    world: World, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    names = fill(world, 3)
    with monkeypatch.context() as patched:
        patched.setattr(data_key, cut, killed)
        with pytest.raises(KeyboardInterrupt):
            world.data.rotate_data_key()
    check_all_open(world, names)
    assert world.data.rotate_data_key() == 3
    check_all_open(world, names)
    assert sorted(p.name for p in world.data.secrets.glob("data*")) == ["data.key"]


def test_value_that_does_not_open_stops_the_rotation(world: World) -> None:
    names = fill(world, 2)
    with closing(sqlite3.connect(world.data.database)) as connection:
        connection.execute("UPDATE generation SET psk = zeroblob(60) WHERE device = 'd1'")
        connection.commit()
    before = sealed_values(world)
    with pytest.raises(IntegrityError, match="does not open"):
        world.data.rotate_data_key()
    assert sealed_values(world) == before
    check_all_open(world, names[:1])


def test_registry_from_before_keys_had_ids_opens_and_gets_one(world: World) -> None:
    names = fill(world, 1)
    with closing(sqlite3.connect(world.data.database)) as connection:
        connection.execute("DELETE FROM setting WHERE name = 'data key'")
        connection.commit()
    check_all_open(world, names)
    world.data.rotate_data_key()
    check_all_open(world, names)


@pytest.mark.parametrize("how", [lambda d: d.rotate_data_key(), lambda d: d.rotate_online_keys()])
def test_secret_files_stay_for_the_owner_only(world: World, how: Callable[[object], object]) -> None:
    how(world.data)
    for file in world.data.secrets.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_data_key_of_a_served_directory_stays(world: World) -> None:
    with locked(world.data.path / "serve.lock"):
        before = (world.data.secrets / "data.key").read_bytes()
        assert run("fleet", "rotate-data-key", "--data", str(world.data.path)).returncode == TemporaryError.exit_code
    assert (world.data.secrets / "data.key").read_bytes() == before

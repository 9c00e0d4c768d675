"""X1 against a fleet server process: duplicates, clones, revocation, restored registry, keys only for whom they are."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy, deepcopy
from typing import TYPE_CHECKING

import pytest
from tests.unit import fleet_world
from tests.unit.fleet_world import Card, Server, World, check_in, enrol, make_bundle, orders, run, serving

from edgeseal.contentkey import open_ticket
from edgeseal.errors import NotAuthorisedError, RefusedError, TemporaryError
from edgeseal.session.device import RefusedByServerError, ServerKeyUnknownError
from edgeseal.session.messages import KEY_UNKNOWN, REFUSED, Flags, PendingRequest, Status
from edgeseal.suite import SUITES, PrivateKey, PublicKey
from edgeseal.transport.x1 import FleetExchange
from edgeseal_host.fleet.data import DataDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal_host.fleet.client import FleetClient
    from edgeseal_host.fleet.public import FleetPublic


world, server, client, public = fleet_world.world, fleet_world.server, fleet_world.client, fleet_world.public


def raw_request(card: Card, public: FleetPublic, ctr: int, body: bytes, flags: Flags = Flags.NONE) -> PendingRequest:
    generation = card.identity.current
    key = next(k for k in public.session if k.suite == generation.suite)
    return PendingRequest(
        server=PublicKey(key.suite, key.public),
        device=PrivateKey(generation.suite, generation.seed),
        psk=generation.psk,
        e_seed=os.urandom(SUITES[generation.suite].seed_length),
        s1=os.urandom(32),
        ctr=ctr,
        flags=flags,
        body=body,
    )


@pytest.mark.parametrize("suite", [1, 2])
def test_device_gets_orders_and_the_right_key(
    world: World, server: Server, client: FleetClient, public: FleetPublic, suite: int
) -> None:
    bundle = make_bundle("bearing", 1)
    world.publish(client, bundle)
    card = enrol(client, public, "press-7", suite=suite)
    assert orders(card, server, public).assignments == []
    client.assign("bearing", 1, group="line-1")
    found = orders(card, server, public)
    assert [(a.model, a.release, a.path) for a in found.assignments] == [("bearing", 1, bundle.path)]
    assert [k.ck for k in found.keys] == [bundle.ck]
    assert client.device("press-7")["report"]["hardware"] == "pi-4"


def test_eight_parallel_duplicates_accepted_once(server: Server, client: FleetClient, public: FleetPublic) -> None:
    card = enrol(client, public, "press-7")
    request = raw_request(card, public, 5, fleet_world.report())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: FleetExchange(server.base)(request.m1), range(8)))
    statuses = sorted(copy(request).open_reply(answer).status for answer in answers)
    assert statuses == [Status.OK] + [Status.STALE] * 7


def test_replayed_request_changes_nothing(server: Server, client: FleetClient, public: FleetPublic) -> None:
    card = enrol(client, public, "press-7")
    send = FleetExchange(server.base)
    old = raw_request(card, public, 1, fleet_world.report(agent="old"))
    send(old.m1)
    send(raw_request(card, public, 2, fleet_world.report(agent="new")).m1)
    assert old.open_reply(send(old.m1)).status is Status.STALE
    assert client.device("press-7")["report"]["agent"] == "new"


def test_unknown_device_and_wrong_psk_get_one_answer(server: Server, client: FleetClient, public: FleetPublic) -> None:
    card = enrol(client, public, "press-7")
    wrong = raw_request(card, public, 1, b"")
    other = deepcopy(card)
    object.__setattr__(other.identity.current, "psk", os.urandom(32))
    unknown = deepcopy(card)
    object.__setattr__(unknown.identity.current, "seed", os.urandom(32))
    send = FleetExchange(server.base)
    assert send(raw_request(other, public, 1, b"").m1) == REFUSED
    assert send(raw_request(unknown, public, 1, b"").m1) == REFUSED
    assert send(b"") == REFUSED
    assert send(wrong.m1[:-1]) == REFUSED
    assert send(wrong.m1[:2] + bytes(16) + wrong.m1[18:]) == KEY_UNKNOWN


def test_body_that_is_no_report_is_denied(server: Server, client: FleetClient, public: FleetPublic) -> None:
    card = enrol(client, public, "press-7")
    request = raw_request(card, public, 1, b"\xff\x00")
    assert request.open_reply(FleetExchange(server.base)(request.m1)).status is Status.DENIED


def test_revoked_device_gets_no_key_and_no_ticket(
    world: World, server: Server, client: FleetClient, public: FleetPublic
) -> None:
    world.publish(client, make_bundle("bearing", 1))
    card = enrol(client, public, "press-7")
    client.assign("bearing", 1, device="press-7")
    assert orders(card, server, public).keys
    client.revoke("press-7", "stolen")
    reply = check_in(card, server, public)
    assert (reply.status, reply.body) == (Status.REVOKED, b"")
    with pytest.raises(NotAuthorisedError, match="revoked"):
        client.ticket("press-7", "bearing", 1)
    with pytest.raises(NotAuthorisedError, match="revoked"):
        client.assign("bearing", 1, device="press-7")


def test_live_clone_raises_an_alarm(server: Server, client: FleetClient, public: FleetPublic) -> None:
    card = enrol(client, public, "press-7")
    check_in(card, server, public)
    clone = Card(card.identity)
    for _ in range(20):  # past the ceiling both share
        check_in(card, server, public)
    check_in(clone, server, public)
    assert client.device("press-7")["alarms"] == 1


def test_re_key_replaces_the_provisioned_psk(server: Server, client: FleetClient, public: FleetPublic) -> None:
    card = enrol(client, public, "press-7")
    factory = card.identity
    check_in(card, server, public)
    keys = [PublicKey(k.suite, k.public) for k in public.session]
    reply = card.device().re_key(2, os.urandom(64), servers=keys, send=FleetExchange(server.base))
    assert reply.status is Status.OK
    assert [g["pending"] for g in client.device("press-7")["generations"]] == [False, True]
    check_in(card, server, public)
    assert [g["suite"] for g in client.device("press-7")["generations"]] == [2]
    with pytest.raises(RefusedByServerError):  # whoever kept the factory's record has nothing
        check_in(Card(factory), server, public)


def test_re_key_to_a_known_public_key_is_denied(server: Server, client: FleetClient, public: FleetPublic) -> None:
    one, other = enrol(client, public, "press-7"), enrol(client, public, "press-8")
    keys = [PublicKey(k.suite, k.public) for k in public.session]
    check_in(one, server, public)
    taken = other.identity.current.seed
    reply = one.device().re_key(1, taken, servers=keys, send=FleetExchange(server.base))
    assert reply.status is Status.DENIED


def test_restored_registry_kills_recorded_requests(world: World, tmp_path: Path) -> None:
    with serving(world.data.path) as server:
        client = world.client(server)
        public = client.public()
        card = enrol(client, public, "press-7")
        check_in(card, server, public)
        assert server.stop() == 0
    backup = tmp_path / "backup.db"
    with sqlite3.connect(world.data.database) as source, sqlite3.connect(backup) as copy:
        source.backup(copy)
    copy.close()
    source.close()
    with serving(world.data.path) as server:
        recorded = raw_request(card, public, 40, fleet_world.report())
        FleetExchange(server.base)(recorded.m1)
        server.stop()
    for leftover in world.data.path.glob("fleet.db*"):
        leftover.unlink()
    shutil.copy(backup, world.data.database)
    world.data.database.chmod(0o600)
    assert run("fleet", "restored", "--data", str(world.data.path)).returncode == 0
    with serving(world.data.path) as server:
        assert recorded.open_reply(FleetExchange(server.base)(recorded.m1)).status is Status.STALE
        assert check_in(card, server, public).status is Status.OK  # one extra round trip inside


def test_restore_rule_needs_a_stopped_server(world: World, server: Server) -> None:
    assert server.process.poll() is None
    assert run("fleet", "restored", "--data", str(world.data.path)).returncode == TemporaryError.exit_code


def test_same_key_enrolled_twice_is_refused(client: FleetClient, public: FleetPublic) -> None:
    key = PrivateKey(1, os.urandom(32)).public
    first = fleet_world.record("press-7", key, bytes(32), public)
    assert client.enrol(first)["new"] is True
    assert client.enrol(first)["new"] is False
    with pytest.raises(RefusedError, match="already enrolled as press-7"):
        client.enrol(fleet_world.record("press-8", key, bytes(32), public))
    other = PrivateKey(1, os.urandom(32)).public
    with pytest.raises(RefusedError, match="taken"):
        client.enrol(fleet_world.record("press-7", other, bytes(32), public))


def test_record_sealed_to_another_fleet_is_refused(client: FleetClient, public: FleetPublic, tmp_path: Path) -> None:
    stranger = DataDirectory(tmp_path / "other").create("http://127.0.0.1:1", now=0)
    key = PrivateKey(1, os.urandom(32)).public
    with pytest.raises(RefusedError, match="does not have"):
        client.enrol(fleet_world.record("press-7", key, bytes(32), stranger))
    assert client.devices() == []
    assert public.enrol.raw != stranger.enrol.raw


def test_withdrawn_release_never_gets_a_key(
    world: World, server: Server, client: FleetClient, public: FleetPublic
) -> None:
    one, two = make_bundle("bearing", 1), make_bundle("bearing", 2)
    world.publish(client, one)
    world.publish(client, two)
    card = enrol(client, public, "press-7")
    client.assign("bearing", 1, device="press-7")
    assert [k.release for k in orders(card, server, public).keys] == [1]
    world.publisher.unlist(one)
    client.publish(world.publisher.publication())
    found = orders(card, server, public)
    assert (found.assignments, found.keys) == ([], [])
    assert "withdrawn" in client.device("press-7")["orders"][0]["blocked"]
    with pytest.raises(NotAuthorisedError, match="withdrawn"):
        client.ticket("press-7", "bearing", 1)
    with pytest.raises(RefusedError, match="not listed"):
        client.assign("bearing", 1, group="line-1")


def test_release_below_the_floor_gets_no_key(
    world: World, server: Server, client: FleetClient, public: FleetPublic
) -> None:
    world.publish(client, make_bundle("bearing", 1))
    card = enrol(client, public, "press-7")
    client.assign("bearing", 1, device="press-7")
    world.publish(client, make_bundle("bearing", 2), min_rel=2)
    assert orders(card, server, public).keys == []
    with pytest.raises(RefusedError, match="lowest release allowed"):
        client.assign("bearing", 1, group="line-1")


def test_cross_hardware_install_gets_no_key(
    world: World, server: Server, client: FleetClient, public: FleetPublic
) -> None:
    world.publish(client, make_bundle("bearing", 1), hw=["pi-5"])
    wrong, right = enrol(client, public, "old"), enrol(client, public, "new", hardware="pi-5")
    client.assign("bearing", 1, group="line-1")
    assert orders(wrong, server, public).keys == []
    assert [k.release for k in orders(right, server, public).keys] == [1]


def test_own_assignment_wins_over_the_group(
    world: World, server: Server, client: FleetClient, public: FleetPublic
) -> None:
    for release in (1, 2):
        world.publish(client, make_bundle("bearing", release))
    card, other = enrol(client, public, "press-7"), enrol(client, public, "press-8", group="line-2")
    client.assign("bearing", 2, group="line-1")
    client.assign("bearing", 1, device="press-7")
    assert [a.release for a in orders(card, server, public).assignments] == [1]
    assert orders(other, server, public).assignments == []
    client.unassign("bearing", device="press-7")
    assert [a.release for a in orders(card, server, public).assignments] == [2]


def test_ended_assignment_gets_no_key(world: World, server: Server, client: FleetClient, public: FleetPublic) -> None:
    world.publish(client, make_bundle("bearing", 1))
    card = enrol(client, public, "press-7")
    client.assign("bearing", 1, device="press-7", not_after=int(time.time()) - 1)
    assert orders(card, server, public).keys == []


def test_ticket_opens_on_its_device_only(world: World, client: FleetClient, public: FleetPublic) -> None:
    bundle = make_bundle("bearing", 1)
    world.publish(client, bundle)
    card, other = enrol(client, public, "press-7"), enrol(client, public, "press-8")
    ticket = client.ticket("press-7", "bearing", 1)
    own, foreign = card.identity.current, other.identity.current
    key = PrivateKey(1, own.seed)
    assert open_ticket(key, own.psk, ticket, model="bearing", release=1)[0] == bundle.ck
    with pytest.raises(RefusedError):
        open_ticket(PrivateKey(1, foreign.seed), foreign.psk, ticket, model="bearing", release=1)


def test_rotated_session_key_is_used_and_the_former_still_opens(
    world: World, server: Server, client: FleetClient, public: FleetPublic
) -> None:
    client.publish(world.publisher.publication())
    card = enrol(client, public, "press-7")
    done = run("fleet", "rotate", "session", "--data", str(world.data.path))
    assert done.returncode == 0, done.stderr
    rotated = client.public()
    assert rotated.session[0].public == public.session[1].public
    assert check_in(card, server, public).status is Status.OK
    assert check_in(card, server, rotated).status is Status.OK
    again = run("fleet", "rotate", "session", "--data", str(world.data.path))
    assert again.returncode == RefusedError.exit_code
    assert "locked out" in again.stderr
    assert run("fleet", "rotate", "session", "--force", "--data", str(world.data.path)).returncode == 0
    _wait_for_new_ring(card, server, public)


def _wait_for_new_ring(card: Card, server: Server, public: FleetPublic) -> None:
    """After two rotations the first key is gone; the server notices within seconds."""
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        try:
            check_in(card, server, public)
        except ServerKeyUnknownError:
            return
        time.sleep(0.2)
    pytest.fail("the destroyed session key still opens requests")

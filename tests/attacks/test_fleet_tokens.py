"""Who may do what on a fleet server, and that no secret lies where it should not."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import pytest
from tests.unit import fleet_world
from tests.unit.fleet_world import Server, World, check_in, enrol, make_bundle, run

from edgeseal.errors import EdgesealError, IntegrityError, NotAuthorisedError, RefusedError, UsageError
from edgeseal_host.fleet import schema
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.fleet.registry import SqlRegistry
from edgeseal_host.fleet.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable


world, server, client = fleet_world.world, fleet_world.server, fleet_world.client


# Tokens ------------------------------------------------------------------------------------------------------------


def new_token(world: World, scope: str) -> tuple[str, str]:
    file = world.scratch / f"{scope}.token"
    done = run("fleet", "token", "new", "--data", str(world.data.path), "--scope", scope, "--out", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    secret = file.read_text().strip()
    assert secret not in done.stdout + done.stderr
    return json.loads(done.stdout)["id"], secret


@pytest.mark.parametrize("scope", ["publish", "operate", "enrol"])
def test_token_reaches_its_scope_only(world: World, server: Server, scope: str) -> None:
    client = world.client(server, new_token(world, scope)[1])
    calls: dict[str, Callable[[], object]] = {
        "publish": lambda: client.missing("chunks", [bytes(32)]),
        "operate": client.devices,
        "enrol": lambda: client.enrol(b"no record"),
    }
    for needed, call in calls.items():
        if needed == scope:
            try:
                call()
            except NotAuthorisedError:
                pytest.fail("the token does not reach its own scope")
            except RefusedError:
                pass  # the body is nonsense, the token is fine
        else:
            with pytest.raises(NotAuthorisedError, match=f"this needs {needed}"):
                call()
    with pytest.raises(NotAuthorisedError, match="this needs admin"):
        client.request("DELETE", "devices/press-7", headers={})


def test_wrong_missing_and_revoked_tokens_are_refused(world: World, server: Server) -> None:
    name, secret = new_token(world, "operate")
    assert world.client(server, secret).devices() == []
    for wrong in (
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        "edgeseal_00000000_" + "A" * 43,
        "x",
        secret + "x",
    ):
        with pytest.raises(NotAuthorisedError, match="unknown, wrong or revoked"):
            world.client(server, wrong).devices()
    with pytest.raises(NotAuthorisedError, match="needs a token"):
        FleetClient(server.base).devices()
    assert run("fleet", "token", "revoke", "--data", str(world.data.path), name).returncode == 0
    with pytest.raises(NotAuthorisedError, match="unknown, wrong or revoked"):
        world.client(server, secret).devices()


def test_token_never_crosses_a_network_in_clear() -> None:
    with pytest.raises(UsageError, match="not encrypted"):
        FleetClient("http://fleet.example:8443", token="secret")
    FleetClient("http://127.0.0.1:8443", token="secret")


# Secrets -----------------------------------------------------------------------------------------------------------


def test_no_secret_in_database_log_metrics_or_public_files(world: World, server: Server, client: FleetClient) -> None:
    bundle = make_bundle("bearing", 1)
    world.publish(client, bundle)
    public = client.public()
    card = enrol(client, public, "press-7")
    client.assign("bearing", 1, group="line-1")
    check_in(card, server, public)
    client.ticket("press-7", "bearing", 1)
    with pytest.raises(EdgesealError):
        client.request("POST", "devices", body=b'{"record": "' + world.token.encode() + b'"}', headers={})
    metrics = client._pool.request("GET", f"{server.base}/metrics").data
    assert b'edgeseal_x1_exchanges_total{outcome="ok"} 1.0' in metrics
    server.stop()
    identity = card.identity.current
    secrets = {
        "ck": bundle.ck,
        "psk": identity.psk,
        "token": world.token.split("_", 2)[2].encode(),
        "data key": (world.data.secrets / "data.key").read_bytes(),
        "session seed": world.data.ring("session").keys[0].seed,
        "wrap seed": world.data.ring("wrap").keys[0].seed,
    }
    places = {"metrics": metrics, "log": server.log.read_bytes()}
    for file in world.data.path.rglob("*"):
        if file.is_file() and file.parent != world.data.secrets and file != world.data.admin_token:
            places[file.name] = file.read_bytes()
    assert {"fleet.db", "public.json", "timestamp.json"} <= set(places)
    for what, secret in secrets.items():
        forms = (secret, secret.hex().encode(), repr(secret).encode())
        for place, data in places.items():
            assert not any(form in data for form in forms), f"{what} in {place}"
    # Negative control: the scan finds what is there.
    assert identity.psk not in places["fleet.db"]
    assert bundle.table in places[bundle.manifest.table_sha256.hex()]


def test_stolen_database_opens_nothing_with_another_data_key(world: World, client: FleetClient, server: Server) -> None:
    enrol(client, client.public(), "press-7")
    server.stop()
    (world.data.secrets / "data.key").write_bytes(os.urandom(32))
    with pytest.raises(IntegrityError, match="another key"), world.data.open():
        pass
    with contextlib.closing(schema.open_database(world.data.database)) as database:
        registry = SqlRegistry(database, Vault(os.urandom(32)))  # the check at the door left out
        with pytest.raises(IntegrityError, match="belong together"):
            registry.current_generation("press-7")


def test_secret_files_are_for_the_owner_only(world: World) -> None:
    assert world.data.secrets.stat().st_mode & 0o777 == 0o700
    for file in [*world.data.secrets.iterdir(), world.data.database, world.data.admin_token]:
        assert file.stat().st_mode & 0o077 == 0, file


def test_init_never_overwrites_a_fleet(world: World) -> None:
    before = (world.data.secrets / "session.ring").read_bytes()
    done = run("fleet", "init", "--data", str(world.data.path), "--url", "http://127.0.0.1:1")
    assert done.returncode == RefusedError.exit_code
    assert (world.data.secrets / "session.ring").read_bytes() == before

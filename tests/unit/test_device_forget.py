"""`edgeseal device forget`: asked for twice, allowed to admins only, written to the log, and complete."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.unit.fleet_world import Card, Server, World, check_in, enrol, make_bundle, run, serving

from edgeseal.errors import EdgesealError, NotAuthorisedError, UsageError
from edgeseal.session.device import RefusedByServerError
from edgeseal.session.messages import Status
from edgeseal_host.cli import device as device_command
from edgeseal_host.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    with serving(world.data.path) as found:
        world.publish(world.client(found), make_bundle("bearing", 1))
        yield found


@pytest.fixture
def card(world: World, server: Server) -> Iterator[Card]:
    client = world.client(server)
    made = enrol(client, client.public(), "press-7")
    client.assign("bearing", 1, device="press-7")
    yield made
    if client.devices():
        client.forget("press-7")


def forget(world: World, server: Server, *more: str, token: Path | None = None) -> tuple[str, ...]:
    return ("device", "forget", "press-7", "--to", server.base, "--token", str(token or world.data.admin_token), *more)


def test_forgotten_device_is_a_stranger_and_leaves_nothing(world: World, server: Server, card: Card) -> None:
    client = world.client(server)
    public = client.public()
    assert check_in(card, server, public).status is Status.OK
    done = run(*forget(world, server, "--yes", "--json"))
    assert json.loads(done.stdout) == {"device": "press-7", "forgotten": True}
    with pytest.raises(RefusedByServerError):
        check_in(card, server, public)
    assert (client.devices(), client.assignments()) == ([], [])
    with closing(sqlite3.connect(world.data.database)) as connection:
        for table in ("device", "generation", "assignment"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608 - our own names
    again = enrol(client, public, "press-7")
    assert check_in(again, server, public).status is Status.OK


def test_log_says_who_erased_which_device(world: World, server: Server, card: Card) -> None:
    assert card.identity.device == "press-7"
    assert run(*forget(world, server, "--yes")).returncode == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    entry = next(line for line in reversed(lines) if line["event"] == "device forgotten")
    assert entry["device"] == "press-7"
    assert entry["token"] == world.token.split("_")[1]
    assert world.token not in server.log.read_text()


def test_without_a_terminal_and_without_yes_nothing_is_erased(world: World, server: Server, card: Card) -> None:
    assert card.identity.device == "press-7"
    done = run(*forget(world, server))
    assert done.returncode == UsageError.exit_code
    assert "--yes" in done.stderr
    assert [d["name"] for d in world.client(server).devices()] == ["press-7"]


@pytest.mark.parametrize(("typed", "code"), [("press-7", 0), ("press-8", EdgesealError.exit_code), ("y", 1), ("", 1)])
def test_person_types_the_name(
    world: World, server: Server, card: Card, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    assert card.identity.device == "press-7"
    monkeypatch.setattr(device_command, "_nobody_to_ask", lambda: False)
    result = CliRunner().invoke(main, list(forget(world, server)), input=f"{typed}\n")
    assert result.exit_code == code, result.output
    assert "last seen never" in result.stderr
    assert len(world.client(server).devices()) == (code != 0)


@pytest.mark.parametrize("scope", ["operate", "enrol", "publish"])
def test_other_tokens_may_not(world: World, server: Server, card: Card, tmp_path: Path, scope: str) -> None:
    assert card.identity.device == "press-7"
    token = tmp_path / "token"
    made = run("fleet", "token", "new", "--data", str(world.data.path), "--scope", scope, "--out", str(token))
    assert made.returncode == 0, made.stderr
    assert run(*forget(world, server, "--yes", token=token)).returncode == NotAuthorisedError.exit_code
    assert len(world.client(server).devices()) == 1


def test_unknown_device_is_named(world: World, server: Server) -> None:
    done = run(*forget(world, server, "--yes"))
    assert done.returncode == NotAuthorisedError.exit_code
    assert "press-7" in done.stderr
    assert "device list" in done.stderr

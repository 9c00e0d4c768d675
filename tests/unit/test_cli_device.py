"""`edgeseal device` as a person types it, against a real fleet server: enrol once, list, show, revoke."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import publisher_world
from tests.unit.publisher_world import Publisher, edgeseal, ok, refused

from edgeseal.durable import write_atomic
from edgeseal.enrolment import Grant, Record, Request
from edgeseal.errors import TemporaryError
from edgeseal.suite import PrivateKey
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.repository.verify import trust_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


world, offline = publisher_world.world, publisher_world.offline


def names(world: Publisher) -> list[str]:
    return [d["name"] for d in ok("device", "list", *world.to)["devices"]]


def everything_below(place: Path) -> bytes:
    return b"".join(p.read_bytes() for p in place.rglob("*") if p.is_file())


@pytest.mark.parametrize("suite", [1, 2])
def test_enrol_gives_the_device_what_it_needs_and_nobody_else(world: Publisher, suite: int) -> None:
    key = world.request(world.place / "r", suite=suite)
    out = world.place / "press-7.grant"
    result = edgeseal(
        *world.enrol_arguments(world.place / "r", "press-7", "--group", "line-1", *world.to, "--out", out)
    )
    assert result.exit_code == 0, result.output
    grant = Grant.open(key, out.read_bytes())
    assert (grant.device, grant.suite) == ("press-7", suite)
    assert trust_root(grant.root).signed.version == 1
    secrets = (grant.psk, grant.k_rng)
    assert grant.psk != grant.k_rng
    for secret in secrets:
        assert secret.hex() not in result.output
        assert secret not in everything_below(world.place)
    shown = ok("device", "show", "press-7", *world.to)
    assert shown["group"] == "line-1"
    assert grant.psk.hex() not in json.dumps(shown)
    assert names(world) == ["press-7"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert not list(world.place.glob(".press*"))


def test_two_enrolments_have_different_secrets(world: Publisher) -> None:
    grants = []
    for i in (1, 2):
        key = world.request(world.place / f"r{i}", seed=bytes([i]) * 32)
        out = world.place / f"g{i}"
        ok(*world.enrol_arguments(world.place / f"r{i}", f"press-{i}", *world.to, "--out", out))
        grants.append(Grant.open(key, out.read_bytes()))
    assert len({s for g in grants for s in (g.psk, g.k_rng)}) == 4


def test_same_request_key_is_refused_a_second_time(world: Publisher) -> None:
    """Two devices with one key are clones, or their random source is dead."""
    world.request(world.place / "r")
    ok(*world.enrol_arguments(world.place / "r", "press-7", *world.to, "--out", world.place / "g1"))
    for name in ("press-8", "press-7"):
        again = world.enrol_arguments(world.place / "r", name, *world.to, "--out", world.place / "g2")
        result = edgeseal(*again)
        assert result.exit_code in {3, 4}, result.output
        assert not (world.place / "g2").exists()
    assert names(world) == ["press-7"]
    assert not list(world.place.glob(".g*"))


def test_taken_name_is_refused(world: Publisher) -> None:
    world.request(world.place / "r1")
    world.request(world.place / "r2", seed=bytes(32))
    ok(*world.enrol_arguments(world.place / "r1", "press-7", *world.to, "--out", world.place / "g1"))
    taken = edgeseal(*world.enrol_arguments(world.place / "r2", "press-7", *world.to, "--out", world.place / "g2"))
    assert taken.exit_code in {2, 3, 4}, taken.output
    assert not (world.place / "g2").exists()


def test_record_in_a_file_is_registered_later(world: Publisher) -> None:
    key = world.request(world.place / "r")
    record = world.place / "press-7.record"
    files = ("--record", record, "--out", world.place / "g")
    assert "device register" in edgeseal(*world.enrol_arguments(world.place / "r", "press-7", *files)).output
    assert names(world) == []
    grant = Grant.open(key, (world.place / "g").read_bytes())
    assert grant.psk not in record.read_bytes()
    assert Record.from_bytes(record.read_bytes()).device == "press-7"
    ok("device", "register", record, *world.to)
    ok("device", "register", record, *world.to)  # the same record twice is one device
    assert names(world) == ["press-7"]
    record.write_bytes(record.read_bytes()[:-1])
    refused(2, "device", "register", record, *world.to)


def test_disk_that_fills_up_leaves_no_device_without_a_grant(world: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    world.request(world.place / "r")
    arguments = world.enrol_arguments(world.place / "r", "press-7", *world.to, "--out", world.place / "g")

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("edgeseal_host.enrol.write_atomic", full)
        assert "No space left" in refused(5, *arguments)
    assert names(world) == []
    ok(*arguments)
    assert names(world) == ["press-7"]


@pytest.mark.parametrize("reached", [True, False])
def test_lost_answer_is_made_good_by_the_same_command(
    world: Publisher, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    key = world.request(world.place / "r")
    arguments = world.enrol_arguments(world.place / "r", "press-7", *world.to, "--out", world.place / "g")
    enrol, sent = FleetClient.enrol, []

    def lost(client: FleetClient, record: bytes) -> dict[str, Any]:
        sent.append(record)
        if reached:
            enrol(client, record)
        raise TemporaryError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(FleetClient, "enrol", lost)
        assert "same command again" in refused(5, *arguments)
    assert not (world.place / "g").exists()
    assert names(world) == (["press-7"] if reached else [])
    ok(*arguments)
    assert names(world) == ["press-7"]
    assert Grant.open(key, (world.place / "g").read_bytes()).device == "press-7"
    assert world.client().enrol(sent[0])["new"] is False, "the grant that was kept is not the one that was registered"
    assert not list(world.place.glob(".g*"))


def test_lost_answer_of_another_enrolment_is_not_taken_up(world: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world.request(world.place / "r")
    out = ("--out", world.place / "g")

    def lost(_client: FleetClient, _record: bytes) -> dict[str, Any]:
        raise TemporaryError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(FleetClient, "enrol", lost)
        refused(5, *world.enrol_arguments(world.place / "r", "press-7", *world.to, *out))
    ok(*world.enrol_arguments(world.place / "r", "press-8", *world.to, *out))
    assert Grant.open(key, (world.place / "g").read_bytes()).device == "press-8"


def test_server_that_refuses_leaves_no_grant(world: Publisher) -> None:
    world.request(world.place / "r")
    out = ("--out", world.place / "g")
    arguments = world.enrol_arguments(world.place / "r", "press-7")
    (world.place / "bad.token").write_text("not-a-token-1234\n")
    refused(4, *arguments, *out, *world.to[:2], "--token", world.place / "bad.token")
    assert not (world.place / "g").exists()
    assert not list(world.place.glob(".g*"))
    ok(*arguments, *out, *world.to)


@pytest.mark.parametrize("wrong", ["Press-7", "", "a b", "../x", "x" * 65])
def test_names_that_no_device_can_have(offline: Publisher, wrong: str) -> None:
    offline.request(offline.place / "r")
    files = ("--record", offline.place / "record", "--out", offline.place / "g")
    assert "a-z 0-9" in refused(2, *offline.enrol_arguments(offline.place / "r", wrong, *files))
    assert not (offline.place / "g").exists()
    assert not (offline.place / "record").exists()


def test_group_longer_than_the_format_allows(offline: Publisher) -> None:
    offline.request(offline.place / "r")
    files = ("--group", "g" * 300, "--record", offline.place / "record", "--out", offline.place / "g")
    refused(2, *offline.enrol_arguments(offline.place / "r", "press-7", *files))


def test_requests_that_are_none(offline: Publisher) -> None:
    key = PrivateKey(1, bytes(32)).public
    good = Request(1, 1, key.raw, "s", "pi-4", "0.1", []).to_bytes()
    files = ("--record", offline.place / "record", "--out", offline.place / "g")
    cases: dict[str, tuple[bytes, set[int]]] = {
        "empty": (b"", {3}),
        "text": (b"hello", {3}),
        "truncated": (good[:-1], {3}),
        "trailing": (good + b"\0", {3}),
        "huge": (bytes(100_000), {3}),
        "wrong-key": (Request(1, 1, key.raw[:-1], "s", "pi-4", "0.1", []).to_bytes(), {3}),
        "newer": (Request(2, 1, key.raw, "s", "pi-4", "0.1", []).to_bytes(), {6}),
        "suite": (Request(1, 77, key.raw, "s", "pi-4", "0.1", []).to_bytes(), {3, 6}),
    }
    for name, (data, codes) in cases.items():
        request = offline.place / name
        write_atomic(request, data)
        result = edgeseal(*offline.enrol_arguments(request, "press-7", *files))
        assert result.exit_code in codes, (name, result.output)
        assert not (offline.place / "g").exists(), name


def test_root_or_fleet_file_that_is_none(offline: Publisher) -> None:
    offline.request(offline.place / "r")
    root, public = offline.root.read_bytes(), offline.public.read_bytes()
    unsigned = json.loads(root)
    unsigned["signatures"] = []
    junk = offline.place / "junk.json"
    files: tuple[Any, ...] = ("--record", offline.place / "record", "--out", offline.place / "g")
    for option, data in (
        ("--root", b"{}"),
        ("--root", json.dumps(unsigned).encode()),
        ("--root", root[:-100]),
        ("--root", b" " * 600_000),
        ("--root", public),
        ("--fleet", b"{}"),
        ("--fleet", root),
        ("--fleet", public[:-100]),
    ):
        junk.write_bytes(data)
        result = edgeseal(*offline.enrol_arguments(offline.place / "r", "press-7", option, junk, *files))
        assert result.exit_code in {2, 3}, (option, data[:40], result.output, result.exception)
        assert not (offline.place / "g").exists()


def test_grant_is_never_written_over(offline: Publisher) -> None:
    offline.request(offline.place / "r")
    (offline.place / "g").write_bytes(b"an earlier grant")
    files = ("--record", offline.place / "record", "--out", offline.place / "g")
    assert "there already" in refused(2, *offline.enrol_arguments(offline.place / "r", "press-7", *files))
    assert (offline.place / "g").read_bytes() == b"an earlier grant"


def test_enrol_without_a_place_for_the_record(offline: Publisher) -> None:
    offline.request(offline.place / "r")
    arguments = offline.enrol_arguments(offline.place / "r", "press-7", "--out", offline.place / "g")
    assert "--to URL" in refused(2, *arguments)
    assert not list(offline.place.glob(".g*"))
    assert not (offline.place / "g").exists()


def test_revoked_device_is_shown_as_such(world: Publisher) -> None:
    world.request(world.place / "r")
    ok(*world.enrol_arguments(world.place / "r", "press-7", *world.to, "--out", world.place / "g"))
    assert "revoked" in edgeseal("device", "revoke", "press-7", "--reason", "stolen", *world.to).output
    assert ok("device", "show", "press-7", *world.to)["revoked"]
    assert "press-7" in edgeseal("device", "list", *world.to).output
    ok("device", "revoke", "press-7", "--reason", "stolen", *world.to)  # again: no harm


def test_device_that_nobody_knows(world: Publisher) -> None:
    for command in (("show",), ("revoke", "--reason", "x")):
        said = refused(4, "device", command[0], "nobody", *command[1:], *world.to)
        assert "nobody" in said
    assert FleetClient(world.base).url == world.base

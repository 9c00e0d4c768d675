"""A clumsy operator: two servers, a busy port, wrong owners and modes, an old database. Each gets reason and hint."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tests.unit import fleet_world
from tests.unit.fleet_world import Server, World, check_in, enrol, make_bundle, orders, run, serving
from tuf.api.metadata import Metadata, Root, Timestamp

from edgeseal.errors import IntegrityError, NotAuthorisedError, RefusedError, TemporaryError, UsageError
from edgeseal.session.messages import Status
from edgeseal.trust.fetch_http import HttpFetcher
from edgeseal.trust.trust import Trust
from edgeseal_host.fleet import preflight
from edgeseal_host.fleet.publishing import Publisher
from edgeseal_host.fleet.serve import _socket as listening
from edgeseal_host.repository.verify import Publication

NOBODY = 65_534


world = fleet_world.world


def serve(world: World, *more: str) -> subprocess.CompletedProcess[str]:
    """Start a server that must refuse to run."""
    listen = () if "--listen" in more else ("--listen", "127.0.0.1:0")
    return run("fleet", "serve", "--data", str(world.data.path), *listen, *more)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    assert "\nhint: " in done.stderr
    return done.stderr


# Two at once -------------------------------------------------------------------------------------------------------


def test_second_server_on_one_directory_is_refused_and_the_first_goes_on(world: World) -> None:
    with serving(world.data.path) as first:
        done = serve(world)
        assert done.returncode == TemporaryError.exit_code
        assert f"{world.data.path} is in use" in refusal(done)
        assert world.client(first).devices() == []
        for command in (("restored",), ("upgrade",), ("rotate-data-key",)):
            done = run("fleet", *command, "--data", str(world.data.path))
            assert done.returncode == TemporaryError.exit_code
            assert "is in use" in refusal(done)
        first.kill()
    with serving(world.data.path) as again:  # a killed server's lock is gone with it
        assert world.client(again).devices() == []


def test_busy_port_is_named(world: World) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as busy:
        port = busy.getsockname()[1]
        done = serve(world, "--listen", f"127.0.0.1:{port}")
    assert done.returncode == UsageError.exit_code
    assert f"127.0.0.1:{port}" in refusal(done)
    assert "another server" in done.stderr


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("192.0.2.7:8443", "does not have that address"),
        ("no.such.host.invalid:8443", "cannot listen"),
        ("8443", "HOST:PORT"),
        ("127.0.0.1:99999", "HOST:PORT"),
        ("127.0.0.1:https", "HOST:PORT"),
        ("", "HOST:PORT"),
    ],
)
def test_address_that_cannot_be_listened_on_is_explained(listen: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        listening(listen)
    assert words in str(caught.value)


# Owners and modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["secrets", "secrets/session.ring", "secrets/data.key", "fleet.db", "admin.token"])
def test_secret_that_others_may_read_is_named(world: World, name: str) -> None:
    place = world.data.path / name
    place.chmod(place.stat().st_mode | 0o004)
    with pytest.raises(NotAuthorisedError, match="is open to other users") as caught:
        preflight.check_access(world.data)
    assert str(place) in caught.value.message


def test_hint_about_open_modes_closes_them(world: World) -> None:
    for place in (world.data.database, world.data.secrets / "wrap.ring"):
        place.chmod(0o644)
    done = serve(world)
    assert done.returncode == NotAuthorisedError.exit_code
    hint = refusal(done).split("hint: ")[1].split(";")[0]
    subprocess.run(hint, shell=True, check=True)  # noqa: S602 - as a person would type it
    preflight.check_access(world.data)


def as_another_user(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as `nobody`, who may import nothing: so everything is imported before."""
    code = (
        "import os, sys, uvicorn.loops.uvloop, uvicorn.protocols.http.httptools_impl, uvicorn.lifespan.on\n"
        "from edgeseal_host.cli import main, fleet, fleet_upkeep\n"
        "from edgeseal_host.fleet import app, serve\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "fleet", *arguments, "--data", str(world.data.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("name", ["", "secrets", "objects", "fleet.db", "secrets/wrap.ring"])
def test_directory_of_another_user_is_named_with_both_users(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        world = World.make(Path(folder))
        for place in (world.data.path, *world.data.path.rglob("*")):
            os.chown(place, NOBODY, NOBODY)
        os.chown(world.data.path / name, 0, 0)
        command = ("serve", "--listen", "127.0.0.1:0") if name else ("restored",)
        done = as_another_user(world, *command)
        assert done.returncode == NotAuthorisedError.exit_code, done.stderr
        assert f"may not use {world.data.path / name}".rstrip("/") in refusal(done)
        assert "user root" in done.stderr
        assert "user nobody" in done.stderr


def test_directory_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        done = run("fleet", "serve", "--data", str(place), "--listen", "127.0.0.1:0")
        assert done.returncode == UsageError.exit_code
        assert "edgeseal fleet init" in refusal(done)
        assert list(tmp_path.iterdir()) == []


def test_full_disk_is_said_before_a_device_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SPARE", 2**62)
    with pytest.raises(TemporaryError, match="bytes are free below"):
        preflight.check_space(world.data)


# An older database -------------------------------------------------------------------------------------------------


def back_up(world: World) -> None:
    with closing(sqlite3.connect(world.data.database)) as source, closing(sqlite3.connect(copy_of(world))) as target:
        source.backup(target)


def restore(world: World) -> None:
    for leftover in world.data.path.glob("fleet.db*"):
        leftover.unlink()
    shutil.copy(copy_of(world), world.data.database)
    world.data.database.chmod(0o600)


def copy_of(world: World) -> Path:
    return world.data.path.parent / "backup.db"


def device(world: World, server: Server, place: Path) -> Trust:
    return Trust(place, bootstrap=world.publisher.root_bytes(), fetcher=HttpFetcher(server.base))


def test_older_database_is_refused_until_restored_has_caught_up(world: World, tmp_path: Path) -> None:
    first = world.publisher.root_bytes()
    with serving(world.data.path) as server:
        client = world.client(server)
        one, two = make_bundle("bearing", 1), make_bundle("pump", 1)
        world.publish(client, one)
        client.assign("bearing", 1, group="line-1")
        client.assign("bearing", 1, group="line-2")
        public = client.public()
        card = enrol(client, public, "press-7")
        check_in(card, server, public)
        back_up(world)
        world.publish(client, two)
        client.assign("pump", 1, group="line-1")
        trust = Trust(tmp_path / "trust", bootstrap=first, fetcher=HttpFetcher(server.base))
        trust.refresh(models=["bearing", "pump"])
        check_in(card, server, public)
        server.stop()
    restore(world)
    before = (world.data.path / "objects/metadata/timestamp.json").read_bytes()
    done = serve(world)
    assert done.returncode == RefusedError.exit_code
    assert "came from a backup" in refusal(done)
    assert "edgeseal fleet restored" in done.stderr
    assert (world.data.path / "objects/metadata/timestamp.json").read_bytes() == before

    found = json.loads(run("fleet", "restored", "--data", str(world.data.path), "--json").stdout)
    assert found == {"devices": 1, "changed": ["model-pump", "targets"], "without_key": [two.path]}
    with serving(world.data.path) as server:
        client = world.client(server)
        versions = Trust(tmp_path / "trust", bootstrap=first, fetcher=HttpFetcher(server.base))
        versions.refresh(models=["bearing", "pump"])  # a device that saw the newer state is not asked to go back
        assert check_in(card, server, public).status is Status.OK
        client.assign("pump", 1, device="press-7")
        assert [k.model for k in orders(card, server, public).keys] == ["bearing"]
        client.publish(world.publisher.publication(), world.envelope(two))  # the key that was lost, sent again
        assert [k.model for k in orders(card, server, public).keys] == ["bearing", "pump"]
        world.publish(client, make_bundle("pump", 2))
        versions.refresh(models=["pump"])
    assert "their keys must be sent again" in restored_text(world)


def restored_text(world: World) -> str:
    """What a person reads, for the same backup once more."""
    restore(world)
    return run("fleet", "restored", "--data", str(world.data.path)).stdout


def test_new_roots_since_the_backup_are_followed(world: World) -> None:
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), {})
    back_up(world)
    new = CryptoSigner.generate_mldsa()
    root = world.publisher.root
    for number in (2, 3):
        root.version = number
        root.revoke_key(root.roles["root"].keyids[0], "root")
        root.add_key(new.public_key, "root")
        signed: Metadata[Root] = Metadata(root)
        signed.sign(new)
        signed.sign(world.publisher.root_key, append=True)
        with world.data.open() as fleet:
            fleet.publisher.publish(Publication(roots=(signed.to_bytes(),)), {})
        world.publisher.root_key, new = new, CryptoSigner.generate_mldsa()
    restore(world)
    with world.data.open() as fleet:
        assert fleet.publisher.is_behind()
        found = fleet.publisher.catch_up()
        assert found is not None
        assert found["versions"]["root"] == 3
        assert not fleet.publisher.is_behind()
        assert fleet.publisher.catch_up() is None


def newer_files(world: World) -> Path:
    """A registry from before the publication that the public files have; returns their folder."""
    back_up(world)
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), {})
    restore(world)
    return world.data.path / "objects" / "metadata"


def test_public_files_that_somebody_changed_are_not_taken_over(world: World) -> None:
    metadata = newer_files(world)
    targets = (metadata / "1.targets.json").read_bytes()
    (metadata / "1.targets.json").write_bytes(targets + b" ")
    with world.data.open() as fleet, pytest.raises(IntegrityError, match="not the one that was signed"):
        fleet.publisher.catch_up()
    (metadata / "1.targets.json").write_bytes(targets)
    forged = Metadata[Timestamp].from_bytes((metadata / "timestamp.json").read_bytes())
    forged.signed.version += 7
    forged.sign(CryptoSigner.generate_mldsa())
    (metadata / "timestamp.json").write_bytes(forged.to_bytes())
    with world.data.open() as fleet:
        with pytest.raises(IntegrityError, match="is not signed by the key that root names"):
            fleet.publisher.catch_up()
        published = fleet.publisher.published()
        assert published is not None
        assert published.targets is None


def test_registry_that_is_not_behind_is_served(world: World) -> None:
    newer_files(world)
    with world.data.open() as fleet:
        assert isinstance(fleet.publisher, Publisher)
        fleet.publisher.catch_up()
    with serving(world.data.path) as server:
        assert world.client(server).devices() == []

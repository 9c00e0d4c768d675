"""What the fleet server publishes, seen by the device's own code: TUF refresh, objects, root rotation, commands."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from securesystemslib.signer import CryptoSigner
from tests.unit import fleet_world
from tests.unit.fleet_world import Server, World, enrol, make_bundle, run, serving
from tuf.api.metadata import Metadata, Root

from edgeseal.errors import RefusedError, UsageError
from edgeseal.manifest import Manifest
from edgeseal.servers import TARGET_PATH, FleetServers
from edgeseal.transport.objects import HttpObjects
from edgeseal.trust.fetch_http import HttpFetcher
from edgeseal.trust.trust import Trust
from edgeseal_host.repository.verify import Publication

if TYPE_CHECKING:
    from pathlib import Path


world, server = fleet_world.world, fleet_world.server


def device_trust(world: World, server: Server, tmp_path: Path, root: bytes | None = None) -> Trust:
    bootstrap = world.publisher.root_bytes() if root is None else root
    return Trust(tmp_path / "trust", bootstrap=bootstrap, fetcher=HttpFetcher(server.base))


def test_device_verifies_and_fetches_what_was_published(world: World, server: Server, tmp_path: Path) -> None:
    bundle = make_bundle("bearing", 1)
    world.publish(world.client(server), bundle)
    trust = device_trust(world, server, tmp_path)
    trust.refresh(models=["bearing"], paths=[TARGET_PATH])
    manifest = Manifest.from_bytes(trust.fetch_target(bundle.path))
    assert manifest == bundle.manifest
    servers = FleetServers.from_bytes(trust.fetch_target(TARGET_PATH))
    assert [k.public for k in servers.keys] == [k.public for k in world.data.public().session]
    objects = HttpObjects(server.base)
    table = b"".join(objects.fetch("tables", manifest.table_sha256, offset=0, length=manifest.table_length))
    assert table == bundle.table
    for name, stored in bundle.chunks.items():
        rest = b"".join(objects.fetch("chunks", name, offset=1000, length=len(stored)))
        assert rest == stored[1000:]


def test_unchanged_poll_is_a_304(world: World, server: Server, tmp_path: Path) -> None:
    world.client(server).publish(world.publisher.publication())
    trust = device_trust(world, server, tmp_path)
    trust.refresh()
    before = _answers(world, server)
    trust.refresh()
    after = _answers(world, server)
    assert after["3xx"] - before["3xx"] == 1
    assert after["2xx"] == before["2xx"]


def _answers(world: World, server: Server) -> dict[str, int]:
    text = world.client(server)._pool.request("GET", f"{server.base}/metrics").data.decode()
    found = {"2xx": 0, "3xx": 0}
    for status in found:
        line = f'edgeseal_http_requests_total{{part="metadata",status="{status}"}} '
        if line in text:
            found[status] = int(float(text.split(line)[1].split("\n")[0]))
    return found


def test_root_rotation_reaches_devices(world: World, server: Server, tmp_path: Path) -> None:
    client = world.client(server)
    client.publish(world.publisher.publication())
    first = world.publisher.root_bytes()
    device_trust(world, server, tmp_path).refresh()
    new_key = CryptoSigner.generate_mldsa()
    root = world.publisher.root
    root.revoke_key(root.roles["root"].keyids[0], "root")
    root.add_key(new_key.public_key, "root")
    root.version = 2
    signed: Metadata[Root] = Metadata(root)
    signed.sign(new_key)
    with pytest.raises(RefusedError, match="0 valid of 1"):  # not by the old one
        client.publish(Publication(roots=(signed.to_bytes(),)))
    signed.sign(world.publisher.root_key, append=True)
    assert client.publish(Publication(roots=(signed.to_bytes(),)))["changed"] == ["root"]
    trust = device_trust(world, server, tmp_path, first)
    trust.refresh()
    assert trust.versions()["root"] == 2


def test_restarted_server_serves_the_same(world: World, tmp_path: Path) -> None:
    with serving(world.data.path) as server:
        world.publish(world.client(server), make_bundle("bearing", 1))
        assert server.stop() == 0
    # A kill between the commit and the pointer: the next start writes the pointer.
    pointer = world.data.path / "objects" / "metadata" / "timestamp.json"
    before = pointer.read_bytes()
    pointer.unlink()
    (pointer.parent / ".tmp-timestamp.json").write_bytes(b"half")
    with serving(world.data.path) as server:
        device_trust(world, server, tmp_path).refresh()
    assert pointer.read_bytes() == before
    assert not (pointer.parent / ".tmp-timestamp.json").exists()


# Commands ----------------------------------------------------------------------------------------------------------


def test_assign_and_list_as_a_person_types_it(world: World, server: Server) -> None:
    client = world.client(server)
    world.publish(client, make_bundle("bearing", 1))
    enrol(client, client.public(), "press-7")
    to = ("--to", server.base, "--token", str(world.data.admin_token))
    assert "group line-1: bearing release 1" in run("fleet", "assign", "bearing", "1", "--group", "line-1", *to).stdout
    one = run("fleet", "assign", "bearing", "1", "--device", "press-7", "--not-after", "2040-01-31", *to, "--json")
    assert json.loads(one.stdout)["not_after"] == 2_211_580_800
    listed = run("fleet", "assignments", *to)
    assert "2040-01-31" in listed.stdout
    assert len(json.loads(run("fleet", "assignments", *to, "--json").stdout)["assignments"]) == 2
    assert run("fleet", "unassign", "bearing", "--device", "press-7", *to).returncode == 0
    assert run("fleet", "unassign", "bearing", "--device", "press-7", *to).returncode == UsageError.exit_code
    wrong = run("fleet", "assign", "bearing", "9", "--group", "line-1", *to, "--json")
    assert wrong.returncode == RefusedError.exit_code
    assert json.loads(wrong.stdout)["error"] == "RefusedError"
    assert run("fleet", "assign", "bearing", "1", *to).returncode == UsageError.exit_code


def test_commands_on_a_directory_that_is_no_fleet(tmp_path: Path) -> None:
    data = str(tmp_path / "none")
    root = tmp_path / "root.json"
    root.write_bytes(b"{}")
    for command in (
        ("trust", str(root)),
        ("restored",),
        ("rotate", "wrap"),
        ("token", "list"),
        ("token", "revoke", "00000000"),
        ("token", "new", "--scope", "admin", "--out", str(tmp_path / "t")),
    ):
        done = run("fleet", *command, "--data", data)
        assert done.returncode == UsageError.exit_code, done.stderr
        assert "fleet init" in done.stderr
    assert not (tmp_path / "none").exists()


def test_root_file_that_is_no_root_is_refused(tmp_path: Path) -> None:
    world = World.make(tmp_path, trusted=False)
    file = tmp_path / "root.json"
    for content in (b"", b"{}", b"[" * 5000, world.publisher.publication().targets or b""):
        file.write_bytes(content)
        done = run("fleet", "trust", "--data", str(world.data.path), str(file))
        assert done.returncode == RefusedError.exit_code, done.stderr
        assert "Traceback" not in done.stderr


def test_trust_twice_is_once(world: World, tmp_path: Path) -> None:
    with world.data.open() as fleet:
        published = fleet.publisher.published()
    assert published is not None
    file = tmp_path / "root.json"
    file.write_bytes(published.root)
    assert run("fleet", "trust", "--data", str(world.data.path), str(file)).stdout == "root version 1 is trusted\n"


def test_forgotten_device_may_enrol_again(world: World, server: Server) -> None:
    client = world.client(server)
    public = client.public()
    enrol(client, public, "press-7")
    client.forget("press-7")
    assert client.devices() == []
    enrol(client, public, "press-7")
    assert [d["name"] for d in client.devices()] == ["press-7"]
    assert client.devices()[0]["enrolled_at"] <= time.time()

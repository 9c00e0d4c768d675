"""Uploads and publications: wrong bytes, missing parts, swapped keys, interruptions and kills."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from tests.unit import fleet_world
from tests.unit.fleet_world import Bundle, Publisher, Server, World, enrol, make_bundle, run, serving
from tests.unit.served_files import assert_consistent

from edgeseal import contentkey
from edgeseal.errors import (
    EdgesealError,
    IntegrityError,
    NotAuthorisedError,
    RefusedError,
    RollbackError,
    TemporaryError,
    UsageError,
)
from edgeseal.suite import PrivateKey
from edgeseal_host.fleet.data import DataDirectory
from edgeseal_host.fleet.objects import ObjectDirectory
from edgeseal_host.repository.verify import Publication

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal_host.fleet.client import FleetClient


world, server, client = fleet_world.world, fleet_world.server, fleet_world.client


def upload_request(server: Server, token: str, name: bytes, *, length: int, send: bytes, offset: int = 0) -> None:
    """Send the beginning of an upload and break the connection."""
    host = urlsplit(server.base)
    head = (
        f"PATCH /api/v1/uploads/chunks/{name.hex()} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Upload-Offset: {offset}\r\nUpload-Length: {length}\r\nContent-Length: {length - offset}\r\n\r\n"
    )
    with socket.create_connection((host.hostname or "", host.port or 0)) as line:
        line.sendall(head.encode() + send)
        time.sleep(0.3)


def go_on(client: FleetClient, name: bytes, content: bytes, offset: int) -> Any:
    """Send the rest, as soon as the server has noticed that the one before is gone."""
    headers = {"Upload-Offset": str(offset), "Upload-Length": str(len(content))}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(TemporaryError):
            return client.request("PATCH", f"uploads/chunks/{name.hex()}", body=content[offset:], headers=headers)
    raise AssertionError("the server never noticed that the connection before is gone")


def uploaded_bytes(client: FleetClient) -> int:
    text = client._pool.request("GET", f"{client.url}/metrics").data.decode()
    return int(float(text.split("\nedgeseal_uploaded_bytes_total ")[1].split("\n")[0]))


# Uploads -----------------------------------------------------------------------------------------------------------


def test_uploaded_wrong_bytes_are_refused_and_never_visible(
    world: World, server: Server, client: FleetClient, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"x" * 1000)
    name = hashlib.sha256(b"y" * 1000).digest()
    with pytest.raises(IntegrityError, match="their name says"):
        client.upload("chunks", name, wrong)
    assert client.missing("chunks", [name]) == [name]
    assert not list((world.data.path / "objects" / "incoming").iterdir())
    assert server.process.poll() is None


def test_interrupted_upload_resumes_where_it_stopped(
    world: World, server: Server, client: FleetClient, tmp_path: Path
) -> None:
    content = os.urandom(900_000)
    file = tmp_path / "chunk"
    file.write_bytes(content)
    name = hashlib.sha256(content).digest()
    upload_request(server, world.token, name, length=len(content), send=content[:400_000])
    assert client.missing("chunks", [name]) == [name]
    begun = client.partial["chunks", name.hex()]
    assert 0 < begun <= 400_000
    before = uploaded_bytes(client)
    told: list[int] = []
    client.upload("chunks", name, file, told.append)
    assert sum(told) == len(content)
    assert uploaded_bytes(client) - before == len(content) - begun
    assert client.missing("chunks", [name]) == []
    stored = (world.data.path / "objects" / "chunks" / name.hex()[:2] / name.hex()).read_bytes()
    assert stored == content


def test_client_goes_on_at_the_servers_offset(
    world: World, server: Server, client: FleetClient, tmp_path: Path
) -> None:
    """The first PATCH dies after the server is gone; the second is sent from the offset the new one reports."""
    content = os.urandom(600_000)
    file = tmp_path / "chunk"
    file.write_bytes(content)
    name = hashlib.sha256(content).digest()
    upload_request(server, world.token, name, length=len(content), send=content[:500_000])
    response = go_on(client, name, content, 500_000)
    assert json.loads(response.data) == {"stored": True}
    with pytest.raises(EdgesealError, match="stopped at 0"):
        client.request(
            "PATCH",
            f"uploads/chunks/{bytes(32).hex()}",
            body=b"x",
            headers={"Upload-Offset": "5", "Upload-Length": "6"},
        )


def test_poisoned_beginning_of_an_upload_is_sent_again(
    world: World, server: Server, client: FleetClient, tmp_path: Path
) -> None:
    content = os.urandom(300_000)
    file = tmp_path / "chunk"
    file.write_bytes(content)
    name = hashlib.sha256(content).digest()
    upload_request(server, world.token, name, length=len(content), send=b"\0" * 100_000)
    with pytest.raises(IntegrityError):
        go_on(client, name, content, 100_000)
    client.upload("chunks", name, file)
    assert client.missing("chunks", [name]) == []


def test_kill_during_uploads_loses_nothing_acknowledged(world: World, tmp_path: Path) -> None:
    acknowledged: list[bytes] = []
    for cut in (0.05, 0.3):
        answered = threading.Event()
        with serving(world.data.path) as server:
            client = world.client(server)
            stop = threading.Event()

            def uploading(
                client: FleetClient = client, stop: threading.Event = stop, answered: threading.Event = answered
            ) -> None:
                while not stop.is_set():
                    content = os.urandom(200_000)
                    file = tmp_path / "chunk"
                    file.write_bytes(content)
                    name = hashlib.sha256(content).digest()
                    try:
                        client.request(
                            "PATCH",
                            f"uploads/chunks/{name.hex()}",
                            body=content,
                            headers={"Upload-Offset": "0", "Upload-Length": str(len(content))},
                        )
                    except EdgesealError:
                        return
                    acknowledged.append(name)
                    answered.set()

            thread = threading.Thread(target=uploading)
            thread.start()
            assert answered.wait(30)
            time.sleep(cut)
            server.kill()
            stop.set()
            thread.join()
    assert acknowledged
    with serving(world.data.path) as server:
        assert world.client(server).missing("chunks", acknowledged) == []
    for name in acknowledged:
        stored = world.data.path / "objects" / "chunks" / name.hex()[:2] / name.hex()
        assert hashlib.sha256(stored.read_bytes()).digest() == name


def test_upload_headers_out_of_bounds_are_refused(client: FleetClient) -> None:
    where = f"uploads/chunks/{'a' * 64}"
    for offset, length in (
        ("0", "0"),
        ("0", str(2**40)),
        ("-1", "5"),
        ("5", "5"),
        ("x", "5"),
        ("9" * 30, "5"),
        ("", ""),
    ):
        with pytest.raises(UsageError):
            client.request("PATCH", where, body=b"abc", headers={"Upload-Offset": offset, "Upload-Length": length})
    for bad in ("chunks/../x", "other/" + "a" * 64, "chunks/" + "A" * 64, "chunks/" + "a" * 63):
        with pytest.raises(UsageError):
            client.request("PATCH", f"uploads/{bad}", body=b"abc", headers={"Upload-Offset": "0", "Upload-Length": "3"})
    with pytest.raises(UsageError, match="more than the announced"):
        client.request("PATCH", where, body=b"abcdef", headers={"Upload-Offset": "0", "Upload-Length": "3"})


def test_upload_stops_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = ObjectDirectory(tmp_path)
    objects.prepare()
    monkeypatch.setattr("edgeseal_host.fleet.objects.SPARE", 2**60)
    with pytest.raises(EdgesealError, match="must stay free"):
        objects.receive("chunks", bytes(32), offset=0, length=10)


# Publications ------------------------------------------------------------------------------------------------------


def test_second_publication_follows_the_first(world: World, client: FleetClient) -> None:
    first = world.publish(client, make_bundle("bearing", 1))
    assert first["without_key"] == []
    assert first["versions"]["timestamp"] == 1
    second = world.publish(client, make_bundle("bearing", 2))
    assert second["changed"] == ["model-bearing"]
    assert_consistent(world.data.path / "objects")


def test_same_publication_twice_is_one(world: World, client: FleetClient) -> None:
    world.publish(client, make_bundle("bearing", 1))
    again = client.publish(world.publisher.publication())
    assert again["changed"] == []
    assert again["versions"]["timestamp"] == 1


def test_publication_without_a_trusted_root_is_refused(tmp_path: Path) -> None:
    world = World.make(tmp_path, trusted=False)
    with serving(world.data.path) as server, pytest.raises(NotAuthorisedError, match="does not trust any root"):
        world.client(server).publish(world.publisher.publication())


def test_root_that_names_other_online_keys_is_refused(world: World, tmp_path: Path) -> None:
    other = World.make(tmp_path / "other", trusted=False)
    file = tmp_path / "root.json"
    file.write_bytes(Publisher(world.data.public()).root_bytes())
    done = run("fleet", "trust", "--data", str(other.data.path), str(file))
    assert done.returncode == NotAuthorisedError.exit_code
    assert "does not name this snapshot key" in done.stderr
    assert "repo stage" in done.stderr
    done = run("fleet", "trust", "--data", str(world.data.path), str(file))
    assert done.returncode == RefusedError.exit_code
    assert "trusts a root already" in done.stderr


def test_new_root_that_drops_the_online_keys_is_refused(world: World, client: FleetClient, tmp_path: Path) -> None:
    client.publish(world.publisher.publication())
    stranger = DataDirectory(tmp_path / "stranger").create("http://127.0.0.1:1", now=0)
    root = world.publisher.root
    root.revoke_key(root.roles["timestamp"].keyids[0], "timestamp")
    root.add_key(stranger.timestamp, "timestamp")
    root.version = 2
    with pytest.raises(NotAuthorisedError, match="does not name this timestamp key"):
        client.publish(Publication(roots=(world.publisher.root_bytes(),)))
    assert not (world.data.path / "objects/metadata/2.root.json").exists()


def test_metadata_signed_by_somebody_else_is_refused(world: World, client: FleetClient) -> None:
    thief = Publisher(world.data.public())
    with pytest.raises(IntegrityError, match="0 valid of 1"):
        client.publish(thief.publication())


def test_rolled_back_metadata_is_refused(world: World, client: FleetClient) -> None:
    world.publish(client, make_bundle("bearing", 1))
    old = world.publisher.publication()
    world.publish(client, make_bundle("bearing", 2))
    with pytest.raises(RollbackError):
        client.publish(old)


def test_release_without_its_table_is_refused(world: World, client: FleetClient) -> None:
    bundle = make_bundle("bearing", 1)
    client.upload_all("chunks", bundle.files(world.scratch)["chunks"])
    world.publisher.list_release(bundle)
    with pytest.raises(RefusedError, match="table of bearing release 1 is not on the server"):
        client.publish(world.publisher.publication(), world.envelope(bundle))
    assert not (world.data.path / "objects/metadata/timestamp.json").exists()


def test_release_with_a_missing_chunk_is_refused(world: World, client: FleetClient) -> None:
    bundle = make_bundle("bearing", 1)
    files = bundle.files(world.scratch)
    lost = next(iter(files["chunks"]))
    del files["chunks"][lost]
    client.upload_all("chunks", files["chunks"])
    client.upload_all("tables", files["tables"])
    world.publisher.list_release(bundle)
    with pytest.raises(RefusedError, match=lost.hex()):
        client.publish(world.publisher.publication(), world.envelope(bundle))


def test_swapped_envelope_is_refused(world: World, client: FleetClient) -> None:
    one, two = make_bundle("bearing", 1), make_bundle("bearing", 2)
    for bundle in (one, two):
        world.upload(client, bundle)
        world.publisher.list_release(bundle)
    publication = world.publisher.publication()
    with pytest.raises(IntegrityError):  # bound to its release
        client.publish(publication, {one.path: world.envelope(two)[two.path]})
    wrap = world.data.public().wrap
    wrong_key = contentkey.wrap(wrap, model="bearing", release=1, ck=two.ck)
    with pytest.raises(IntegrityError, match="commits to"):
        client.publish(publication, {one.path: wrong_key})
    stranger = PrivateKey(1, os.urandom(32)).public
    with pytest.raises(IntegrityError, match="wrap key this server does not have"):
        client.publish(publication, {one.path: contentkey.wrap(stranger, model="bearing", release=1, ck=one.ck)})
    with pytest.raises(RefusedError, match="no signed role lists"):
        client.publish(publication, {"models/bearing/9.cbor": wrong_key})
    assert not (world.data.path / "objects/metadata/timestamp.json").exists()


def test_manifest_of_another_model_is_refused(world: World, client: FleetClient) -> None:
    one = make_bundle("bearing", 1)
    world.upload(client, one)
    world.publisher.list_release(one)
    lie = make_bundle("bearing", 2)
    lie.manifest = make_bundle("engine", 2).manifest
    world.publisher.list_release(Bundle(one.manifest, one.table, one.chunks, one.ck))
    role = world.publisher.roles["model-bearing"]
    data = lie.manifest.to_bytes()
    target = role.targets[one.path]
    target.length, target.hashes = len(data), {"sha256": hashlib.sha256(data).hexdigest()}
    world.publisher.files[one.path] = data
    with pytest.raises(RefusedError, match="manifest of engine release 2"):
        client.publish(world.publisher.publication())


def test_withdrawn_release_cannot_come_back_with_other_content(world: World, client: FleetClient) -> None:
    one, other = make_bundle("bearing", 1), make_bundle("bearing", 1)
    world.publish(client, one)
    world.publisher.unlist(one)
    client.publish(world.publisher.publication())
    with pytest.raises(RefusedError, match="published before with other content"):
        world.publish(client, other)


def test_key_may_follow_later(world: World, client: FleetClient) -> None:
    bundle = make_bundle("bearing", 1)
    world.upload(client, bundle)
    world.publisher.list_release(bundle)
    publication = world.publisher.publication()
    assert client.publish(publication)["without_key"] == [bundle.path]
    enrol(client, world.data.public(), "press-7")
    with pytest.raises(NotAuthorisedError, match="content key was not sent"):
        client.ticket("press-7", "bearing", 1)
    assert client.publish(Publication(), world.envelope(bundle))["without_key"] == []
    assert client.ticket("press-7", "bearing", 1)


def test_envelopes_for_the_former_wrap_key_still_open(world: World, client: FleetClient) -> None:
    bundle = make_bundle("bearing", 1)
    envelope = world.envelope(bundle)
    assert run("fleet", "rotate", "wrap", "--data", str(world.data.path)).returncode == 0
    world.upload(client, bundle)
    world.publisher.list_release(bundle)
    assert client.publish(world.publisher.publication(), envelope)["without_key"] == []


class _CutError(BaseException):
    """The process is gone."""


def test_cut_before_every_write_leaves_a_whole_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In process, so that every point is reached: each file and the database commit."""
    world = World.make(tmp_path)
    objects = world.data.path / "objects"
    one, two = make_bundle("bearing", 1), make_bundle("bearing", 2)
    for bundle in (one, two):
        for kind, files in bundle.files(world.scratch).items():
            for name, file in files.items():
                place = objects / kind / name.hex()[:2] / name.hex()
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read_bytes())
    world.publisher.list_release(one)
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), world.envelope(one))
    before = assert_consistent(objects)
    world.publisher.list_release(two)
    publication, envelopes = world.publisher.publication(), world.envelope(two)
    real = ObjectDirectory.write_file
    seen: set[int] = set()
    for point in range(20):
        count = 0

        def cut(self: ObjectDirectory, name: str, data: bytes, point: int = point) -> None:
            nonlocal count
            if count == point:
                raise _CutError
            count += 1
            real(self, name, data)

        with world.data.open() as fleet:
            monkeypatch.setattr(ObjectDirectory, "write_file", cut)
            try:
                fleet.publisher.publish(publication, envelopes)
                done = True
            except _CutError:
                done = False
            monkeypatch.setattr(ObjectDirectory, "write_file", real)
        assert_consistent(objects)  # what devices see right after the kill
        with world.data.open() as fleet:
            fleet.publisher.recover()
        versions = assert_consistent(objects)
        seen.add(versions["model-bearing.json"])
        if done:
            break
    assert done
    assert before["model-bearing.json"] == 1
    assert seen == {1, 2}


def test_negative_control_a_pointer_written_first_is_noticed(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    with world.data.open() as fleet:
        fleet.publisher.publish(world.publisher.publication(), {})
    objects = world.data.path / "objects"
    (objects / "metadata/1.snapshot.json").unlink()
    with pytest.raises(FileNotFoundError):
        assert_consistent(objects)


def test_kill_during_publications_loses_nothing_acknowledged(world: World) -> None:
    bundles = [make_bundle("bearing", n) for n in range(1, 40)]
    acknowledged = 0
    with serving(world.data.path) as server:
        client = world.client(server)
        world.upload(client, bundles[0])
        killer = threading.Timer(0.2, server.kill)
        try:
            for bundle in bundles:
                world.publish(client, bundle)
                acknowledged = bundle.manifest.release
                if acknowledged == 1:
                    killer.start()
        except EdgesealError:
            pass
        killer.join()
    assert acknowledged
    with serving(world.data.path) as server:
        versions = assert_consistent(world.data.path / "objects")
        assert versions["model-bearing.json"] >= acknowledged
        client = world.client(server)
        client.assign("bearing", acknowledged, group="line-1")  # listed, so the database knows it too
        client.publish(world.publisher.publication())  # the interrupted one goes through now, or was through

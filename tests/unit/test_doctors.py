"""Every finding of the two doctors: the agent's on a device, the publisher's on a repository.

What the device's doctor says of randomness is in test_doctor_entropy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import agent_world
from tests.unit.hostile_http import answer, hostile
from tests.unit.publisher_world import MODEL, Publisher, edgeseal, ok
from tuf.api.metadata import Metadata, Root

from edgeseal.device import config, doctor, update
from edgeseal.device.agent import Agent
from edgeseal.errors import IntegrityError
from edgeseal.session import selftest
from edgeseal.trust import ArchiveFetcher
from edgeseal_host.bundle import BundleDirectory
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.repository import doctor as repository_doctor
from edgeseal_host.repository import metadata, staging
from edgeseal_host.repository.layout import RepositoryDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.agent_world import Device, Fleet

# On a device ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Device]]:
    """One device with release 1, for tests that change nothing but what they put back."""
    with agent_world.world(tmp_path_factory.mktemp("device")) as (fleet, device):
        for _ in range(2):
            assert not update.run(device.agent()).errors
        yield fleet, device


@pytest.fixture
def device(installed: tuple[Fleet, Device]) -> Device:
    _, found = installed
    found.write_config()
    return found


def finding(agent: Agent, check: str) -> doctor.Finding:
    return next(f for f in doctor.examine(agent) if f.check == check)


def says(agent: Agent, check: str, verdict: str, detail: str) -> None:
    """One finding is as expected, and says what to do unless all is well."""
    found = finding(agent, check)
    assert (found.verdict, detail in found.detail) == (verdict, True), found
    assert found.verdict == "ok" or found.hint, found


CHECKS = [
    *("cryptography", "enrolment", "secrets", "state directory", "clock", "metadata", "models", "disk", "engine"),
    "fleet server",
]


def test_healthy_device(device: Device) -> None:
    found = {f.check: f.verdict for f in doctor.examine(device.agent())}
    assert {check: found[check] for check in CHECKS} == dict.fromkeys(CHECKS, "ok")


def test_library_that_computes_wrongly(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise IntegrityError("suite 1: known answer differs", hint="reinstall the cryptography package")

    monkeypatch.setattr(selftest, "run", wrong)
    says(device.agent(), "cryptography", "failed", "known answer differs")


@pytest.fixture
def fresh(installed: tuple[Fleet, Device], tmp_path: Path) -> Device:
    """A device that was unpacked and never enrolled."""
    fleet, found = installed
    other = agent_world.Device(fleet, tmp_path / "fresh", found.models.parent / "fresh")
    other.directory.mkdir()
    other.write_config()
    return other


def test_device_that_was_never_enrolled(fresh: Device) -> None:
    """Nothing but what follows from it fails, and everything else is still looked at."""
    found = {f.check: f for f in doctor.examine(fresh.agent())}
    assert set(CHECKS) <= set(found)
    assert found["enrolment"].verdict == "failed"
    assert "not enrolled" in found["enrolment"].detail
    assert found["secrets"].verdict == "failed"
    assert found["state directory"].verdict == "failed"
    assert found["models"].verdict == "ok"
    done = fresh.run("doctor")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_device_before_its_first_contact(fresh: Device) -> None:
    fresh.enrol("press-9")
    agent = fresh.agent()
    says(agent, "secrets", "warning", "the factory still knows this device's PSK")
    says(agent, "metadata", "warning", "none has been fetched yet")
    says(agent, "models", "ok", "none installed")


def test_secrets_that_do_not_open(fresh: Device) -> None:
    fresh.enrol("press-10")
    for place in fresh.state.rglob("identity.[01]"):
        place.write_bytes(place.read_bytes()[:-1] + b"x")
    says(fresh.agent(), "secrets", "failed", "no copy of it is sound")


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_state_directory_open_to_others(device: Device, mode: int) -> None:
    before = device.state.stat().st_mode
    device.state.chmod(mode)
    try:
        says(device.agent(), "state directory", "failed", "is open to others")
    finally:
        device.state.chmod(before)


def test_state_directory_that_cannot_be_written(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    says(device.agent(), "state directory", "failed", "is not writable")


def test_clock_before_what_is_certain(device: Device) -> None:
    agent = Agent(config.load(device.config_file), clock=lambda: 86_400.0)
    says(agent, "clock", "warning", "says 1970-01-02, before what is certain")


def test_expired_metadata(device: Device) -> None:
    agent = Agent(config.load(device.config_file), clock=lambda: 4_000_000_000.0)
    says(agent, "metadata", "failed", "expired: ")
    assert "timestamp" in finding(agent, "metadata").detail


def test_model_that_is_not_in_memory(device: Device) -> None:
    device.write_config(paths={"models": str(device.models.parent / "elsewhere")})
    says(device.agent(), "models", "failed", f"installed but not in memory: {agent_world.MODEL}")


def test_models_on_a_disk(fresh: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.write_config(paths={"models": str(tmp_path)}, runtime={"allow_disk": True})
    agent = fresh.agent()
    monkeypatch.setattr(type(agent.models), "on_disk", True)
    says(agent, "models", "warning", "decrypted models are on a disk")


def test_little_disk(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = device.agent()
    monkeypatch.setattr(agent.store, "free", lambda: 100 * 2**20)
    says(agent, "disk", "warning", "100 MiB free")


def test_engine_that_is_not_installed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.write_config(runtime={"adapter": "serve", "probe": True})
    monkeypatch.delitem(sys.modules, "edgeseal.runtime.engine_onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(doctor, "_litert", lambda: "LiteRT 2.3.0 (cpu)")
    says(device.agent(), "engine", "ok", "LiteRT 2.3.0 (cpu); without onnxruntime, .onnx models cannot run here")
    monkeypatch.setattr(doctor, "_litert", lambda: None)
    found = finding(device.agent(), "engine")
    assert found.verdict == "failed"
    assert "pip install 'edgeseal[onnx]'" in found.detail


def test_engine(device: Device) -> None:
    says(device.agent(), "engine", "ok", "not needed")
    device.write_config(runtime={"adapter": "serve", "probe": True})
    says(device.agent(), "engine", "ok", "onnxruntime 1.")


def test_fleet_server_that_is_not_there(device: Device) -> None:
    device.write_config(fleet={"url": "http://127.0.0.1:9"})
    says(device.agent(), "fleet server", "failed", "http://127.0.0.1:9: ")


def test_captive_portal_in_place_of_the_fleet_server(device: Device) -> None:
    with hostile(lambda asked: asked.send(answer("200 OK", b"<html>", Content_Type="text/html"))) as server:
        device.write_config(fleet={"url": server.base})
        says(device.agent(), "fleet server", "failed", "captive portal")


def test_doctor_changes_nothing(device: Device) -> None:
    before = {p: p.read_bytes() for p in device.state.rglob("*") if p.is_file()}
    doctor.examine(device.agent())
    assert {p: p.read_bytes() for p in device.state.rglob("*") if p.is_file()} == before


# On a repository -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository published to a directory, with release 1 and two roots."""
    place = tmp_path_factory.mktemp("repo")
    world = Publisher(place)
    world.make()
    ok("key", "new", "online", "--kind", "ml-dsa-44", "--no-passphrase", *world.keys)
    staged = world.repo / "staged/root.json"
    root, key = Metadata[Root].from_bytes(staged.read_bytes()), KeyDirectory(place / "keys").public("online")
    for role in ("snapshot", "timestamp"):
        root.signed.revoke_key(root.signed.roles[role].keyids[0], role)
        root.signed.add_key(key, role)
    staged.write_bytes(root.to_bytes())
    repository, manifest = RepositoryDirectory(world.repo), BundleDirectory(world.build(1)).manifest()
    staging.stage_release(repository, manifest, manifest.to_bytes())
    for renewed in (False, True):
        if renewed:
            ok("repo", "stage", world.repo, "--renew", "root", *world.keys)
        for name in ("alice", "bob") if renewed else ("alice", "bob", "publisher"):
            ok("repo", "sign", world.repo, "--key", name, *world.keys)
        ok("repo", "publish", world.repo, "--directory", place / "www", "--online-key", "online", *world.keys)
    return place


@pytest.fixture
def repo(signed: Path, tmp_path: Path) -> Publisher:
    shutil.copytree(signed, tmp_path / "w")
    return Publisher(tmp_path / "w")


def examined(repo: Publisher, *, devices: bool = True) -> dict[str, repository_doctor.Finding]:
    source = (lambda: ArchiveFetcher(repo.place / "www")) if devices else None
    return {f.check: f for f in repository_doctor.examine(RepositoryDirectory(repo.repo), source)}


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    now = metadata.now_utc()
    monkeypatch.setattr(metadata, "now_utc", lambda: now + timedelta(days=days))


def test_healthy_repository(repo: Publisher) -> None:
    found = examined(repo)
    assert {f.verdict for f in found.values()} == {"ok"}
    devices = {"a fresh device", "a device that stopped at root 2", "a device whose clock says 1970"}
    assert devices <= set(found)
    assert "root 2" in found["a fresh device"].detail


def test_nothing_published_yet(tmp_path: Path) -> None:
    made = Publisher(tmp_path)
    made.make()
    found = examined(made, devices=False)
    assert found["published"].verdict == "warning"
    assert found["devices"].detail.startswith("not tried")
    assert edgeseal("repo", "doctor", made.repo).exit_code == 0


@pytest.mark.parametrize(
    ("days", "verdict", "said"),
    [
        (1, "ok", "(within 180)"),
        (95, "ok", "(within 90)"),
        (155, "warning", "(within 30)"),
        (181, "failed", "has expired"),
    ],
)
def test_role_that_expires(
    repo: Publisher, monkeypatch: pytest.MonkeyPatch, days: int, verdict: str, said: str
) -> None:
    later(monkeypatch, days)
    found = examined(repo, devices=False)[f"model-{MODEL} version 1"]
    assert (found.verdict, said in found.detail) == (verdict, True), found
    assert f"--renew model-{MODEL}" in found.detail


def test_root_and_targets_that_expire(repo: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "within" not in examined(repo, devices=False)["root version 2"].detail
    later(monkeypatch, 366)
    found = examined(repo, devices=False)
    assert found["targets version 1"].verdict == "failed"
    assert found["root version 2"].verdict == "ok"
    assert edgeseal("repo", "doctor", repo.repo).exit_code == 1


def test_root_without_a_key_to_spare(repo: Publisher) -> None:
    """Our own commands refuse to make one; an older tool may have."""
    place = repo.repo / "published/metadata/2.root.json"
    root = json.loads(place.read_bytes())
    root["signed"]["roles"]["root"]["threshold"] = 3
    place.write_text(json.dumps(root))
    found = examined(repo, devices=False)["root keys"]
    assert (found.verdict, found.detail) == ("warning", "3 of 3: one lost key ends the repository")


def test_listed_file_that_is_not_here(repo: Publisher) -> None:
    for place in (repo.repo / "published/targets").rglob("*.cbor"):
        place.unlink()
    found = examined(repo, devices=False)
    assert found[f"models/{MODEL}/1.cbor"].verdict == "failed"
    assert found["fleet/servers.cbor"].verdict == "failed"


def spoil(repo: Publisher, name: str, **signed: Any) -> None:
    """Change the signed part of what devices are served."""
    place = repo.place / "www" / "metadata" / name
    data = json.loads(place.read_bytes())
    data["signed"] |= signed
    place.write_text(json.dumps(data))


def test_tampered_timestamp_stops_devices_of_every_age(repo: Publisher) -> None:
    spoil(repo, "timestamp.json", version=9)
    found = examined(repo)
    for what in ("a fresh device", "a device that stopped at root 2", "a device whose clock says 1970"):
        assert found[what].verdict == "failed"
        assert "timestamp.json lacks valid signatures" in found[what].detail


def test_root_that_only_older_devices_need(repo: Publisher) -> None:
    """Its content does not matter to a device that stopped there already."""
    spoil(repo, "2.root.json", version=3)
    found = examined(repo)
    assert found["a fresh device"].verdict == "failed"
    assert found["a device that stopped at root 2"].verdict == "ok"


def test_server_without_metadata(repo: Publisher) -> None:
    shutil.rmtree(repo.place / "www/metadata")
    assert "was not served" in examined(repo)["a fresh device"].detail


def test_role_of_one_model_that_devices_refuse(repo: Publisher) -> None:
    place = repo.place / "www" / "metadata" / f"1.model-{MODEL}.json"
    place.write_bytes(place.read_bytes().replace(b"bearing/1.cbor", b"bearing/2.cbor"))
    found = examined(repo)["a fresh device"]
    assert found.verdict == "failed"
    assert found.detail.startswith(f"{MODEL}: ")


def test_doctor_as_a_person_types_it(repo: Publisher) -> None:
    said = edgeseal("repo", "doctor", repo.repo)
    assert said.exit_code == 0
    assert "not tried: give --to URL" in said.output
    assert {f["verdict"] for f in ok("repo", "doctor", repo.repo)["findings"]} == {"ok", "warning"}

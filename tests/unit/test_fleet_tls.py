"""`edgeseal fleet serve` with TLS of its own: every client of ours, certificates that are wrong, and renewal."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from tests.unit import fleet_world
from tests.unit.certificates import Authority, Pair
from tests.unit.fleet_world import Card, Server, World, enrol, make_bundle, report, run, serving
from tests.unit.publisher_world import Publisher, ok

from edgeseal.errors import EdgesealError, TemporaryError, UsageError
from edgeseal.servers import FleetServers
from edgeseal.session.messages import Status
from edgeseal.transport.objects import HttpObjects
from edgeseal.transport.x1 import FleetExchange
from edgeseal.trust.fetch_http import HttpFetcher
from edgeseal.trust.trust import Trust
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.fleet.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgeseal_host.fleet.public import FleetPublic


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


world = fleet_world.world


@pytest.fixture
def server(world: World, authority: Authority) -> Iterator[Server]:
    with serving(world.data.path, *authority.issue("server").options) as found:
        yield found


def client(world: World, server: Server, ca: Path) -> FleetClient:
    return FleetClient(server.base, token=world.token, ca_file=str(ca))


def check_in(card: Card, server: Server, public: FleetPublic, ca: Path | None) -> Status:
    keys = FleetServers(1, 1, list(public.session)).usable(int(time.time()))
    send = FleetExchange(server.base, ca_file=str(ca) if ca else None)
    return card.device().check_in(report(), servers=keys, send=send).status


def test_every_client_reaches_a_server_whose_authority_it_trusts(
    world: World, server: Server, authority: Authority, tmp_path: Path
) -> None:
    assert server.base.startswith("https://")
    publisher = client(world, server, authority.file)
    bundle = make_bundle("bearing", 1)
    world.publish(publisher, bundle)
    public = publisher.public()
    card = enrol(publisher, public, "press-7")
    assert check_in(card, server, public, authority.file) is Status.OK
    fetcher = HttpFetcher(server.base, ca_file=str(authority.file))
    trust = Trust(tmp_path / "trust", bootstrap=world.publisher.root_bytes(), fetcher=fetcher)
    trust.refresh(models=["bearing"])
    assert trust.fetch_target(bundle.path) == bundle.manifest.to_bytes()
    objects = HttpObjects(server.base, ca_file=str(authority.file))
    length = bundle.manifest.table_length
    assert b"".join(objects.fetch("tables", bundle.manifest.table_sha256, offset=0, length=length)) == bundle.table


def test_server_of_another_authority_gets_neither_token_nor_request(
    world: World, server: Server, authority: Authority, tmp_path: Path
) -> None:
    public = client(world, server, authority.file).public()
    card = enrol(client(world, server, authority.file), public, "press-7")
    other = Authority(tmp_path, "another").file
    with pytest.raises(TemporaryError, match="SSLError"):
        client(world, server, other).public()
    for ca in (other, None):
        with pytest.raises(EdgesealError):
            check_in(card, server, public, ca)


@pytest.mark.parametrize("wrong", [{"days": -1}, {"host": "192.0.2.7"}])
def test_ended_or_foreign_certificate_is_refused_by_clients(
    world: World, authority: Authority, wrong: dict[str, object]
) -> None:
    pair = authority.issue("wrong", **wrong)  # type: ignore[arg-type]
    with serving(world.data.path, *pair.options) as server, pytest.raises(TemporaryError):
        client(world, server, authority.file).public()


def test_plain_http_and_old_tls_get_no_answer(server: Server) -> None:
    host, port = server.base.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1 200" not in plain.recv(100)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((host, int(port)), timeout=10) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)


# Renewal -----------------------------------------------------------------------------------------------------------


def presented(server: Server) -> int:
    """Return the serial number of the certificate a new connection gets."""
    host, port = server.base.removeprefix("https://").split(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def renew(old: Pair, new: Pair) -> int:
    """Put new files in the old ones' place; returns the new serial number."""
    new.certificate.replace(old.certificate)
    new.key.replace(old.key)
    return x509.load_pem_x509_certificate(old.certificate.read_bytes()).serial_number


def hang_up(server: Server, word: str) -> None:
    """Send SIGHUP and wait until the log has a new line about it."""
    before = server.log.read_text().count(word)
    server.process.send_signal(signal.SIGHUP)
    ends = time.monotonic() + 20
    while server.log.read_text().count(word) == before:
        assert time.monotonic() < ends
        assert server.process.poll() is None
        time.sleep(0.02)


def test_renewed_certificate_is_taken_up_without_a_restart(world: World, authority: Authority) -> None:
    pair = authority.issue("renewed")
    with serving(world.data.path, *pair.options) as server:
        first = presented(server)
        open_ = client(world, server, authority.file)
        open_.public()
        second = renew(pair, authority.issue("later"))
        assert presented(server) == first  # not before it is told
        hang_up(server, "certificate loaded")
        assert presented(server) == second != first
        assert open_.public().url == "http://127.0.0.1:8443"
        pair.key.write_bytes(authority.issue("other").key.read_bytes())
        hang_up(server, "certificate refused")
        assert presented(server) == second
        pair.certificate.unlink()
        hang_up(server, "certificate refused")
        assert presented(server) == second
        open_._pool.clear()  # else the end waits for its goodbye
        assert server.stop() == 0
    assert b"PRIVATE" not in server.log.read_bytes()


def test_hang_up_of_a_server_without_tls_harms_nothing(world: World) -> None:
    with serving(world.data.path) as server:
        server.process.send_signal(signal.SIGHUP)
        assert world.client(server).missing("chunks", [bytes(32)])
        assert server.stop() == 0


# Wrong files -------------------------------------------------------------------------------------------------------


def test_files_that_are_no_pair_are_refused_at_the_start(world: World, authority: Authority, tmp_path: Path) -> None:
    good, other, secret = authority.issue("good"), authority.issue("alien"), authority.issue("locked", encrypted=True)
    junk, empty = tmp_path / "junk", tmp_path / "empty"
    junk.write_bytes(b"-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    empty.touch()
    cases = [
        (good.certificate, other.key, "key values mismatch"),
        (junk, good.key, "cannot be used"),
        (empty, good.key, "cannot be used"),
        (good.certificate, empty, "cannot be used"),
        (good.key, good.certificate, "cannot be used"),
        (secret.certificate, secret.key, "without a passphrase"),
        (tmp_path, good.key, "is not a PEM file"),
        (tmp_path / "none", good.key, "is not a PEM file"),
    ]
    for certificate, key, words in cases:
        with pytest.raises(UsageError) as caught:
            TlsFiles(certificate, key).check()
        assert words in str(caught.value), (certificate, key)
    serve = ("fleet", "serve", "--data", str(world.data.path), "--listen", "127.0.0.1:0")
    done = run(*serve, "--tls-cert", str(good.certificate), "--tls-key", str(other.key))
    assert done.returncode == UsageError.exit_code
    assert "mismatch" in done.stderr
    assert run(*serve, "--tls-cert", str(good.certificate)).returncode == UsageError.exit_code


# The agent ---------------------------------------------------------------------------------------------------------


def agent(config: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeseal.device.cli", "--config", config, *words]
    return subprocess.run([str(w) for w in command], capture_output=True, text=True, timeout=60, check=False)


def test_agent_enrols_and_checks_in_over_https_with_a_ca_file(authority: Authority, tmp_path: Path) -> None:
    made = Publisher(tmp_path)
    made.make()
    config, request, grant = (tmp_path / name for name in ("agent.toml", "press-7.request", "press-7.grant"))
    with serving(tmp_path / "fleet", *authority.issue("server").options) as server:
        made.base = server.base
        trusted = ("--ca-file", authority.file)
        ok("repo", "publish", made.repo, *made.to, *trusted)
        text = f'[fleet]\nurl = "{server.base}"\nca_file = "{authority.file}"\n'
        text += '[runtime]\nadapter = "none"\nallow_disk = true\n'
        text += f'[paths]\nstate = "{tmp_path}/state"\nmodels = "{tmp_path}/models"\n'
        config.write_text(text)
        assert (done := agent(config, "enrol", "request", "--out", request)).returncode == 0, done.stderr
        ok(*made.enrol_arguments(request, "press-7", *made.to, *trusted, "--out", grant))
        assert (done := agent(config, "enrol", "accept", grant)).returncode == 0, done.stderr
        assert (done := agent(config, "update", "--report")).returncode == 0, done.stderr
        assert ok("device", "show", "press-7", *made.to, *trusted)["seen_at"] is not None
        config.write_text(text.replace(f'ca_file = "{authority.file}"\n', ""))
        done = agent(config, "update", "--report")
        assert done.returncode == TemporaryError.exit_code, done.stderr
        assert "Traceback" not in done.stderr

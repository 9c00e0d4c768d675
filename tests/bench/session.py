"""X1 exchanges a second and core: the session code alone, with CBOR, with the registry in SQLite, and over HTTP.

Rates are per second of CPU time of the server's side, so that neither waiting nor the client counts; requests are made
beforehand. `hpke_alone_*` is the part nobody can save: one decapsulation and two encapsulations of the library. SQLite
flushes every commit; `sqlite_*` is with GROUP exchanges to a commit, `sqlite_alone_*` with one. `http_*` is what a real
server process used, measured from outside while clients keep it busy.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.unit import fleet_world
from tests.unit.fleet_world import World, make_bundle

from edgeseal.checkin import FORMAT, Assignment, Grant, Orders, Report
from edgeseal.enrolment import Record
from edgeseal.session.messages import Flags, PendingRequest, Status
from edgeseal.session.server import exchange, ring
from edgeseal.suite import SUITES, PrivateKey, PublicKey
from edgeseal.transport.x1 import FleetExchange
from edgeseal_host.fleet.service import Service
from edgeseal_host.testing.registry import MemoryRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.session.server import Row

EXCHANGES: Final = 1500
DEVICES: Final = 50
IN_MEMORY: Final = 1  # device: the in-memory registry copies all of them in each transaction, a cost only it has
GROUP: Final = 32  # devices that wait at the same moment
CLIENTS: Final = 16
TICKS: Final = os.sysconf("SC_CLK_TCK")


def measure() -> dict[str, object]:
    """Return exchanges per second of one core, at each layer."""
    numbers: dict[str, object] = {}
    for suite in (1, 2):
        suffix = "" if suite == 1 else "_suite2"
        numbers[f"hpke_alone_per_s_core{suffix}"] = _hpke_alone(suite)
        numbers[f"exchanges_per_s_core{suffix}"] = _in_memory(suite, with_cbor=True)
        numbers[f"bare_exchanges_per_s_core{suffix}"] = _in_memory(suite, with_cbor=False)
    with tempfile.TemporaryDirectory() as folder:
        numbers.update(_with_server(Path(folder)))
    return numbers


def _hpke_alone(suite: int) -> float:
    """What an exchange's three HPKE operations and the loading of the one fresh key cost by themselves."""
    server, device = (PrivateKey(suite, os.urandom(SUITES[suite].seed_length)) for _ in range(2))
    fresh = [PrivateKey(suite, os.urandom(SUITES[suite].seed_length)).public.raw for _ in range(300)]
    sealed, reply = server.public.seal(b"info", bytes(2_600)), bytes(256)

    def answer(raw: bytes) -> bytes:
        server.open(b"info", sealed)
        return PublicKey(suite, raw).seal(b"info", device.public.seal(b"info", reply))

    return _rate(fresh, answer)


def _in_memory(suite: int, *, with_cbor: bool) -> float:
    """Session code over the in-memory registry; with CBOR the handler reads a report and writes orders."""
    server = PrivateKey(suite, os.urandom(SUITES[suite].seed_length))
    registry = MemoryRegistry()
    devices = []
    for n in range(IN_MEMORY):
        device = PrivateKey(suite, os.urandom(SUITES[suite].seed_length))
        psk = os.urandom(32)
        registry.enrol(f"d{n}", device.public, psk)
        devices.append((device, psk))
    body = fleet_world.report() if with_cbor else b"report"
    requests = _requests(server.public, devices, body)
    keys, answer = ring([server]), _handler if with_cbor else _plain_handler
    return _rate(
        requests,
        lambda m1: exchange(m1, ring=keys, registry=registry, handler=answer, now=1_800_000_000, random=os.urandom),
    )


def _handler(_tx: MemoryRegistry, _row: Row, body: bytes) -> tuple[Status, bytes]:
    Report.from_bytes(body)
    assignments = [Assignment("bearing", "models/bearing/2.cbor", bytes(32), 9000, 2, 1_900_000_000)]
    keys = [Grant("bearing", 2, bytes(32), 1_900_000_000)]
    return Status.OK, Orders(FORMAT, assignments, keys, 300, 3600).to_bytes()


def _plain_handler(_tx: MemoryRegistry, _row: Row, _body: bytes) -> tuple[Status, bytes]:
    return Status.OK, b"orders"


def _with_server(folder: Path) -> dict[str, object]:
    """Measure the registry in SQLite in this process, then a server process over loopback."""
    world = World.make(folder)
    bundle = make_bundle("bearing", 1)
    devices = [(PrivateKey(1, os.urandom(32)), os.urandom(32)) for _ in range(DEVICES)]
    public = world.data.public()
    with fleet_world.serving(world.data.path) as server:
        client = world.client(server)
        world.publish(client, bundle)
        client.assign("bearing", 1, group="line-1")
        for n, (device, psk) in enumerate(devices):
            record = Record.make(
                device=f"d{n}", serial="", hardware="pi", group="line-1", key=device.public, psk=psk, enrol=public.enrol
            )
            client.enrol(record.to_bytes())
        key = PublicKey(1, public.session[0].public)
        requests = _requests(key, devices, fleet_world.report())
        http = _over_http(server, requests)
        server.stop()
    with world.data.open() as fleet:
        service = Service(fleet)
        service.refresh_ring()
        alone = _rate(_requests(key, devices, fleet_world.report(), first=100_000), service.x1)
        group = _group_rate(_requests(key, devices, fleet_world.report(), first=200_000), service)
        service.stop()
    return {"sqlite_exchanges_per_s_core": group, "sqlite_alone_exchanges_per_s_core": alone, **http}


def _requests(
    server: PublicKey, devices: list[tuple[PrivateKey, bytes]], body: bytes, *, first: int = 1
) -> list[bytes]:
    return [
        PendingRequest(
            server=server,
            device=devices[n % len(devices)][0],
            psk=devices[n % len(devices)][1],
            e_seed=os.urandom(server.suite.seed_length),
            s1=os.urandom(32),
            ctr=first + n // len(devices),
            flags=Flags.NONE,
            body=body,
        ).m1
        for n in range(EXCHANGES)
    ]


def _rate(requests: list[bytes], answer: Callable[[bytes], bytes]) -> float:
    """Exchanges per second of CPU time, best of three parts: others use this machine too."""
    third = len(requests) // 3
    best = 0.0
    for part in range(3):
        started = time.process_time()
        for m1 in requests[part * third : (part + 1) * third]:
            if len(answer(m1)) < 100:
                raise RuntimeError("the exchange was refused: nothing to measure")
        best = max(best, third / (time.process_time() - started))
    return best


def _group_rate(requests: list[bytes], service: Service) -> float:
    groups = {requests[n]: requests[n : n + GROUP] for n in range(0, len(requests) - GROUP + 1, GROUP)}

    def answer(first: bytes) -> bytes:
        found = service.x1_group(groups[first])
        return min((m2 for m2 in found if isinstance(m2, bytes)), key=len)

    return _rate(list(groups), answer) * GROUP


def _over_http(server: fleet_world.Server, requests: list[bytes]) -> dict[str, object]:
    shares = [requests[n::CLIENTS] for n in range(CLIENTS)]
    cpu, started = _cpu_seconds(server.process.pid), time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = sum(pool.map(lambda share: _send_all(server.base, share), shares))
    wall, used = time.monotonic() - started, _cpu_seconds(server.process.pid) - cpu
    return {
        "http_exchanges_per_s_core": done / used,
        "http_exchanges_per_s_wall": done / wall,
        "http_server_peak_rss_mb": _peak_mb(server.process.pid),
        "client_peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _send_all(base: str, requests: list[bytes]) -> int:
    send = FleetExchange(base)
    return sum(len(send(m1)) > 100 for m1 in requests)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

"""Canary: after whole runs, with failures, kills and crashes, no secret of a station is anywhere but where it may be.

Secrets: PSK and k_rng of every device, delivered or not; the devices' key seeds; the station's passphrase and signing
seed; the fleet's API token. Looked at: every byte a station's commands print, and every file they leave. A fragment of
twelve bytes counts, in any of the spellings that code prints bytes in.
"""

from __future__ import annotations

import base64
import os
import pty
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.fleet_world import serving
from tests.unit.publisher_world import edgeseal, ok
from tests.unit.station_world import PASSPHRASE, World

from edgeseal.suite import PrivateKey
from edgeseal_host.station.simulation import Simulated, simulated
from edgeseal_host.testing import provisioning as memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPY = Path(__file__).with_name("station_spy.py")
ROOT = Path(__file__).parents[2]
WINDOW = 9  # bytes: three groups of base64
BAUD = 2_000_000
# What may hold secrets, and is looked at by nobody here: the fleet's own, the passphrase's and the token's files.
ALLOWED = {"fleet", "passphrase", "token", "revoked"}

SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda b: b.hex().encode(),
    "HEX": lambda b: b.hex().upper().encode(),
    "spaced hex": lambda b: b.hex(" ").encode(),
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "numbers": lambda b: str(list(b))[1:-1].encode(),
    "repr": lambda b: repr(b + b'"')[2:-2].encode(),
}


def appearances(secrets: dict[str, bytes], haystack: bytes) -> list[str]:
    """Name every secret of which a fragment is in there, and how it is spelled."""
    found = []
    for name, secret in secrets.items():
        for spelling, spell in SPELLINGS.items():
            starts = range(max(1, len(secret) - WINDOW + 1))
            if any(spell(secret[s : s + WINDOW]) in haystack for s in starts):
                found.append(f"{name} as {spelling}")
    return found


@dataclass
class Line:
    """A station with a passphrase, devices on pseudo-terminals, and everything that was printed."""

    world: World
    devices: list[Simulated]
    drawn: Path
    seeds: list[bytes]
    printed: list[bytes] = field(default_factory=list)

    @property
    def at(self) -> tuple[str, ...]:
        return "--station", str(self.world.directory.path), "--keys", str(self.world.place / "keys")

    def command(self, *arguments: object, fault: str = "none") -> list[str]:
        return [sys.executable, str(SPY), str(self.drawn), fault, "station", *map(str, arguments), *self.at]

    def run(self, *more: object, fault: str = "none") -> int:
        """Run until every port has its verdict, keeping what is printed."""
        command = self.command(*self.run_options(*more), fault=fault)
        done = subprocess.run(command, capture_output=True, timeout=100, check=False, cwd=self.world.place, env=_env())
        self.printed += [done.stdout, done.stderr]
        return done.returncode

    def call(self, *arguments: object) -> int:
        """Run another command, keeping what it prints."""
        result = edgeseal("station", *arguments, *self.at)
        self.printed += [result.stdout_bytes, result.stderr_bytes]
        return result.exit_code

    def run_options(self, *more: object) -> tuple[object, ...]:
        ports = [option for device in self.devices for option in ("--port", device.path)]
        passphrase = self.world.place / "passphrase"
        batch = self.world.place / "batch.toml"
        return "run", *ports, "--batch", batch, "--once", "--baud", BAUD, "--passphrase-file", passphrase, *more

    def on_a_terminal(self, *arguments: object) -> int:
        """Run a command full-screen, keeping every byte that the terminal got."""
        master, keeper = pty.openpty()
        process = subprocess.Popen(
            self.command(*arguments), stdin=keeper, stdout=keeper, stderr=keeper, cwd=self.world.place, env=_env()
        )
        os.close(keeper)
        while select.select([master], [], [], 60)[0]:
            try:
                self.printed.append(os.read(master, 65_536))
            except OSError:  # its last user is gone
                break
        os.close(master)
        return process.wait(60)

    def secrets(self) -> dict[str, bytes]:
        found = {
            "passphrase": PASSPHRASE,
            "the station's seed": self.world.key.private_bytes_raw(),
            **{f"seed {n}": seed for n, seed in enumerate(self.seeds)},
        }
        for name in ("token", "revoked"):
            if (file := self.world.place / name).exists():
                found[name] = file.read_bytes().strip().split(b"_", 2)[2]  # base64url may hold another one
        if self.drawn.exists():
            found |= {f"drawn {n}": bytes.fromhex(line) for n, line in enumerate(self.drawn.read_text().split())}
        for device in self.devices:
            if (identity := device.home.identity) is not None:
                found |= {f"{device.path} psk": identity[1].psk, f"{device.path} k_rng": identity[1].k_rng}
        return found

    def everything(self) -> bytes:
        """Return all that was printed and all files but those that are allowed to be secret."""
        files = [
            path.read_bytes()
            for path in sorted(self.world.place.rglob("*"))
            if path.is_file() and path.relative_to(self.world.place).parts[0] not in ALLOWED
        ]
        return b"\0".join([*self.printed, *files])

    def leaks(self) -> list[str]:
        return appearances(self.secrets(), self.everything())


def _env() -> dict[str, str]:
    """A person's environment, with the clone on the path, and tracebacks as long as they get."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", "TERM": "xterm-256color"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("canary") / "world")


@pytest.fixture
def line(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """Three devices, the last of them a copy of the first."""
    seeds: list[bytes] = []

    def noting(number: int, seed: bytes) -> PrivateKey:
        seeds.append(seed)
        return PrivateKey(number, seed)

    monkeypatch.setattr(memory, "PrivateKey", noting)
    (tmp_path / "spy").mkdir()
    with simulated(3, baud=BAUD, suite=1, copies=1) as devices:
        yield Line(made.copied(tmp_path / "world"), devices, tmp_path / "spy" / "drawn", seeds)


def granted(line: Line) -> int:
    return sum(device.home.identity is not None for device in line.devices)


def test_a_run_with_a_failure_and_all_its_papers(line: Line) -> None:
    assert line.run("--json") == 1
    assert granted(line) == 2
    papers = line.world.place / "papers"
    assert line.call("export") == line.call("export", "--json") == line.call("status", "--json") == 0
    assert line.call("export", "--out", papers.with_suffix(".csv")) == 0
    assert line.call("labels", "--out", papers) == line.call("verify-journal") == line.call("status") == 0
    passphrase = ("--passphrase-file", line.world.place / "passphrase")
    assert line.call("carry", line.world.place / "carried", *passphrase) == 0
    assert line.call("rework", "simulated-0002", "--reason", "new card", *passphrase) == 0
    assert len(line.secrets()) >= 8
    assert line.leaks() == []
    for shown in (b"press-0001", b"simulated-0003", b"shows the key that was given to"):
        assert shown in line.everything(), "negative control: what is no secret is found"


def test_records_sent_to_a_fleet_server_that_first_refuses_them(line: Line) -> None:
    place, data = line.world.place, line.world.data.path
    ok("fleet", "trust-station", place / "keys" / "line-1.pub.json", "--data", data)
    scopes = ("--scope", "enrol", "--scope", "operate")
    ok("fleet", "token", "new", *scopes, "--out", place / "token", "--data", data)
    revoked = ok("fleet", "token", "new", *scopes, "--out", place / "revoked", "--data", data)["id"]
    ok("fleet", "token", "revoke", revoked, "--data", data)
    with serving(data) as server:
        line.run("--to", server.base, "--token", place / "revoked")
        assert b"2 records are not at the fleet server yet" in b"".join(line.printed)
        token = ("--to", server.base, "--token", place / "token")
        assert line.call("upload", *token, "--passphrase-file", place / "passphrase") == 0
        found = ok("device", "list", *token)["devices"]
        line.printed.append(server.log.read_bytes())
    assert {device["name"] for device in found} == {"press-0001", "press-0002"}
    assert {"token", "revoked"} <= set(line.secrets())
    assert line.leaks() == []


def test_a_station_killed_with_an_offer_in_its_memory_and_the_next_run(line: Line) -> None:
    assert line.run(fault="kill") == -signal.SIGKILL
    assert granted(line) == 0
    assert len(line.drawn.read_text().split()) == 2, "secrets that nobody ever got"
    assert line.leaks() == []
    assert line.run() == 1
    assert granted(line) == 2
    assert line.leaks() == []


def test_a_process_that_dies_leaves_no_core_file(line: Line) -> None:
    assert line.run(fault="abort") == -signal.SIGABRT
    assert b"core files of 0 bytes" in b"".join(line.printed)
    assert not list(line.world.place.glob("core*"))
    assert line.leaks() == []


def test_a_crash_prints_its_traceback_and_nothing_else(line: Line) -> None:
    assert line.run(fault="crash") == 1
    assert b"Traceback" in b"".join(line.printed)
    assert b"RuntimeError: a bug" in b"".join(line.printed)
    assert line.leaks() == []
    assert line.run() == 1
    assert granted(line) == 2
    assert line.leaks() == []


def test_every_byte_of_the_full_screen(line: Line) -> None:
    assert line.on_a_terminal(*line.run_options()) == 1
    shown = b"".join(line.printed)
    assert b"\x1b[?1049h" in shown
    assert b"2 PASS" in shown
    assert line.leaks() == []


def test_a_wrong_passphrase_is_not_repeated(line: Line) -> None:
    (line.world.place / "passphrase").write_bytes(b"correct horsf\n")
    assert line.run() == 4
    assert b"correct hors" not in b"".join(line.printed)


# Negative controls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["leak-log", "leak-journal", "leak-crash"])
def test_a_careless_line_would_be_found(line: Line, fault: str) -> None:
    line.run(fault=fault)
    assert any(name.startswith("drawn") for name in line.leaks())


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("start", [0, 1, 2, 3, 20])
def test_a_fragment_is_found_in_any_spelling(spelling: str, start: int) -> None:
    secret = os.urandom(32)
    written = b"before " + SPELLINGS[spelling](b"xyz"[: start % 3] + secret[start:]) + b" after"
    assert any(found == f"s as {spelling}" for found in appearances({"s": secret}, written))
    assert appearances({"s": os.urandom(32)}, written) == []

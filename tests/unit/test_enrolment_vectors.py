"""Carried enrolment records of an independent station, taken by the fleet server and by a reader made from the page."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit import second_records_reader as second
from tests.unit.second_reader import Incompatible, Refused

from edgeseal.errors import IncompatibleError, RefusedError
from edgeseal.suite import PrivateKey
from edgeseal_host.fleet import imports, operations
from edgeseal_host.fleet.data import DataDirectory, Fleet
from edgeseal_host.fleet.rings import KeyRing, RingKey
from edgeseal_host.fleet.stations import TrustedStation

pytestmark = pytest.mark.unit
CASES = sorted((Path(__file__).parents[1] / "vectors" / "enrolments").glob("*.json"))
NOW = 1_790_000_000


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def registry(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """What the fleet server has, in the vectors' words."""
    found = {}
    for row in operations.devices(fleet):
        current = fleet.registry.current_generation(row["name"])
        public = hashlib.sha256(current.public).hexdigest()
        found[row["name"]] = {key: row[key] for key in ("serial", "hardware", "group")} | {
            "suite": current.suite,
            "public": public,
            "psk": current.psk.hex(),
        }
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet server's directory."""
    place = tmp_path_factory.mktemp("empty") / "fleet"
    DataDirectory(place).create("http://127.0.0.1:8443", now=NOW)
    return place


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_fleet_server_takes_what_the_page_says(path: Path, empty: Path, tmp_path: Path) -> None:
    case = load(path)
    data = DataDirectory(shutil.copytree(empty, tmp_path / "fleet"))
    suite, seed = case["enrol"][0], bytes.fromhex(case["enrol"][1])
    KeyRing((RingKey("current", PrivateKey(suite, seed), seed, NOW),)).save(data.secrets / "enrol.ring")
    with data.open() as fleet:
        for public in case["trusted"]:
            fleet.stations.trust(TrustedStation("line", bytes.fromhex(public)), now=NOW)
        if case["error"] is not None:
            kind = {"refused": RefusedError, "incompatible": IncompatibleError}[case["error"]]
            with pytest.raises(kind):
                list(imports.import_enrolments(fleet, io.BytesIO(case["file"].encode()), now=NOW))
        else:
            lines = list(imports.import_enrolments(fleet, io.BytesIO(case["file"].encode()), now=NOW))
            assert [[x.number, x.device, x.outcome] for x in lines] == case["lines"]
            again = list(imports.import_enrolments(fleet, io.BytesIO(case["file"].encode()), now=NOW + 1))
            known = [[n, d, "known" if o == "registered" else o] for n, d, o in case["lines"]]
            assert [[x.number, x.device, x.outcome] for x in again] == known
        assert registry(fleet) == case["registry"]


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_reader_made_from_the_page_takes_the_same(path: Path) -> None:
    case = load(path)
    fleet = second.Fleet(bytes.fromhex(case["enrol"][1]), [bytes.fromhex(p) for p in case["trusted"]])
    if case["error"] is not None:
        with pytest.raises({"refused": Refused, "incompatible": Incompatible}[case["error"]]):
            fleet.take(case["file"].encode())
    else:
        assert [list(x) for x in fleet.take(case["file"].encode())] == case["lines"]
    assert fleet.devices == case["registry"]


def test_there_are_good_and_broken_vectors() -> None:
    names = {path.stem for path in CASES}
    assert len([n for n in names if n.startswith("broken-")]) >= 20
    assert {"three-devices", "joined-stations"} <= names

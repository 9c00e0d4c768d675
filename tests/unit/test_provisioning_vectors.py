"""The device's role against dialogues of an independent station (tests/vectors/make_provisioning.py), byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgeseal.provisioning import Board, Dialogue, EntropyReport, wire
from edgeseal.provisioning.messages import Kind, Refused, cut
from edgeseal.provisioning.transcript import commitment
from edgeseal.smp import LineDecoder, Packet
from edgeseal.suite import PrivateKey
from edgeseal_host.testing.provisioning import MemoryHome

pytestmark = pytest.mark.unit
CASES = sorted((Path(__file__).parents[1] / "vectors" / "provisioning").glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def home_of(case: dict[str, Any]) -> MemoryHome:
    policy, hardware, sources, calibration = case["entropy"]
    key = PrivateKey(case["suite"], bytes.fromhex(case["key_seed"]))
    report = EntropyReport(policy, hardware, sources, calibration)

    class Home(MemoryHome):
        def own_key(self) -> tuple[PrivateKey, EntropyReport]:
            return key, report

    nonces = iter(bytes.fromhex(n) for n in case["nonces"])
    return Home(
        case["serial"],
        case["hardware"],
        case["agent"],
        Board(*case["board"]),
        lambda _: next(nonces),
        pending=(key, report),
    )


def begin(dialogue: Dialogue, message: bytes) -> None:
    """Open the session that the first message of a dialogue names."""
    kind, body = cut(message)
    if kind in {Kind.HELLO, Kind.RESET}:
        import cbor2

        values = cbor2.loads(body)
        station, nonce = (values[4], values[5]) if kind is Kind.HELLO else (values[1], values[2])
        dialogue._begin(station[:4] + nonce[:8])


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_device_answers_as_the_page_says(path: Path) -> None:
    case = load(path)
    home = home_of(case)
    dialogue = Dialogue(home, random=home.random, clock=lambda: 0.0)
    for number, (sent, expected) in enumerate(case["calls"]):
        message = bytes.fromhex(sent)
        begin(dialogue, message)
        answer = dialogue._respond(message)
        if expected.startswith("refused"):
            kind, body = cut(answer)
            assert kind is Kind.REFUSED, f"call {number}: {kind.name} instead of {expected}"
            assert f"refused {Refused.from_bytes(body).code}" == expected, Refused.from_bytes(body)
        else:
            assert answer.hex() == expected, f"call {number}"
    held = case["grant"]
    if held is None:
        assert home.identity is None
        return
    assert home.identity is not None
    assert home.kept is not None
    _, grant, root = home.identity
    assert (grant.device, grant.psk.hex(), grant.k_rng.hex()) == (held["device"], held["psk"], held["k_rng"])
    assert (grant.fleet_url, grant.time_floor) == (held["url"], held["time_floor"])
    assert hashlib.sha384(root).hexdigest() == held["root_sha384"]
    assert home.kept.receipt.hex() == held["receipt"]
    assert commitment(home.kept.receipt).hex() == held["commitment"]
    assert home.identities == 1


@pytest.mark.parametrize("path", [p for p in CASES if load(p)["lines"]], ids=lambda p: p.stem)
def test_first_line_of_a_dialogue_is_read(path: Path) -> None:
    case = load(path)
    (raw,) = LineDecoder().feed(case["lines"].encode())
    packet = Packet.from_bytes(raw)
    assert packet.to_bytes() == raw
    put = wire.read(packet.body, wire.Put)
    assert put.d == bytes.fromhex(case["calls"][0][0])
    assert put.h == wire.check_value(put.d)
    device = home_of(case).device(lambda: 0.0)
    device.feed(case["lines"].encode())
    assert LineDecoder().feed(device.outgoing())


def test_there_are_good_and_broken_cases() -> None:
    assert len([p for p in CASES if p.stem.startswith("broken")]) >= 9
    assert {load(p)["suite"] for p in CASES} == {1, 2}

"""What the agent keeps of the manufacturing line on its own disk: keys, policy, lock, reset, and enrolment by hand."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.line_card import Card, check, copied
from tests.unit.line_world import ENROL, ROOT, Line, order

from edgeseal.device import board, doctor, enrol, provision
from edgeseal.device.agent import RESETTING
from edgeseal.device.line_home import DeviceHome
from edgeseal.enrolment import Grant, Record
from edgeseal.entropy import BLOCK_LENGTH, Profile
from edgeseal.entropy.snapshot import Snapshot
from edgeseal.errors import IntegrityError, NotAuthorisedError, TemporaryError, UsageError
from edgeseal.provisioning import Board, Code, Destroyed, Device, Dialogue, Stage
from edgeseal.provisioning.transcript import seed
from edgeseal.session.server import ring
from edgeseal.suite import PrivateKey, PublicKey
from edgeseal.trust.floors import Slots
from edgeseal.trust.views import provisioned_floors
from edgeseal_host.testing.provisioning import OS_GROUP

if TYPE_CHECKING:
    from pathlib import Path

    from edgeseal.device.agent import Agent

pytestmark = pytest.mark.unit


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


class Stick:
    """A healthy source."""

    profile = Profile("stick", "quantum", "vendor")

    def __init__(self) -> None:
        self.given = 0

    def settle(self, _timeout: float) -> None:
        return

    def block(self, *, timeout: float) -> bytes:
        assert timeout >= 0
        self.given += 1
        return hashlib.shake_256(self.given.to_bytes(4, "big")).digest(BLOCK_LENGTH)

    @property
    def snapshot(self) -> Any:
        return Snapshot("stick", sigma=51.2, qcnr_db=11.5, calibrated_at=1_790_000_000)


def with_stick(agent: Agent, *sources: Stick) -> Agent:
    agent.__dict__["sources"] = list(sources)
    return agent


def run(line: Line, agent: Agent, **changes: Any) -> Any:
    station = line.station(order(**changes))
    dialogue = Dialogue(DeviceHome(agent), random=line.rng.randbytes, clock=line.link.clock)
    line.link.run(station, Device(dialogue, OS_GROUP), until=lambda: station.verdict is not None)
    return station


def test_provisioned_device_has_all_it_needs(card: Card) -> None:
    line = Line()
    assert card.provision(line, order(floors={"timestamp": 7, "root": 1})).passed
    agent = card.agent()
    (offer,) = line.book.offers.values()
    identity = agent.keys.identity()
    assert (identity.device, identity.ceiling) == ("press-1", 0)
    assert identity.current.provisioned
    assert agent.profile.fleet_url == "https://fleet.example"
    assert agent.profile.entropy == ["os: getrandom", "host: provisioning station"]
    record = Record.from_bytes(offer.record)
    assert record.psk(ring([ENROL])) == identity.current.psk
    assert PublicKey(1, record.public).kid == PrivateKey(1, identity.current.seed).public.kid
    assert (agent.directory / "root.json").read_bytes() == ROOT
    kept = Slots(agent.directory / "trust").read()
    assert kept.versions == provisioned_floors(ROOT, {"timestamp": 7, "root": 1})
    assert check(card, copied(line.book)) == offer.kid.hex()


def test_secrets_are_sealed_and_private_on_the_card(card: Card) -> None:
    card.provision(Line())
    keys = card.agent().keys
    generation = keys.identity().current
    for path in (p for p in card.directory.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for secret in (generation.psk, generation.seed, keys.k_rng()):
            assert secret not in data, path
            assert secret.hex().encode() not in data, path
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in (card.directory / "state" / "keys").iterdir())


# Entropy --------------------------------------------------------------------------------------------------------------


def test_require_without_a_source_makes_no_key(card: Card) -> None:
    station = run(Line(), card.agent(), policy="require")
    assert station.verdict.code is Code.ENTROPY
    assert "none is attached" in station.verdict.reason
    assert card.agent().keys.pending() is None


def test_require_with_a_source_reports_it(card: Card) -> None:
    station = run(Line(), with_stick(card.agent(), Stick()), policy="require")
    assert station.verdict.passed
    report = station.identity.entropy
    assert (report.policy, report.hardware) == ("require", 1)
    assert "stick: quantum, evidence vendor" in report.sources
    assert json.loads(report.calibration[0].partition(": ")[2])["qcnr_db"] == 11.5


def test_key_made_without_a_source_does_not_serve_require(card: Card) -> None:
    line = Line()
    first = line.station()
    device = card.boot(line.link.clock)
    line.link.run(first, device, until=lambda: first.identity is not None)
    weak = card.agent().keys.pending()
    line.link.now += 20
    assert run(line, card.agent(), policy="require").verdict.code is Code.ENTROPY
    line.link.now += 20
    station = run(line, with_stick(card.agent(), Stick()), policy="require")
    assert station.verdict.passed
    assert weak is not None
    assert station.identity.key.raw != PrivateKey(1, weak.seed).public.raw


def test_configuration_may_be_stricter_than_the_batch(card: Card) -> None:
    agent = card.agent('[entropy]\npolicy = "require"\n')
    assert run(Line(), agent, policy="mix").verdict.code is Code.ENTROPY


def test_key_depends_on_host_bytes_and_serial_number_where_everything_else_repeats() -> None:
    drawn, host = bytes(64), bytes(range(64))
    seeds = {
        seed(drawn, host, "0001", 32),
        seed(drawn, host, "0002", 32),
        seed(drawn, bytes(64), "0001", 32),
        seed(b"\1" * 64, host, "0001", 32),
    }
    assert len(seeds) == 4
    assert seed(drawn, host, "0001", 64)[:32] == seed(drawn, host, "0001", 32)


def test_another_suite_is_another_key(card: Card) -> None:
    line = Line()
    first = line.station()
    line.link.run(first, card.boot(line.link.clock), until=lambda: first.identity is not None)
    line.link.now += 20
    assert run(line, card.agent(), suite=2).verdict.passed
    assert card.agent().keys.identity().current.suite == 2


# Enrolled by hand, re-keyed, locked -----------------------------------------------------------------------------------


def by_hand(card: Card) -> None:
    agent = card.agent()
    with agent.locked():
        asked = enrol.request(agent, 1)
        grant = Grant(1, "press-7", 1, b"p" * 32, b"k" * 32, "https://fleet.example", ROOT, 1)
        enrol.accept(agent, grant.seal(PublicKey(1, asked.public)))


def test_device_enrolled_by_hand_answers_no_station(card: Card) -> None:
    by_hand(card)
    assert (card.directory / "state" / "locked").exists()
    assert card.provision(Line()).code is Code.LOCKED
    assert card.reset(Line()).code is Code.NO_PIN
    (card.directory / "state" / "locked").unlink()  # as an earlier version left it
    assert card.home().stage() is Stage.LOCKED
    with pytest.raises(NotAuthorisedError, match="locked"):
        provision.run(card.agent(), ["stdio"], baud=115_200, linger=0.0, for_reset=False)
    assert (card.directory / "state" / "locked").exists()


def test_device_that_has_replaced_its_keys_is_locked(card: Card) -> None:
    line = Line()
    card.provision(line)
    (card.directory / "state" / "locked").unlink()
    assert card.home().stage() is Stage.PROVISIONED
    keys = card.agent().keys
    identity = keys.identity()
    keys.save(replace(identity, current=replace(identity.current, seed=b"n" * 32, provisioned=False)))
    assert card.home().stage() is Stage.LOCKED
    with pytest.raises(NotAuthorisedError):
        card.home().own_key()


def test_lock_by_hand(card: Card) -> None:
    with pytest.raises(UsageError, match="no identity"):
        provision.lock(card.agent())
    line = Line()
    station = line.station()
    device = card.boot(line.link.clock)
    line.link.run(station, device, until=lambda: station.result is not None)
    assert card.home().stage() is Stage.PROVISIONED
    provision.lock(card.agent())
    assert card.home().stage() is Stage.LOCKED
    line.link.now += 20
    again = card.provision(line)
    assert again.passed, "the station's journal knows it"


def test_one_process_at_a_time(card: Card) -> None:
    agent = card.agent()
    with agent.locked(), pytest.raises(TemporaryError, match="held by another"):
        card.home()


def test_device_that_is_busy_with_something_else_says_so(card: Card) -> None:
    line = Line()
    device = card.boot(line.link.clock)
    station = line.station()
    with card.agent().locked():
        line.link.run(station, device, until=lambda: station.verdict is not None)
    assert station.verdict is not None
    assert station.verdict.code is Code.BUSY
    assert "held by another" in station.verdict.reason


# Factory reset --------------------------------------------------------------------------------------------------------


def everything(card: Card) -> set[str]:
    state = card.directory / "state"
    return {str(p.relative_to(state)) for p in state.rglob("*") if p.is_file() and not p.name.endswith("lock")}


def test_factory_reset_leaves_nothing_but_its_receipt(card: Card) -> None:
    line = Line()
    card.provision(line, order(floors={"root": 1}))
    agent = card.agent()
    (agent.directory / "objects").mkdir()
    (agent.directory / "objects" / "chunk").write_bytes(b"x")
    (agent.directory / "state.0").write_bytes(b"x")
    release = card.directory / "models" / "bearing" / "3"
    release.mkdir(parents=True)
    (release / "model.onnx").write_bytes(b"plaintext")
    secret = agent.directory / "keys" / "secret"
    with secret.open("rb") as open_before:
        verdict = card.reset(line)
        assert open_before.read() == bytes(32), "the secret is overwritten, not only unlinked"
    assert verdict.passed
    assert everything(card) == {"destroyed"}
    assert not list((card.directory / "models").rglob("*.onnx"))
    with pytest.raises(NotAuthorisedError):
        _ = card.agent().profile
    assert card.reset(line).passed, "asked again, it says the same"
    line.link.now += 20
    assert card.provision(line).passed
    assert "destroyed" not in everything(card)
    assert len(line.book.offers) == 2


def test_reset_that_the_power_cut_is_finished_by_whatever_starts_next(card: Card) -> None:
    line = Line()
    card.provision(line)
    (offer,) = line.book.offers.values()
    origin = card.home().origin()
    assert origin is not None
    (card.directory / "state" / RESETTING).write_bytes(Destroyed(origin.kid, origin.receipt).to_bytes())
    agent = card.agent()
    with agent.locked():
        pass
    assert everything(card) == {"destroyed"}
    assert offer.accepts(origin.receipt)
    assert card.reset(line).passed


def test_identity_cannot_be_opened_once_its_secret_is_gone(card: Card) -> None:
    """What makes the reset one: restore every file but the secret, and nothing opens."""
    line = Line()
    card.provision(line)
    keys = card.directory / "state" / "keys"
    kept = {p.name: p.read_bytes() for p in keys.iterdir() if p.name != "secret"}
    card.reset(line)
    for name, data in kept.items():
        (keys / name).write_bytes(data)
    with pytest.raises(IntegrityError, match="secret"):
        card.agent().keys.identity()


def test_wipe_that_skips_the_secret_would_be_seen(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    line = Line()
    card.provision(line)
    keys = card.directory / "state" / "keys"
    kept = {p.name: p.read_bytes() for p in keys.iterdir()}
    monkeypatch.setattr("edgeseal.keystore.KeyStore.destroy", lambda _: None)
    card.reset(line)
    assert {p.name for p in keys.iterdir()} == set(kept)
    assert card.agent().keys.identity().device == "press-1"


# The board ------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_board(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/chosen/rpi-duid": b"000233331234\0",
        "proc/device-tree/system/linux,revision": b"\x00\xc0\x31\x15",
        "sys/class/net/end0/address": b"b8:27:eb:12:34:56\n",
        "sys/class/net/wlan0/address": b"00:00:00:00:00:00\n",
        "sys/block/mmcblk0/device/cid": b"275048534431364760ff1d\n",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = board.read(tmp_path)
    assert (found.eth_mac, found.mmc_cid) == ("b8:27:eb:12:34:56", "275048534431364760ff1d")
    assert (found.rpi_duid, found.board_revision) == ("000233331234", "c03115")


def test_board_that_tells_nothing(tmp_path: Path) -> None:
    assert board.read(tmp_path) == Board()


def test_doctor_says_whether_the_line_is_closed(card: Card) -> None:
    line = Line()
    station = line.station()
    line.link.run(station, card.boot(line.link.clock), until=lambda: station.result is not None)
    found = {f.check: f for f in doctor.examine(card.agent())}["line"]
    assert (found.verdict, found.hint) == ("warning", "edgeseal-agent lock")
    provision.lock(card.agent())
    assert {f.check: f for f in doctor.examine(card.agent())}["line"].verdict == "ok"

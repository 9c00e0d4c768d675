"""Station and fleet server under any order of events: lost answers, old files, re-work, revocation, distrust.

Hypothesis walks; after every step both sides are compared, and at the end everything that waits is settled as an
operator would: then each newest identity is registered, written down as such, and no serial number has two that count.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from tests.unit.enrol_world import NOW, Records

from edgeseal.enrolment import Record
from edgeseal.errors import NotAuthorisedError, TemporaryError
from edgeseal.suite import PrivateKey
from edgeseal_host.fleet import enrolling, imports
from edgeseal_host.fleet.stations import TrustedStation
from edgeseal_host.station import chain, receipts, rework
from edgeseal_host.station.devices import newest, offer_for, to_send
from edgeseal_host.station.uploader import SigningRegistrar, send
from edgeseal_host.testing.provisioning import MemoryHome

if TYPE_CHECKING:
    from edgeseal_host.station.enrolments import SignedRecord

pytestmark = pytest.mark.unit
SERIALS = st.sampled_from(["10000001", "10000002"])


class Line(RuleBasedStateMachine):
    """One station, one fleet server; what is carried between them lies in `files`."""

    template: ClassVar[Records]
    files = Bundle("files")

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="edgeseal-test-"))
        self.both = self.template.copied(self.place / "world")
        self.both.trust()
        self.lose_after = 10**9
        self.rekeyed = 0

    # The line ------------------------------------------------------------------------------------------------------

    @rule(serial=SERIALS, again=st.booleans(), live=st.booleans())
    def provision(self, serial: str, again: bool, live: bool) -> None:
        """A device comes to the line. `again`: with a new card, and authorised; `live`: its record is sent at once."""
        world = self.both.world
        with world.journal() as journal:
            done = journal.last(chain.PROVISIONED, serial=serial)
            if done is not None and again:
                rework.authorise(journal, rework.former(journal, serial), operator="boss", reason="new card")
            verdict = world.provision(world.book(journal), MemoryHome(serial=serial))
        assert verdict.passed is (done is None or again), verdict
        if live:
            self.send(10**9)

    # The way to the fleet ------------------------------------------------------------------------------------------

    def enrol_signed(self, signed: SignedRecord) -> dict[str, object]:
        with self.both.world.data.open() as fleet:
            _, answer = imports.take(fleet, signed, now=NOW)
        self.lose_after -= 1
        if self.lose_after < 0:
            raise TemporaryError("the answer was lost")
        return answer

    @rule(lose_after=st.sampled_from([0, 1, 10**9]))
    def upload(self, lose_after: int) -> None:
        self.send(lose_after)

    def send(self, lose_after: int) -> None:
        self.lose_after = lose_after
        registrar = SigningRegistrar(self, self.both.signer)
        with self.both.world.journal() as journal, suppress(TemporaryError, NotAuthorisedError):
            list(send(journal, registrar, list(to_send(journal))))

    @rule(target=files)
    def carry(self) -> object:
        with self.both.world.journal() as journal:
            records = [offer_for(journal, m.entry.kid).record for m in to_send(journal)]
        return self.both.carried(records) if records else multiple()

    @rule(file=files, back=st.booleans())
    def import_(self, file: bytes, back: bool) -> None:
        """A file arrives, perhaps an old one; `back`: its receipt reaches the station."""
        receipt = receipts.write(x.digest for x in self.both.take(file) if x.outcome != "refused")
        if back:
            with self.both.world.journal() as journal:
                receipts.acknowledge(journal, receipts.read(receipt))

    # The fleet -----------------------------------------------------------------------------------------------------

    @rule(serial=SERIALS)
    def revoke(self, serial: str) -> None:
        for name, row in self.both.devices().items():
            if row["serial"] == serial:
                with self.both.world.data.open() as fleet:
                    fleet.registry.revoke(name, "as an operator likes")

    @rule(trusted=st.booleans())
    def trust(self, trusted: bool) -> None:
        station = TrustedStation("line 1", self.both.station.raw)
        with self.both.world.data.open() as fleet:
            fleet.stations.trust(station, now=NOW, again=True)
            if not trusted:
                fleet.stations.distrust(station.id, "stolen", now=NOW)

    @rule(serial=SERIALS)
    def first_contact(self, serial: str) -> None:
        """A device replaces its keys: the registry forgets those of its record."""
        live = [n for n, row in self.both.devices().items() if row["serial"] == serial and not row["revoked"]]
        if not live:
            return
        self.rekeyed += 1
        key = PrivateKey(1, f"{serial} {self.rekeyed}".encode().ljust(32)).public
        with self.both.world.data.open() as fleet:
            row = fleet.registry.current_generation(live[0])
            with fleet.registry.transaction() as tx:
                assert tx.add_pending(row, suite=1, public=key.raw, psk=bytes(32))
            pending = fleet.registry.find(key.kid)
            assert pending is not None
            with fleet.registry.transaction() as tx:
                tx.promote(pending)

    # What always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def rows_are_identities_that_the_station_gave(self) -> None:
        if not hasattr(self, "both"):
            return
        rows = self.both.devices()
        live = [row["serial"] for row in rows.values() if not row["revoked"]]
        assert len(live) == len(set(live)), "one serial number, two devices that count"
        with self.both.world.journal() as journal:  # checks its chain
            granted = {e.device: e.serial for e in journal.of_kind(chain.GRANTED)}
            uploaded = {e.device for e in journal.of_kind(chain.UPLOADED)}
        assert {name: row["serial"] for name, row in rows.items()}.items() <= granted.items()
        assert uploaded <= set(rows), "the journal says that a record is there, and it is not"

    def teardown(self) -> None:
        if not hasattr(self, "both"):
            return
        try:
            self.settle()
        finally:
            shutil.rmtree(self.place)

    def give_trust(self) -> None:
        with self.both.world.data.open() as fleet:
            fleet.stations.trust(TrustedStation("line 1", self.both.station.raw), now=NOW, again=True)

    def settle(self) -> None:
        """Do what an operator does who wants every device in: nothing may be left over."""
        self.give_trust()
        with self.both.world.journal() as journal:
            wanted = {m.entry.device: offer_for(journal, m.entry.kid).record for m in newest(journal)}
            for name in set(self.both.devices()) - set(wanted):
                with self.both.world.data.open() as fleet:
                    fleet.registry.revoke(name, "it was provisioned again")
            self.lose_after = 10**9
            errors = [e for _, e in send(journal, SigningRegistrar(self, self.both.signer), list(to_send(journal)))]
            assert errors == [None] * len(errors)
            assert list(to_send(journal)) == []
        rows = self.both.devices()
        assert set(wanted) <= set(rows)
        assert {Record.from_bytes(record).serial for record in wanted.values()} == {r["serial"] for r in rows.values()}


def walk(**more: Any) -> None:
    chosen = settings(
        max_examples=15, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck), **more
    )
    run_state_machine_as_test(Line, settings=chosen)


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    Line.template = Records.make(tmp_path_factory.mktemp("template") / "world", 0)


def test_station_and_fleet_agree_after_any_order_of_events() -> None:
    walk()


def test_a_fleet_that_counts_one_serial_number_twice_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without that check the walk ends in an error, soon."""
    monkeypatch.setattr(enrolling, "_check_serial", lambda *_: None)
    with pytest.raises(AssertionError, match="two devices that count"):
        walk(phases=[Phase.generate], derandomize=True, database=None)

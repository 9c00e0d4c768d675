"""The device's side of X1 through lost replies, restored cards, clones, restored registries and interrupted re-keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from edgeseal.errors import NotAuthorisedError, TemporaryError
from edgeseal.session.device import (
    FORMER_KEPT,
    REKEY_AFTER,
    CounterLostError,
    Device,
    Generation,
    Identity,
    RefusedByServerError,
    ServerKeyUnknownError,
)
from edgeseal.session.messages import REFUSED, Reply, Status
from edgeseal.session.server import Row, exchange, ring
from edgeseal.suite import SUITES, PrivateKey
from edgeseal_host.testing.registry import MemoryRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_800_000_000


class LostError(TemporaryError):
    """The network ate the answer."""


@dataclass
class Fleet:
    """A fleet server in memory; `now` is its clock, `mangle` what the network does to an answer."""

    suite: int = 1
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    now: int = NOW
    mangle: Callable[[bytes], bytes] = field(default=lambda answer: answer)
    seen: list[bytes] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = PrivateKey(self.suite, os.urandom(SUITES[self.suite].seed_length))

    def enrolled(self) -> Identity:
        seed, psk = os.urandom(SUITES[self.suite].seed_length), os.urandom(32)
        self.registry.enrol("d", PrivateKey(self.suite, seed).public, psk)
        return Identity("d", Generation(self.suite, seed, psk, provisioned=True))

    def handler(self, tx: MemoryRegistry, row: Row, body: bytes) -> tuple[Status, bytes]:
        self.seen.append(body)
        self.counters.append(tx.counter(row)[0])
        return Status.OK, b"orders"

    def send(self, m1: bytes) -> bytes:
        answer = exchange(
            m1,
            ring=ring([self.server]),
            registry=self.registry,
            handler=self.handler,
            now=self.now,
            random=os.urandom,
        )
        return self.mangle(answer)


class Card:
    """A device's flash: what `save` stored, and how often it was written."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.writes = 0

    def save(self, identity: Identity) -> None:
        self.identity = identity
        self.writes += 1

    def boot(self) -> Device:
        """Start the device from what is on flash, as after a power cut."""
        return Device(self.identity, save=self.save, draw=lambda _, n: os.urandom(n))


@pytest.fixture(params=[1, 2])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    return Fleet(request.param)


def check_in(fleet: Fleet, device: Device) -> Reply:
    return device.check_in(b"report", servers=[fleet.server.public], send=fleet.send)


def new_seed(fleet: Fleet) -> bytes:
    return os.urandom(SUITES[fleet.suite].seed_length)


def re_key(fleet: Fleet, device: Device) -> Reply:
    return device.re_key(fleet.suite, new_seed(fleet), servers=[fleet.server.public], send=fleet.send)


def drop(_: bytes) -> bytes:
    raise LostError("no answer within 60 s")


def test_counters_rise_and_flash_is_written_once_in_sixteen(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    device = card.boot()
    for _ in range(33):
        assert check_in(fleet, device).body == b"orders"
    assert fleet.counters == list(range(1, 34))
    assert card.writes == 3 + 1, "three ceilings and one note of first acceptance"


def test_a_counter_is_never_used_twice_whatever_the_moment_of_a_restart(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    for requests in (1, 3, 16, 17, 2):
        device = card.boot()
        for _ in range(requests):
            check_in(fleet, device)
    assert len(set(fleet.counters)) == len(fleet.counters) == 39
    assert fleet.counters == sorted(fleet.counters)


def test_lost_reply_is_followed_by_a_new_request(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    device = card.boot()
    fleet.mangle = drop
    with pytest.raises(LostError):
        check_in(fleet, device)
    fleet.mangle = lambda answer: answer
    assert check_in(fleet, device).status is Status.OK
    assert len(fleet.seen) == 2, "the handler is idempotent because both were accepted"


def test_restored_sd_card_resyncs_and_raises_an_alarm(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    old = card.identity
    for _ in range(40):
        check_in(fleet, card.boot())
    restored = Card(replace(old))
    assert check_in(fleet, restored.boot()).status is Status.OK
    assert fleet.registry.devices["d"].alarms == 1
    assert not restored.identity.resynced
    assert fleet.counters == sorted(set(fleet.counters))


def test_restored_sd_card_with_the_answer_lost_keeps_its_alarm(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    old = card.identity
    check_in(fleet, card.boot())
    check_in(fleet, card.boot())
    restored = Card(old)
    device = restored.boot()
    answers: Iterator[Callable[[bytes], bytes]] = iter([lambda a: a, drop])

    def second_is_lost(answer: bytes) -> bytes:
        return next(answers)(answer)

    fleet.mangle = second_is_lost
    with pytest.raises(LostError):
        check_in(fleet, device)
    assert restored.identity.resynced
    fleet.mangle = lambda answer: answer
    check_in(fleet, restored.boot())
    assert fleet.registry.devices["d"].alarms == 2
    assert not restored.identity.resynced


def test_two_live_clones_are_both_served_and_both_counted(fleet: Fleet) -> None:
    identity = fleet.enrolled()
    clones = [Card(identity), Card(identity)]
    for _ in range(4):
        for clone in clones:
            assert check_in(fleet, clone.boot()).status is Status.OK
    assert fleet.registry.devices["d"].alarms >= 3, "an operator must see that a counter has two owners"


def test_re_key_leaves_only_one_of_two_clones(fleet: Fleet) -> None:
    identity = fleet.enrolled()
    first, second = Card(identity), Card(identity)
    device = first.boot()
    check_in(fleet, device)
    re_key(fleet, device)
    check_in(fleet, device)
    with pytest.raises(RefusedByServerError):
        check_in(fleet, second.boot())


def test_card_older_than_the_window_stops_and_reports(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    fleet.registry.devices["d"].ctr = 2**20 + 100
    with pytest.raises(CounterLostError, match="too far apart"):
        check_in(fleet, card.boot())
    assert card.identity.ceiling < 100


def test_restored_registry_kills_recorded_requests_and_resyncs_once(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    device = card.boot()
    check_in(fleet, device)
    backup = fleet.registry.snapshot()
    recorded: list[bytes] = []

    def record(m1: bytes) -> bytes:
        recorded.append(m1)
        return fleet.send(m1)

    device.check_in(b"after the backup", servers=[fleet.server.public], send=record)
    fleet.registry.restore(backup)
    fleet.registry.after_restore()
    handled = len(fleet.seen)
    fleet.send(recorded[0])
    assert len(fleet.seen) == handled, "a request recorded before the restore must be dead"
    assert check_in(fleet, device).status is Status.OK
    assert fleet.registry.devices["d"].alarms == 1


def test_without_the_restore_rule_a_recorded_request_would_be_accepted_again(fleet: Fleet) -> None:
    """Negative control of the restore rule."""
    device = Card(fleet.enrolled()).boot()
    backup = fleet.registry.snapshot()
    recorded: list[bytes] = []

    def record(m1: bytes) -> bytes:
        recorded.append(m1)
        return fleet.send(m1)

    device.check_in(b"x", servers=[fleet.server.public], send=record)
    fleet.registry.restore(backup)
    fleet.send(recorded[0])
    assert fleet.seen == [b"x", b"x"]


def test_first_contact_re_keys_and_then_once_a_year(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    device = card.boot()
    assert not device.rekey_due(NOW), "not before the fleet has answered"
    check_in(fleet, device)
    assert device.rekey_due(NOW)
    re_key(fleet, device)
    assert not device.rekey_due(NOW)
    check_in(fleet, device)
    assert not device.rekey_due(NOW + REKEY_AFTER - 1)
    assert device.rekey_due(NOW + REKEY_AFTER)


def test_re_key_lost_before_the_server_saw_it(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    with pytest.raises(LostError):
        card.boot().re_key(fleet.suite, new_seed(fleet), servers=[fleet.server.public], send=drop)
    assert check_in(fleet, card.boot()).status is Status.OK


def test_re_key_answer_lost_leaves_the_former_generation_valid(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    fleet.mangle = drop
    with pytest.raises(LostError):
        re_key(fleet, card.boot())
    fleet.mangle = lambda answer: answer
    device = card.boot()
    assert check_in(fleet, device).status is Status.OK
    assert re_key(fleet, device).status is Status.OK, "the orphaned pending generation is replaced"
    assert check_in(fleet, device).status is Status.OK
    assert len(fleet.registry.devices["d"].generations) == 1


def test_re_key_power_cut_before_the_new_generation_is_stored(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    kept = card.identity
    re_key(fleet, card.boot())
    card.identity = replace(kept, ceiling=card.identity.ceiling)
    device = card.boot()
    assert check_in(fleet, device).status is Status.OK
    assert re_key(fleet, device).status is Status.OK
    assert check_in(fleet, device).status is Status.OK


def test_re_key_first_use_lost_in_both_directions(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    re_key(fleet, card.boot())
    with pytest.raises(LostError):
        card.boot().check_in(b"", servers=[fleet.server.public], send=drop)
    fleet.mangle = drop
    with pytest.raises(LostError):
        check_in(fleet, card.boot())
    fleet.mangle = lambda answer: answer
    assert check_in(fleet, card.boot()).status is Status.OK
    assert len(fleet.registry.devices["d"].generations) == 1


def test_registry_restored_from_before_the_re_key_is_covered_by_the_former_generation(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    backup = fleet.registry.snapshot()
    re_key(fleet, card.boot())
    check_in(fleet, card.boot())
    fleet.registry.restore(backup)
    fleet.registry.after_restore()
    for _ in range(2):
        with pytest.raises(RefusedByServerError):
            check_in(fleet, card.boot())
    device = card.boot()
    assert check_in(fleet, device).status is Status.OK
    assert device.rekey_due(NOW), "the restored generation is the factory's again"


def test_forged_refusals_do_not_bring_a_former_generation_back(fleet: Fleet) -> None:
    """Error 0 is unauthenticated: an attacker who repeats it may delay, never change which key is current."""
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    re_key(fleet, card.boot())
    check_in(fleet, card.boot())
    current = card.identity.current
    fleet.mangle = lambda _: REFUSED
    for _ in range(5):
        with pytest.raises(RefusedByServerError):
            check_in(fleet, card.boot())
    fleet.mangle = lambda answer: answer
    assert check_in(fleet, card.boot()).status is Status.OK
    assert card.identity.current == current


def test_former_generation_is_dropped_after_thirty_days_of_server_time(fleet: Fleet) -> None:
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    re_key(fleet, card.boot())
    check_in(fleet, card.boot())
    fleet.now += FORMER_KEPT
    check_in(fleet, card.boot())
    assert card.identity.former is not None
    fleet.now += 1
    check_in(fleet, card.boot())
    assert card.identity.former is None


def test_re_key_to_a_known_public_key_is_denied(fleet: Fleet) -> None:
    """A dead RNG makes the same key twice; the registry is where it shows."""
    card = Card(fleet.enrolled())
    check_in(fleet, card.boot())
    seed = card.identity.current.seed
    reply = card.boot().re_key(fleet.suite, seed, servers=[fleet.server.public], send=fleet.send)
    assert reply.status is Status.DENIED
    assert card.identity.former is None


def test_stale_server_key_asks_for_fresh_metadata(fleet: Fleet) -> None:
    device = Card(fleet.enrolled()).boot()
    retired = PrivateKey(fleet.suite, bytes(SUITES[fleet.suite].seed_length)).public
    with pytest.raises(ServerKeyUnknownError, match="refresh metadata"):
        device.check_in(b"", servers=[retired], send=fleet.send)


def test_server_key_of_another_suite_only_is_not_authorised(fleet: Fleet) -> None:
    other = 3 - fleet.suite
    server = PrivateKey(other, bytes(SUITES[other].seed_length)).public
    with pytest.raises(NotAuthorisedError, match="min_suite"):
        Card(fleet.enrolled()).boot().check_in(b"", servers=[server], send=fleet.send)


def test_garbage_and_captive_portal_answers_are_refusals(fleet: Fleet) -> None:
    device = Card(fleet.enrolled()).boot()
    answers = (b"", b"\x00", REFUSED, b"<html>Welcome to Free WiFi</html>", os.urandom(2577), os.urandom(3473))
    remaining = list(answers)
    fleet.mangle = lambda _: remaining.pop()
    for _ in answers:
        with pytest.raises(RefusedByServerError):
            check_in(fleet, device)


def test_secrets_are_in_no_representation() -> None:
    generation = Generation(1, b"seed" * 8, b"psks" * 8)
    assert "seedseed" not in repr(Identity("d", generation, generation))
    assert "psks" not in f"{generation}{generation!r}"

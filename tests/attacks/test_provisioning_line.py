"""Somebody else on the cable: replayed, reflected, spliced and altered dialogues, two stations, devices for another.

The attacker speaks the line perfectly (tests/attacks/cable.py); only what the dialogue itself proves is in his way.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.attacks.cable import Impostor, Middle, begin, recorded, refusal, restored, run
from tests.unit.line_world import STRANGER, Line, agree, order, public

from edgeseal.provisioning import Code, Device, Dialogue, Identity, Offer, Place, Stage, Step, pin
from edgeseal.provisioning.messages import Kind, Refused, cut, frame
from edgeseal.smp import LineDecoder, Packet, Rc, encode_lines
from edgeseal_host.testing.provisioning import OS_GROUP, Link, MemoryBook, MemoryHome

pytestmark = pytest.mark.unit


# Replayed -------------------------------------------------------------------------------------------------------------


def test_replayed_station_gives_a_restored_device_nothing() -> None:
    """A recorded dialogue played to the very same device and key: its nonce is another one now."""
    line = Line()
    middle = recorded(line)
    victim = restored(line)
    dialogue = Dialogue(victim.home, random=victim.home.random, clock=victim.link.clock)
    begin(dialogue, middle.said[0])
    assert cut(dialogue._respond(middle.said[0]))[0] is Kind.IDENTITY
    assert refusal(dialogue._respond(middle.said[1])) == Code.NOT_OURS
    for message in middle.said[2:]:
        assert refusal(dialogue._respond(message)) == Code.MALFORMED
    assert victim.home.identity is None


def test_replayed_bytes_of_a_whole_line() -> None:
    """The dumb attacker: every byte the station ever wrote, once more."""
    line, wire_bytes = Line(), bytearray()

    def tap(data: bytes, direction: str) -> bytes:
        wire_bytes.extend(data if direction == "down" else b"")
        return data

    line.link = Link(mangle=tap)
    assert line.provision().passed
    victim = restored(line)
    device = victim.boot()
    device.feed(bytes(wire_bytes))
    assert device.state is Step.REFUSED
    assert victim.home.identity is None
    again = line.boot()
    again.feed(bytes(wire_bytes))
    assert line.home.identities == 1


def test_replayed_device_does_not_provision_a_second_time() -> None:
    """A recorded device against a new dialogue: it cannot open the new challenge."""
    line = Line()
    answers = recorded(line).answered
    replay = iter(answers)
    book = MemoryBook()
    verdict = run(line, line.station(book=book), Impostor(line, lambda _: next(replay)))
    assert (verdict.passed, verdict.code) == (False, Code.IMPOSTOR)
    assert not book.offers
    assert not book.done


def test_replayed_confirmation_after_a_live_proof() -> None:
    """The device is real until the grant; then an old confirmation is played instead of its own."""
    line = Line()
    old = recorded(line).answered[2]
    other = Line(book=MemoryBook())
    middle = Middle(other, up=lambda kind, body: old[1:] if kind is Kind.CONFIRM else body)
    verdict = run(other, other.station(), middle)
    assert verdict.code is Code.IMPOSTOR
    assert not other.book.done
    other.link.now += 20
    assert other.provision().passed, "the real device is still there for the next dialogue"
    agree(other)


def test_replayed_lock_does_not_lock_a_device_that_is_being_provisioned_again() -> None:
    line = Line()
    first = Middle(line)
    station = line.station()
    line.link.run(station, first, until=lambda: len(first.said) == 4)
    line.home.locked = False
    second = Middle(line, down=lambda kind, body: first.said[3][1:] if kind is Kind.LOCK else body)
    line.link.now += 20
    verdict = run(line, line.station(), second)
    assert verdict.code is Code.NOT_OURS
    assert not line.home.locked


# Reflected ------------------------------------------------------------------------------------------------------------


def test_reflected_station_gets_its_own_words() -> None:
    line = Line()
    verdict = run(line, line.station(), Impostor(line, lambda message: message))
    assert verdict.code is Code.MALFORMED
    assert not line.book.offers


@pytest.mark.parametrize("place", [1, 2, 3])
def test_reflected_tags_and_ciphertexts_of_the_right_kind(place: int) -> None:
    """Later messages come back under the kind that is expected: tags and keys differ by direction."""
    line = Line()
    expected = (Kind.IDENTITY, Kind.PROOF, Kind.CONFIRM, Kind.LOCKED)
    middle = Middle(line)
    number = iter(range(9))

    def respond(message: bytes) -> bytes:
        at = next(number)
        answer = middle._pass(message)
        return answer if at != place else frame(expected[at], message[1:])

    verdict = run(line, line.station(), Impostor(line, respond))
    assert not verdict.passed
    assert verdict.code in {Code.IMPOSTOR, Code.MALFORMED}


def test_reflected_device_gets_its_own_answers() -> None:
    line = Line()
    middle = recorded(line)
    victim = restored(line)
    dialogue = Dialogue(victim.home, random=victim.home.random, clock=victim.link.clock)
    for answer in middle.answered:
        begin(dialogue, middle.said[0])
        assert refusal(dialogue._respond(answer)) == Code.MALFORMED
    assert victim.home.identity is None


def test_reflected_packets_on_the_wire_are_nobodys_business() -> None:
    line = Line()
    device, station = line.boot(), line.station()
    down = station.outgoing()
    station.feed(down)
    device.feed(down)
    up = device.outgoing()
    device.feed(up)
    assert device.outgoing() == b""
    assert station.state is Step.GREETED


# Spliced --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [1, 2, 3])
def test_spliced_message_of_another_dialogue_with_the_same_device(place: int) -> None:
    line = Line()
    donor = recorded(line)
    victim = restored(line)
    number = iter(range(9))
    middle = Middle(victim, down=lambda _, body: donor.said[place][1:] if next(number) == place else body)
    verdict = run(victim, victim.station(), middle)
    assert verdict.code is Code.NOT_OURS
    assert (victim.home.identity is None) == (place < 3)
    assert not victim.home.locked


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.IDENTITY, Kind.CHALLENGE, Kind.PROOF, Kind.GRANT, Kind.CONFIRM])
@pytest.mark.parametrize("at", [0, 5, -40, -1])
def test_one_altered_bit_of_any_message_ends_the_dialogue(kind: Kind, at: int) -> None:
    def alter(found: Kind, body: bytes) -> bytes:
        if found is not kind:
            return body
        changed = bytearray(body)
        changed[at % len(changed)] ^= 1
        return bytes(changed)

    line = Line()
    verdict = run(line, line.station(), Middle(line, down=alter, up=alter))
    assert not verdict.passed
    assert not line.book.done
    assert not line.home.locked


def test_downgraded_entropy_policy_is_found_before_anything_is_granted() -> None:
    """`require` becomes `mix` on the way; the device's report is made to say what the station wants to hear."""

    def down(kind: Kind, body: bytes) -> bytes:
        return body.replace(b"\x67require", b"\x63mix") if kind is Kind.HELLO else body

    def up(kind: Kind, body: bytes) -> bytes:
        return body.replace(b"\x63mix\x00", b"\x67require\x01") if kind is Kind.IDENTITY else body

    line = Line()
    middle = Middle(line, down=down, up=up)
    verdict = run(line, line.station(order(policy="require")), middle)
    assert not verdict.passed
    assert not line.book.offers
    assert line.home.identity is None


def test_swapped_public_key_in_the_identity() -> None:
    """The attacker shows his own key in the device's place: the device cannot follow, and he cannot speak for it."""
    line = Line()
    attacker = MemoryHome().new_key(1, "mix", bytes(64))[0].public.raw

    def up(kind: Kind, body: bytes) -> bytes:
        if kind is not Kind.IDENTITY:
            return body
        own = Identity.from_bytes(body).key.raw
        return body.replace(own, attacker)

    verdict = run(line, line.station(), Middle(line, up=up))
    assert verdict.code is Code.NOT_OURS
    assert not line.book.offers


def test_without_the_transcript_splicing_would_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: if messages were not bound to their dialogue, the spliced lock of the test above would lock."""
    monkeypatch.setattr("edgeseal.provisioning.transcript.Transcript.check_tag", lambda *_: None)
    line = Line()
    donor = recorded(line)
    victim = restored(line)
    middle = Middle(victim, down=lambda kind, body: donor.said[3][1:] if kind is Kind.LOCK else body)
    run(victim, victim.station(), middle)
    assert victim.home.locked


# A device that answers for another ------------------------------------------------------------------------------------


def test_device_that_shows_the_key_of_another() -> None:
    """Device B has seen A's identity and shows it: it cannot prove that the key is its own."""
    a, b = Line(), Line()
    seen = recorded(a).answered[0]

    def respond(message: bytes) -> bytes:
        kind, body = cut(message)
        if kind is Kind.HELLO:
            return seen
        dialogue = Dialogue(b.home, random=b.home.random, clock=b.link.clock)
        return frame(Kind.PROOF, body[:32]) if kind is Kind.CHALLENGE else dialogue._respond(message)

    verdict = run(b, b.station(), Impostor(b, respond))
    assert verdict.code is Code.IMPOSTOR
    assert not b.book.offers


def test_device_that_takes_the_grant_of_another() -> None:
    """The grant for A, locked for B by a station that mixed them up: B cannot open it."""
    a, b = Line(), Line()
    recorded(a)
    (offer,) = a.book.offers.values()

    class MixedUp(MemoryBook):
        def admit(self, _identity: Identity) -> Place | Offer:
            return offer

    verdict = run(b, b.station(book=MixedUp()), b.boot())
    assert verdict.code is Code.KEY_SEEN
    assert b.home.identity is None


def test_device_that_confirms_without_having_opened_the_grant() -> None:
    line = Line()
    middle = Middle(line)

    def respond(message: bytes) -> bytes:
        kind, _ = cut(message)
        if kind is not Kind.GRANT:
            return middle._pass(message)
        transcript = middle.dialogue._transcript
        transcript.absorb(kind, message[1:])
        return frame(Kind.CONFIRM, transcript.lock(b"confirm", bytes(32)))

    verdict = run(line, line.station(), Impostor(line, respond))
    assert verdict.code is Code.NO_RECEIPT
    assert not line.book.done


# Two stations ---------------------------------------------------------------------------------------------------------


def other_order() -> Any:
    return order(pin=pin(public(STRANGER)), station="line 2")


def test_two_stations_on_one_wire_give_one_identity() -> None:
    """Both hear everything the device says, and talk across each other."""
    line = Line()
    books = [line.book, MemoryBook("drill")]
    stations = [
        line.station(order(), book=books[0], patience=15),
        line.station(other_order(), book=books[1], patience=15),
    ]
    device = line.boot()
    while any(s.verdict is None for s in stations):
        for station in stations:
            device.feed(station.outgoing())
            out = device.outgoing()
            for listener in stations:
                listener.feed(out)
        line.link.now += 0.02
    verdicts = [s.verdict for s in stations if s.verdict]
    assert sorted(v.passed for v in verdicts) == [False, True]
    assert line.home.identities == 1
    assert sorted(len(b.done) for b in books) == [0, 1]
    (loser,) = [v for v in verdicts if not v.passed]
    assert loser.code in {Code.BUSY, Code.LOCKED}


def test_two_stations_on_two_ports_of_one_device() -> None:
    line = Line()
    dialogue = Dialogue(line.home, random=line.home.random, clock=line.link.clock)
    ends = [Device(dialogue, OS_GROUP), Device(dialogue, OS_GROUP)]
    books = [line.book, MemoryBook("drill")]
    stations = [
        line.station(order(), book=books[0], patience=15),
        line.station(other_order(), book=books[1], patience=15),
    ]
    while any(s.verdict is None for s in stations):
        for station, end in zip(stations, ends, strict=True):
            end.feed(station.outgoing())
            station.feed(end.outgoing())
        line.link.now += 0.02
    assert sorted(s.verdict.passed for s in stations if s.verdict) == [False, True]
    assert line.home.identities == 1
    assert sorted(len(b.done) for b in books) == [0, 1]


def test_second_station_that_comes_while_the_first_is_silent_waits_ten_seconds() -> None:
    line = Line()
    device, first = line.boot(), line.station()
    line.link.run(first, device, until=lambda: first.state is Step.CHALLENGED)
    second = line.station(other_order(), book=MemoryBook(), patience=5)
    assert run(line, second, device).code is Code.BUSY
    line.link.now += 10
    assert run(line, line.station(other_order(), book=MemoryBook()), device).passed


def test_second_station_finds_a_provisioned_device_before_the_lock() -> None:
    line = Line()
    device, first = line.boot(), line.station()
    line.link.run(first, device, until=lambda: line.home.identity is not None)
    line.link.now += 20
    verdict = line.provision(other_order(), book=MemoryBook(), device=device)
    assert (verdict.code, line.home.identities) == (Code.PROVISIONED, 1)


def test_station_with_the_id_of_another_gets_no_further_than_a_proof() -> None:
    """The id is no secret: who copies it can ask a device that is not locked yet, and cannot give or lock anything."""
    line = Line()
    device, first = line.boot(), line.station()
    line.link.run(first, device, until=lambda: line.home.identity is not None)
    line.link.now += 20
    copied = order(pin=order().pin[:16] + bytes(32))

    class Eager(MemoryBook):
        def admit(self, identity: Identity) -> Place | Offer:
            return line.book.offers[identity.key.kid]

    verdict = line.provision(copied, book=Eager(), device=line.boot())
    assert verdict.code is Code.PROVISIONED, "the pin in the grant is another one"
    assert line.home.stage() is Stage.PROVISIONED


# What a device says to a screen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[1;32mPASS", "line\nbreak", "nul\0", "\u202eSSAP", "\x9b31m"])
@pytest.mark.parametrize("field", ["serial", "hardware", "mac"])
def test_terminal_escapes_in_what_a_device_calls_itself(text: str, field: str) -> None:
    """A device cannot paint on the technician's screen, nor put lines into labels and tables."""
    line = Line()
    if field == "mac":
        line.home.board = replace(line.home.board, eth_mac=text)
    else:
        setattr(line.home, field, text)
    verdict = line.provision()
    assert verdict.code is Code.MALFORMED
    assert verdict.reason.isprintable()
    assert not line.book.offers


def test_terminal_escapes_in_a_refusal() -> None:
    line = Line()
    spoken = Refused(5, "\x1b]0;owned\x07", "0001").to_bytes()
    verdict = run(line, line.station(), Impostor(line, lambda _: frame(Kind.REFUSED, spoken)))
    assert verdict.code is Code.MALFORMED
    assert verdict.reason.isprintable()


def test_terminal_escapes_in_a_busy_device() -> None:
    line = Line()
    station = line.station(patience=3)
    while station.verdict is None:
        for raw in LineDecoder().feed(station.outgoing()):
            packet = Packet.from_bytes(raw).failure(Rc.BUSY, "\x1b[2J")
            station.feed(encode_lines(packet.to_bytes()))
        line.link.now += 0.1
    assert (station.verdict.code, station.verdict.reason) == (Code.BUSY, "another station is talking to this device")


def test_answer_without_end_is_not_collected() -> None:
    """A device that announces a gigabyte, or as much as a station's message may have, is not listened to."""
    line = Line()
    verdict = run(line, line.station(patience=5), Impostor(line, lambda _: bytes(1_000_000)))
    assert verdict.code is Code.NO_ANSWER

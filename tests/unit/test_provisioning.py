"""The dialogue of the manufacturing line: good lines, bad lines, refusals in words, and going on after anything."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.line_world import ENROL, PROMPT, ROOT, SIGNER, STRANGER, Line, agree, cut_after, damage, order

from edgeseal.enrolment import Record
from edgeseal.errors import NoSpaceError
from edgeseal.provisioning import Code, Identity, Offer, Place, RefusalError, Stage, Station, Step, wire
from edgeseal.provisioning.messages import Kind, cut
from edgeseal.session.server import ring
from edgeseal.smp import LineDecoder, Op, Packet, Rc, encode_lines
from edgeseal_host.testing.provisioning import Link, MemoryBook, MemoryHome

if TYPE_CHECKING:
    from edgeseal.provisioning import Device

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("suite", [1, 2])
def test_device_and_journal_have_the_same_identity(suite: int) -> None:
    line = Line()
    assert line.provision(order(suite=suite)).passed
    assert line.home.stage() is Stage.LOCKED
    assert line.home.identity is not None
    key, grant, root = line.home.identity
    (offer,) = line.book.offers.values()
    assert (grant.device, grant.suite, grant.fleet_url) == ("press-1", suite, "https://fleet.example")
    assert (root, grant.time_floor) == (ROOT, 1_790_000_000)
    record = Record.from_bytes(offer.record)
    assert record.psk(ring([ENROL])) == grant.psk
    assert (record.public, record.serial, record.hardware) == (key.public.raw, "0001", "test-board")
    assert line.book.locks == {key.public.kid}
    agree(line)


def test_no_secret_is_in_what_the_station_remembers_or_on_the_line() -> None:
    line, seen = Line(), bytearray()

    def tap(data: bytes, _: str) -> bytes:
        seen.extend(data)
        return data

    line.link = Link(mangle=tap)
    assert line.provision().passed
    assert line.home.identity is not None
    key, grant, _ = line.home.identity
    packets = b"".join(LineDecoder().feed(bytes(seen)))
    remembered = b"".join(o.to_bytes() for o in line.book.offers.values())
    for secret in (grant.psk, grant.k_rng):
        assert secret not in packets
        assert secret not in remembered
        assert secret.hex() not in repr((line.book, line.home, line.book.done))
    assert len(packets) > 5000
    assert key.public.raw[:32] in packets  # negative control: what is public is found this way


def test_line_time_is_near_what_the_bytes_need() -> None:
    line = Line()
    assert line.provision().passed
    seconds = line.link.now
    one_way = line.link.bytes["down"] / 11_520
    assert seconds < 1.5 * (one_way + line.link.bytes["up"] / 11_520)
    assert sum(line.link.bytes.values()) < 7_600  # everything but the root, base64 and framing included


@pytest.mark.parametrize("rate", [120, 960, 92_160])
def test_line_of_any_speed_is_not_flooded_with_repetitions(rate: int) -> None:
    line = Line(link=Link(rate=rate))
    station = line.station(rate=rate)
    line.link.run(station, line.boot(), until=lambda: station.verdict is not None)
    assert station.verdict is not None
    assert station.verdict.passed
    assert station.caller.lost == 0


def test_line_that_is_slower_than_the_station_was_told() -> None:
    line = Line(link=Link(rate=960))
    assert line.provision().passed
    agree(line)


def test_offer_is_read_back() -> None:
    line = Line()
    line.provision()
    (offer,) = line.book.offers.values()
    assert Offer.from_bytes(offer.to_bytes()) == offer


# Bad lines ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-4, 5e-4, 2e-3]))
def test_any_damage_ends_with_one_identity(seed: int, rate: float) -> None:
    third = rate / 3
    line = Line(link=Link(mangle=damage(seed, flip=third, drop=third, double=third, noise=0.05)))
    assert line.provision().passed
    agree(line)


def test_whole_packets_lost_doubled_and_delayed_behind_a_prompt() -> None:
    rng = random.Random(3)

    def mangle(data: bytes, _: str) -> bytes:
        if rng.random() < 0.3:
            return PROMPT
        return data + data if rng.random() < 0.3 else data

    line = Line(link=Link(mangle=mangle))
    assert line.provision().passed
    agree(line)


def test_a_terminal_that_echoes_does_no_harm() -> None:
    line = Line()
    device, station = line.boot(), line.station()
    while station.verdict is None:
        down = station.outgoing()
        device.feed(down)
        up = device.outgoing()
        station.feed(down + up)  # echo first, then the answer
        device.feed(up)  # and the station's terminal echoes too
        line.link.now += 0.05
    assert station.verdict.passed
    agree(line)


def test_a_station_that_knows_no_damage_would_fail() -> None:
    """Negative control: without repetition the same line ends in nothing."""

    class Once(Station):
        def outgoing(self) -> bytes:
            out = super().outgoing() if self.caller.sent < 20_000 and not self.caller.lost else b""
            return out if self.caller.lost == 0 else b""

    line = Line(link=Link(mangle=damage(5, flip=1e-3)))
    station = Once(order(), line.book, random=line.rng.randbytes, clock=line.link.clock, patience=20)
    line.link.run(station, line.boot(), until=lambda: station.verdict is not None, limit=60)
    assert not line.home.locked


# Killed, cut, begun again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 700, 1500, 2500, 3500, 4500, 5500, 6300, 6700, 6900, 7100])
@pytest.mark.parametrize("who", ["station", "device", "both"])
def test_pulled_cable_and_killed_ends_complete_the_next_time(count: int, who: str) -> None:
    line = Line(link=Link(mangle=cut_after(count)))
    device = line.boot()
    line.provision(device=device, patience=3.0)
    line.link._mangle = lambda data, _: data
    line.link.now += 20
    assert line.provision(device=device if who == "station" else line.boot()).passed
    agree(line)
    assert line.home.locked


@pytest.mark.parametrize("step", [Step.GREETED, Step.CHALLENGED, Step.GRANTED, Step.LOCKING])
def test_device_that_restarts_in_the_middle_is_called_anew(step: Step) -> None:
    line = Line()
    station, device = line.station(), line.boot()
    line.link.run(station, device, until=lambda: station.state is step)
    line.link.run(station, line.boot(), until=lambda: station.verdict is not None)
    assert station.verdict is not None
    assert station.verdict.passed
    agree(line)


def test_second_confirmation_comes_from_state() -> None:
    line = Line()
    station, device = line.station(), line.boot()
    line.link.run(station, device, until=lambda: line.home.identity is not None)
    held = line.home.identity
    line.link.now += 5
    line.book.done.clear()
    again = line.station()
    line.link.run(again, line.boot(), until=lambda: again.verdict is not None)
    assert again.result is not None
    assert again.result.again
    assert line.home.identity is held
    agree(line)


def test_locked_device_is_done_for_the_station_that_knows_it_and_for_no_other() -> None:
    line = Line()
    line.provision()
    again = line.provision()
    assert (again.passed, again.reason) == (True, "0001 is provisioned and locked")
    stranger = line.provision(book=MemoryBook())
    assert (stranger.passed, stranger.code) == (False, Code.LOCKED)


def test_offer_kept_by_a_station_that_forgets_would_be_caught() -> None:
    """Negative control: a journal that loses what it granted gives a second name, and `agree` sees it."""

    class Forgetful(MemoryBook):
        def admit(self, _identity: Identity) -> Place | Offer:
            return Place(f"press-{len(self.offers) + 10}")

    line = Line(book=Forgetful())
    station, device = line.station(), line.boot()
    line.link.run(station, device, until=lambda: line.home.identity is not None)
    line.link.now += 5
    assert line.provision().code is Code.PROVISIONED, "a device with an identity takes no other"


# Refusals in words ---------------------------------------------------------------------------------------------------


def refused(code: Code, line: Line | None = None, **changes: Any) -> str:
    line = line or Line()
    verdict = line.provision(order(**changes))
    assert (verdict.passed, verdict.code) == (False, code), verdict
    assert verdict.remedy
    assert line.home.identity is None
    assert not line.book.done
    return f"{verdict.reason} | {verdict.remedy}"


def test_wrong_board() -> None:
    said = refused(Code.WRONG_BOARD, hardware=("raspberrypi,5-model-b",))
    assert "test-board" in said
    assert "raspberrypi,5-model-b" in said
    assert Line().provision(order(hardware=("other", "test-board"))).passed


def test_no_healthy_source_under_require() -> None:
    assert "noise source" in refused(Code.ENTROPY, policy="require")
    assert Line(home=MemoryHome(healthy=True)).provision(order(policy="require")).passed


def test_device_that_lies_about_the_policy_is_refused_by_the_station() -> None:
    class Lax(MemoryHome):
        def new_key(self, suite_number: int, _policy: Any, host: bytes) -> Any:
            return super().new_key(suite_number, "mix", host)

    assert "without a healthy noise source" in refused(Code.UNHEALTHY, Line(home=Lax()), policy="require")


def test_suite_a_device_does_not_have() -> None:
    assert "suite 9" in refused(Code.SUITE, suite=9)


def test_line_without_a_device() -> None:
    line = Line(link=Link(mangle=lambda _data, direction: PROMPT if direction == "down" else b""))
    verdict = line.provision(patience=5)
    assert (verdict.code, verdict.reason) == (Code.NO_ANSWER, "no answer in 5 s")
    assert "TX and RX" in verdict.remedy


def test_name_that_no_device_can_have() -> None:
    class Wrong(MemoryBook):
        def admit(self, _identity: Identity) -> Place:
            return Place("Press 7")

    assert "a-z 0-9" in refused(Code.OPERATOR, Line(book=Wrong()))


def test_journal_on_a_full_disk_gives_the_device_nothing() -> None:
    class Full(MemoryBook):
        def granted(self, _offer: Offer, _identity: Identity) -> None:
            raise NoSpaceError("no space left on the station's disk")

    assert "no space left" in refused(Code.JOURNAL, Line(book=Full()))


def test_device_on_a_full_card_says_so() -> None:
    class Full(MemoryHome):
        def become(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    line = Line(home=Full())
    assert "No space left" in refused(Code.STORAGE, line)
    assert len(line.book.offers) == 1  # the same grant goes on when the card is replaced or freed


def test_book_that_refuses_is_quoted() -> None:
    class Seen(MemoryBook):
        def admit(self, identity: Identity) -> Place:
            raise RefusalError(Code.SERIAL_SEEN, f"{identity.asked.serial} was provisioned on Monday")

    assert "0001 was provisioned on Monday" in refused(Code.SERIAL_SEEN, Line(book=Seen()))


def test_key_that_was_given_to_another_serial_number() -> None:
    """Two devices with one key: copied cards, or a dead random source."""
    line = Line()
    line.provision()
    assert line.home.identity is not None
    twin = MemoryHome(serial="0002")
    twin.pending = (line.home.identity[0], MemoryHome().new_key(1, "mix", bytes(64))[1])
    other = Line(home=twin, book=line.book)
    verdict = other.provision()
    assert (verdict.code, twin.identity) == (Code.KEY_SEEN, None)
    assert "0001" in verdict.reason


def test_offer_of_another_batch_is_not_mixed_with_this_one() -> None:
    line = Line()
    station, device = line.station(), line.boot()
    line.link.run(station, device, until=lambda: bool(line.book.offers))
    line.link.now += 5
    verdict = line.provision(order(root=ROOT + b" "))
    assert verdict.code is Code.OPERATOR
    assert "batch file it was begun with" in verdict.remedy


def test_abandoned_line() -> None:
    line = Line()
    station = line.station()
    station.abandon()
    assert station.verdict is not None
    assert station.verdict.code is Code.LINE_BROKE
    assert (station.outgoing(), station.wait()) == (b"", None)


def test_device_that_never_comes_to_an_end_is_given_up() -> None:
    line = Line()
    station = line.station()
    while station.verdict is None:
        for raw in LineDecoder().feed(station.outgoing()):
            request = Packet.from_bytes(raw)
            put = wire.read(request.body, wire.Put)
            endless = wire.write(wire.Piece(put.s, put.n, put.o, x=True))
            station.feed(encode_lines(request.answer(endless).to_bytes()))
        line.link.now += 1.0
    assert station.verdict.code is Code.NO_ANSWER


# Packets of group 64 --------------------------------------------------------------------------------------------------


def ask(device: Device, packet: Packet) -> dict[str, Any]:
    device.feed(encode_lines(packet.to_bytes()))
    (answer,) = LineDecoder().feed(device.outgoing())
    return Packet.from_bytes(answer).body


def test_status_is_there_for_any_tool() -> None:
    line = Line()
    packet = Packet(Op.READ, 64, wire.STATUS, {})
    assert ask(line.boot(), packet) == {"v": 1, "stage": "fresh", "serial": "0001", "agent": "0.1.0"}
    line.provision()
    assert ask(line.boot(), packet)["stage"] == "locked"


@pytest.mark.parametrize(
    ("packet", "rc"),
    [
        (Packet(Op.WRITE, 64, wire.PUT, {}), Rc.INVALID),
        (
            Packet(Op.WRITE, 64, wire.PUT, {"s": b"x" * 12, "n": 0, "o": 5, "l": 9, "h": bytes(8), "d": b"x"}),
            Rc.INVALID,
        ),
        (
            Packet(Op.WRITE, 64, wire.PUT, {"s": b"x" * 12, "n": 0, "o": 96, "l": 9, "h": bytes(8), "d": b"x"}),
            Rc.INVALID,
        ),
        (
            Packet(Op.WRITE, 64, wire.PUT, {"s": b"x" * 12, "n": 0, "o": 0, "l": 99, "h": bytes(8), "d": b"x"}),
            Rc.INVALID,
        ),
        (
            Packet(Op.WRITE, 64, wire.PUT, {"s": b"x" * 12, "n": 1, "o": 0, "l": 1, "h": bytes(8), "d": b"x"}),
            Rc.BAD_STATE,
        ),
        (Packet(Op.READ, 64, wire.GET, {"s": b"x" * 12, "n": 0, "o": 0, "c": 96}), Rc.BAD_STATE),
        (Packet(Op.READ, 64, wire.GET, {"s": b"x" * 12, "n": 0, "o": 0, "c": 10**9}), Rc.INVALID),
        (
            Packet(Op.WRITE, 64, wire.PUT, {"s": b"x" * 12, "n": 0, "o": 0, "l": 2**40, "h": bytes(8), "d": b""}),
            Rc.INVALID,
        ),
        (Packet(Op.READ, 64, 9, {}), Rc.NOT_SUPPORTED),
        (Packet(Op.READ, 64, wire.PUT, {}), Rc.NOT_SUPPORTED),
    ],
)
def test_packets_a_device_refuses(packet: Packet, rc: Rc) -> None:
    assert ask(Line().boot(), packet)["err"] == {"group": 64, "rc": rc}


def test_group_nobody_has() -> None:
    assert ask(Line().boot(), Packet(Op.READ, 7, 0, {}))["err"]["rc"] == Rc.NOT_SUPPORTED


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_message_is_answered_with_a_refusal_or_an_identity(message: bytes) -> None:
    line = Line()
    dialogue = line.boot()._dialogue
    kind, _ = cut(dialogue._respond(message))
    assert kind is Kind.REFUSED
    assert line.home.identity is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.randoms(use_true_random=False))
def test_pieces_in_any_order_make_the_message(length: int, rng: random.Random) -> None:
    message = rng.randbytes(length)
    assembly = wire.Assembly(length, wire.check_value(message))
    offsets = list(range(0, length, wire.UNIT)) * 2
    rng.shuffle(offsets)
    for offset in offsets:
        assert assembly.add(offset, wire.cut_piece(message, offset, wire.UNIT))
    assert assembly.whole() == message


# Factory reset --------------------------------------------------------------------------------------------------------


def test_factory_reset_destroys_and_says_so_and_the_device_is_new() -> None:
    line = Line()
    line.provision()
    (kid,) = line.book.offers
    verdict = line.factory_reset()
    assert (verdict.passed, verdict.reason) == (True, "the identity is destroyed")
    assert line.home.stage() is Stage.FRESH
    assert line.home.last is not None
    assert line.home.last.kid == kid
    assert line.factory_reset().passed, "asked again, it says the same"
    assert line.provision().passed
    assert line.home.identity is not None
    assert line.home.identity[0].public.kid != kid


def test_factory_reset_of_a_device_without_identity() -> None:
    assert Line().factory_reset().code is Code.NOTHING_HERE


def test_factory_reset_of_a_device_enrolled_by_hand() -> None:
    line = Line()
    line.provision()
    line.home.kept = None
    assert line.factory_reset().code is Code.NO_PIN
    assert line.home.identity is not None


def test_factory_reset_by_a_stranger() -> None:
    line = Line()
    line.provision()
    verdict = line.factory_reset(STRANGER)
    assert verdict.code is Code.AUTHORISATION
    assert line.home.identity is not None
    assert line.factory_reset(SIGNER).passed


def test_factory_reset_over_a_damaged_line() -> None:
    line = Line()
    line.provision()
    line.link._mangle = damage(11, flip=3e-4, drop=3e-4, double=3e-4, noise=0.1)
    assert line.factory_reset().passed
    assert line.home.identity is None

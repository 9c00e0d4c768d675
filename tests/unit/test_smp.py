"""SMP lines and packets: what other tools write is read, what noise makes of it is dropped, nothing else is lost."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smp import header as smp_header
from smp import os_management
from smp import packet as smp_packet

from edgeseal.errors import FormatError
from edgeseal.smp import MAX_PACKET, LineDecoder, Op, OsGroup, Packet, Rc, crc16, encode_lines

pytestmark = pytest.mark.unit

INFO = OsGroup("Linux", "press-7", "6.12", "edgeseal 0.1.0", "-", "aarch64", "Cortex-A72", "pi-4", "edgeseal")
PACKETS = st.binary(min_size=1, max_size=600)
# What a shared console carries besides: prompts, boot messages, parts of lines, lone marks.
NOISE = st.sampled_from(
    [
        b"",
        b"\r\nraspberrypi login: ",
        b"[    0.000000] Booting Linux\n",
        b"\x06",
        b"\x04",
        b"\x06\x09AA",
        b"\x00\xff" * 9,
    ]
)


def read(data: bytes) -> list[bytes]:
    return LineDecoder().feed(data)


def test_crc_is_xmodem() -> None:
    assert crc16(b"123456789") == 0x31C3  # the check value of the CRC catalogue


@given(PACKETS)
def test_lines_are_those_of_the_smp_library(packet: bytes) -> None:
    lines = encode_lines(packet)
    assert lines == b"".join(smp_packet.encode(packet))
    assert max(map(len, lines.splitlines(keepends=True))) <= 127
    assert read(lines) == [packet]


@pytest.mark.parametrize("line_length", [8, 40, 127, 250])
def test_lines_of_any_length_are_read(line_length: int) -> None:
    packet = bytes(range(256)) * 4
    assert read(b"".join(smp_packet.encode(packet, line_length))) == [packet]


@settings(max_examples=60)
@given(st.lists(st.tuples(NOISE, PACKETS), max_size=5), NOISE, st.data())
def test_any_cut_and_noise_between_packets_loses_nothing(
    parts: list[tuple[bytes, bytes]], tail: bytes, data: st.DataObject
) -> None:
    stream = b"".join(noise + encode_lines(packet) for noise, packet in parts) + tail
    decoder, found, at = LineDecoder(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, 200))
        found += decoder.feed(stream[at : at + step])
        at += step
    assert found == [packet for _, packet in parts]


@settings(max_examples=60)
@given(st.binary(max_size=2000))
def test_any_bytes_are_survived_and_the_next_packet_is_read(noise: bytes) -> None:
    decoder = LineDecoder()
    decoder.feed(noise)
    decoder.feed(b"\n")
    assert decoder.feed(encode_lines(b"packet"))[-1:] == [b"packet"]


@given(PACKETS, st.data())
def test_a_flipped_bit_never_changes_a_packet(packet: bytes, data: st.DataObject) -> None:
    lines = bytearray(encode_lines(packet))
    lines[data.draw(st.integers(0, len(lines) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert read(bytes(lines) + encode_lines(b"next")) in ([b"next"], [packet, b"next"])


@given(PACKETS, st.integers(0, 10_000))
def test_half_a_packet_gives_way_to_the_next(packet: bytes, cut: int) -> None:
    lines = encode_lines(packet)
    assert read(lines[: cut % len(lines)] + encode_lines(b"next")) == [b"next"]


def test_carriage_returns_of_a_terminal_do_no_harm() -> None:
    assert read(encode_lines(bytes(500)).replace(b"\n", b"\r\n")) == [bytes(500)]


def test_memory_is_bounded_whatever_comes() -> None:
    decoder = LineDecoder()
    for piece in (b"\x06\x09" + b"A" * 5000, b"x" * 5000, b"\x06\x09////\n" + (b"\x04\x14" + b"A" * 120 + b"\n") * 500):
        decoder.feed(piece)
        held = len(decoder._pending) + len(decoder._body or b"")
        assert held <= MAX_PACKET + 512, held


@pytest.mark.parametrize("length", [0, 2, 3, MAX_PACKET + 3, 65_535])
def test_claimed_length_that_cannot_be(length: int) -> None:
    import base64

    line = b"\x06\x09" + base64.b64encode(length.to_bytes(2, "big") + bytes(2)) + b"\n"
    assert read(line + encode_lines(b"next"))[-1:] == [b"next"]


def test_damage_is_counted() -> None:
    decoder = LineDecoder()
    good = encode_lines(b"one packet")
    decoder.feed(good + good[:8] + good + good.replace(b"b", b"c", 1))
    assert decoder.damaged == 2


def test_too_long_a_packet_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="at most 2048"):
        encode_lines(bytes(MAX_PACKET + 1))


# Packets --------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(Op), st.integers(0, 65_535), st.integers(0, 255), st.integers(0, 255), st.integers(0, 3))
def test_packet_is_read_back(op: Op, group: int, command: int, sequence: int, version: int) -> None:
    packet = Packet(op, group, command, {"d": "x", "n": 7}, sequence, version)
    assert Packet.from_bytes(packet.to_bytes()) == packet


def test_packet_is_that_of_the_smp_library() -> None:
    theirs = os_management.EchoWriteRequest(d="hello", sequence=9)
    ours = Packet(Op.WRITE, 0, 0, {"d": "hello"}, sequence=9)
    assert bytes(theirs) == ours.to_bytes()
    reply = INFO.answer(ours).to_bytes()
    assert os_management.EchoWriteResponse.loads(reply).r == "hello"
    assert smp_header.Header.loads(reply[:8]).op is smp_header.OP.WRITE_RSP


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_packet_or_a_format_error(data: bytes) -> None:
    try:
        Packet.from_bytes(data)
    except FormatError:
        return


def _packet(body: bytes, **changes: int) -> bytes:
    head = Packet(Op.READ, 0, 0, {}).to_bytes()[:8]
    length = changes.get("length", len(body))
    return bytes([changes.get("first", head[0])]) + b"\0" + length.to_bytes(2, "big") + head[4:] + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        _packet(b""),
        _packet(b"\xa0", length=2),
        _packet(b"\xa0" + b"\xa0"),
        _packet(b"\xa0", first=7),
        _packet(cbor2.dumps([1])),
        _packet(cbor2.dumps({1: 2})),
        _packet(b"\xa2\x61d\x01\x61d\x02"),
        _packet(b"\x81" * 900 + b"\x01"),
        _packet(b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff"),
        _packet(b"\xa1\x61d\xd8\x20\x61x"),
        _packet(b"\xa1\x61d\xc2\x49" + b"\xff" * 9),
    ],
)
def test_packets_that_are_none(data: bytes) -> None:
    with pytest.raises(FormatError, match="SMP"):
        Packet.from_bytes(data)


# Group 0 --------------------------------------------------------------------------------------------------------------


def ask(command: int, body: dict[str, Any], op: Op = Op.READ, version: int = 1) -> dict[str, Any]:
    return INFO.answer(Packet(op, 0, command, body, version=version)).body


@pytest.mark.parametrize(
    ("wanted", "output"),
    [
        (None, "Linux"),
        ("", "Linux"),
        ("n", "press-7"),
        ("mn", "press-7 aarch64"),
        ("a", "Linux press-7 6.12 edgeseal 0.1.0 - aarch64 Cortex-A72 pi-4 edgeseal"),
    ],
)
def test_application_info_like_uname(wanted: str | None, output: str) -> None:
    assert ask(7, {} if wanted is None else {"format": wanted}) == {"output": output}


def test_parameters_tell_a_client_how_much_fits() -> None:
    assert ask(6, {}) == {"buf_size": MAX_PACKET, "buf_count": 4}


@pytest.mark.parametrize("text", ["", "hello", "ü" * 500])
def test_echo(text: str) -> None:
    assert ask(0, {"d": text}, Op.WRITE) == {"r": text}


@pytest.mark.parametrize(
    ("command", "body", "op", "rc"),
    [
        (0, {}, Op.WRITE, Rc.INVALID),
        (0, {"d": 7}, Op.WRITE, Rc.INVALID),
        (0, {"d": "x" * 1025}, Op.WRITE, Rc.INVALID),
        (7, {"format": "z"}, Op.READ, Rc.INVALID),
        (7, {"format": 1}, Op.READ, Rc.INVALID),
        (5, {}, Op.WRITE, Rc.NOT_SUPPORTED),  # reset: never by a stranger on a cable
        (6, {}, Op.WRITE, Rc.NOT_SUPPORTED),
    ],
)
@pytest.mark.parametrize("version", [0, 1])
def test_what_group_0_refuses(command: int, body: dict[str, Any], op: Op, rc: Rc, version: int) -> None:
    assert ask(command, body, op, version) == {"rc": rc}


def test_failure_of_a_user_group_in_both_versions() -> None:
    assert Packet(Op.READ, 64, 0, {}, version=0).failure(Rc.BUSY, "why").body == {"rc": 10, "rsn": "why"}
    assert Packet(Op.READ, 64, 0, {}).failure(Rc.BUSY).body == {"err": {"group": 64, "rc": 10}}

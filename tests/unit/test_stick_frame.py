"""ESQ1 frames: the vectors, every damage, resynchronisation, the MAC."""

from __future__ import annotations

import hmac
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vectors import make_stick

from edgeseal.stick import frame, mac

DIRECTORY = Path(__file__).parents[1] / "vectors" / "stick"
CASES: dict[str, Any] = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(DIRECTORY.glob("*.json"))}
SESSION = CASES["session"]
GOOD = [pytest.param(c, id=name) for name, c in CASES.items() if name.startswith("frame-")]
BROKEN = [pytest.param(c, id=name) for name, c in CASES.items() if name.startswith("broken-")]
SOUND = bytes.fromhex(CASES["frame-raw-paired"]["frame"])


def _key() -> mac.Hmac:
    nonce, k_stick = bytes.fromhex(SESSION["nonce"]), bytes.fromhex(SESSION["k_stick"])
    return mac.Hmac(mac.session_key(k_stick, nonce, SESSION["boot_id"], SESSION["serial"]))


def _with_crc(body: bytes) -> bytes:
    """Repair the CRC, as an attacker would."""
    return body[:1020] + struct.pack("<I", zlib.crc32(body[:1020]))


def _encoded_again(f: frame.Frame, key: mac.Hmac | None) -> bytes:
    return frame.encode(
        kind=f.kind,
        flags=f.flags,
        boot_id=f.boot_id,
        seq=f.seq,
        t_us=f.t_us,
        first_sample=f.first_sample,
        payload=f.payload,
        bits=f.bits,
        channel=f.channel,
        led=f.led,
        key=key,
    )


def test_the_vectors_on_disk_are_what_their_maker_writes() -> None:
    for name, case in make_stick.good().items():
        assert CASES[f"frame-{name}"]["frame"] == case["frame"]
    assert len(BROKEN) == len(make_stick.broken())


@pytest.mark.parametrize("case", GOOD)
def test_a_vector_decodes_and_encodes_to_the_same_bytes(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["frame"])
    decoded = frame.decode(data)
    for name, value in case["fields"].items():
        assert getattr(decoded, name) == value, name
    if "samples" in case:
        assert decoded.samples().tolist() == case["samples"]
    else:
        assert decoded.payload.hex() == case["payload"]
    paired = any(decoded.tag)
    assert decoded.authentic(_key()) == paired
    assert _encoded_again(decoded, _key() if paired else None) == data


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_vector_is_refused(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["frame"])
    if case["refused_by"] == "samples":
        decoded = frame.decode(data)
        with pytest.raises(frame.FrameError, match="12 bits"):
            decoded.samples()
    else:
        with pytest.raises(frame.FrameError):
            frame.decode(data)


def test_every_single_bit_flip_is_refused_by_the_crc() -> None:
    for position in range(8 * frame.FRAME_LENGTH):
        damaged = bytearray(SOUND)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(frame.FrameError):
            frame.decode(damaged)


def test_every_truncation_is_refused() -> None:
    for length in range(frame.FRAME_LENGTH):
        with pytest.raises(frame.FrameError, match="1024"):
            frame.decode(SOUND[:length])


def test_every_header_or_sample_bit_that_is_forged_with_a_good_crc_fails_the_mac() -> None:
    """Negative control of the two checks: the CRC alone lets forgeries through, the MAC does not."""
    key, passed = _key(), 0
    for position in [*range(frame.HEADER_LENGTH * 8), *range(frame.HEADER_LENGTH * 8, frame.SIGNED_LENGTH * 8, 61)]:
        forged = bytearray(SOUND)
        forged[position // 8] ^= 1 << position % 8
        try:
            decoded = frame.decode(_with_crc(bytes(forged)))
        except frame.FrameError:
            continue  # not a frame at all
        passed += 1
        assert not decoded.authentic(key)
    assert passed > 300


def test_a_frame_of_another_session_is_not_authentic() -> None:
    k_stick, nonce = bytes.fromhex(SESSION["k_stick"]), bytes.fromhex(SESSION["nonce"])
    boot, serial = SESSION["boot_id"], SESSION["serial"]
    for other in (
        mac.session_key(bytes(32), nonce, boot, serial),
        mac.session_key(k_stick, bytes(32), boot, serial),
        mac.session_key(k_stick, nonce, boot + 1, serial),
        mac.session_key(k_stick, nonce, boot, serial[:-1] + "0"),
    ):
        assert not frame.decode(SOUND).authentic(mac.Hmac(other))


def test_an_unpaired_frame_is_never_authentic() -> None:
    assert not frame.decode(bytes.fromhex(CASES["frame-raw-unpaired"]["frame"])).authentic(_key())


@given(key=st.binary(min_size=1, max_size=64), message=st.binary(max_size=300))
@settings(max_examples=60)
def test_hmac_equals_the_standard_library(key: bytes, message: bytes) -> None:
    assert mac.Hmac(key).digest(message) == hmac.digest(key, message, "sha256")
    assert mac.tag(key, message) == hmac.digest(key, message, "sha256")[:16]


@pytest.mark.parametrize("length", [0, 65])
def test_hmac_refuses_a_key_of_a_length_the_stick_never_has(length: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        mac.Hmac(bytes(length))


@pytest.mark.parametrize(("k_length", "nonce_length"), [(31, 32), (32, 33), (0, 32)])
def test_session_key_refuses_wrong_lengths(k_length: int, nonce_length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        mac.session_key(bytes(k_length), bytes(nonce_length), 1, "00")


def test_tags_are_compared_whole() -> None:
    tag = bytes(range(16))
    assert mac.equal(tag, bytes(tag))
    assert not any(mac.equal(tag, bytes(b ^ (i == j) for j, b in enumerate(tag))) for i in range(16))
    assert not mac.equal(tag, tag[:15])
    assert not mac.equal(tag, tag + b"\0")


_U64 = st.integers(0, 2**64 - 1)


@given(
    flags=st.sampled_from([0, frame.LED_ON, frame.SIMULATED | frame.RCT_ALARM, 0x807F]),
    boot_id=st.integers(0, 2**32 - 1),
    seq=_U64,
    t_us=_U64,
    first_sample=_U64,
    codes=st.lists(st.integers(0, 4095), min_size=480, max_size=480),
    led=st.integers(0, 4),
)
@settings(max_examples=30)
def test_any_raw_frame_round_trips(
    flags: int, boot_id: int, seq: int, t_us: int, first_sample: int, codes: list[int], led: int
) -> None:
    data = frame.encode(
        kind=frame.RAW,
        flags=flags,
        boot_id=boot_id,
        seq=seq,
        t_us=t_us,
        first_sample=first_sample,
        payload=struct.pack("<480H", *codes),
        led=led,
    )
    f = frame.decode(data)
    assert (f.flags, f.boot_id, f.seq, f.t_us, f.first_sample, f.led) == (flags, boot_id, seq, t_us, first_sample, led)
    assert f.samples().tolist() == codes
    assert _encoded_again(f, None) == data


@pytest.mark.parametrize(("kind", "length"), [(1, 958), (1, 959), (2, 148), (3, 31), (4, 65), (4, 0)])
def test_encode_refuses_a_payload_of_the_wrong_length(kind: int, length: int) -> None:
    with pytest.raises(frame.FrameError):
        frame.encode(kind=kind, flags=0, boot_id=0, seq=0, t_us=0, first_sample=0, payload=bytes(length))


@given(st.binary(max_size=1100))
@settings(max_examples=60)
def test_decode_of_anything_is_a_frame_or_a_frame_error(data: bytes) -> None:
    with pytest.raises(frame.FrameError):
        frame.decode(data)


@given(st.integers(0, 43), st.integers(0, 255))
@settings(max_examples=150)
def test_decode_of_any_header_with_a_good_crc_is_a_frame_or_a_frame_error(position: int, value: int) -> None:
    data = bytearray(SOUND)
    data[position] = value
    try:
        f = frame.decode(_with_crc(bytes(data)))
    except frame.FrameError:
        return
    assert f.kind == frame.RAW
    if f.bits < 12:
        with pytest.raises(frame.FrameError, match="bits expected"):
            f.samples()
    else:
        assert len(f.samples()) == frame.SAMPLES


def _stream(count: int) -> bytes:
    return b"".join(
        frame.encode(kind=1, flags=0, boot_id=1, seq=i, t_us=0, first_sample=480 * i, payload=bytes(960))
        for i in range(count)
    )


@given(lost=st.integers(1, 1023), noise=st.binary(max_size=200))
@settings(max_examples=60)
def test_the_stream_is_found_again_after_lost_and_inserted_bytes(lost: int, noise: bytes) -> None:
    stream = noise + _stream(3)[lost:]
    at = frame.find_frame(stream)
    assert frame.decode(stream[at : at + 1024]).seq == 1


def test_a_magic_inside_the_samples_does_not_fool_resynchronisation() -> None:
    inside = frame.encode(kind=1, flags=0, boot_id=1, seq=0, t_us=0, first_sample=0, payload=b"ESQ1" * 240, bits=16)
    stream = inside[100:] + _stream(1)
    assert frame.find_frame(stream) == len(inside) - 100
    assert frame.find_frame(inside[100:]) == -1
    assert frame.find_frame(b"") == -1
    assert frame.find_frame(_stream(1) * 2, 1) == 1024

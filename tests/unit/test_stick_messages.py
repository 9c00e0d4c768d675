"""Control requests, GET_INFO, GET_STATUS, calibration records, descriptors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.vectors import make_stick

from edgeseal.stick import frame, messages

DIRECTORY = Path(__file__).parents[1] / "vectors" / "stick"
REQUESTS: dict[str, dict[str, str]] = json.loads((DIRECTORY / "requests.json").read_text("utf-8"))


@pytest.mark.parametrize("packet", REQUESTS["accepted"].values(), ids=REQUESTS["accepted"].keys())
def test_a_documented_request_is_accepted_and_encodes_to_the_same_packet(packet: str) -> None:
    setup = messages.Setup.accept(bytes.fromhex(packet))
    assert setup is not None
    assert setup.encode().hex() == packet


@pytest.mark.parametrize("packet", REQUESTS["stalled"].values(), ids=REQUESTS["stalled"].keys())
def test_any_other_request_is_stalled(packet: str) -> None:
    assert messages.Setup.accept(bytes.fromhex(packet)) is None


@given(st.binary(min_size=8, max_size=8))
@settings(max_examples=200)
def test_a_random_setup_packet_is_stalled_or_encodes_to_itself(packet: bytes) -> None:
    setup = messages.Setup.accept(packet)
    assert setup is None or setup.encode() == packet


def test_no_vendor_request_is_ever_accepted() -> None:
    """MicroPython's USB layer would stall it before the firmware sees it."""
    for number in range(256):
        for kind in (0x40, 0x41, 0xC0, 0xC1):
            assert messages.Setup.accept(struct.pack("<BBHHH", kind, number, 0, 0, 0)) is None


def test_descriptors_are_esq1_to_the_byte() -> None:
    assert messages.CONFIGURATION_DESCRIPTOR.hex() == "0902190001010080320904000001ff51010407058102400000"
    assert messages.DEVICE_DESCRIPTOR.hex() == "120100020000004009120100000101020301"
    total = struct.unpack_from("<H", messages.CONFIGURATION_DESCRIPTOR, 2)[0]
    assert total == len(messages.CONFIGURATION_DESCRIPTOR) == 25
    assert messages.STRINGS[1:3] == ("edgeseal", "edgeseal QRNG")
    assert messages.STRINGS[4] == "edgeseal-qrng/1"


def test_info_and_status_equal_the_independent_encoder() -> None:
    info = messages.Info.decode(make_stick.info())
    assert (info.serial, info.rate, info.h_claim, info.levels) == (
        make_stick.SERIAL,
        20000,
        1024,
        (9000, 13000, 21000, 37000),
    )
    assert (info.firmware, info.source_class, info.board) == ((0, 1, 0), messages.QUANTUM, messages.RP2350)
    assert info.encode() == make_stick.info()
    status = messages.Status.decode(make_stick.status())
    assert (status.frames, status.overruns, status.temperature, status.uptime) == (1000, 2, -512, 3600)
    assert status.encode() == make_stick.status()


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0), (4, 2), (16, 0), (16, 17), (17, 3), (19, 0xFF), (32, 0), (32, 5), (34, 0x04), (40, 1), (47, 1)],
)
def test_info_that_breaks_a_rule_is_refused(offset: int, value: int) -> None:
    data = bytearray(make_stick.info())
    data[offset] = value
    with pytest.raises(messages.MessageError):
        messages.Info.decode(data)


@pytest.mark.parametrize(("at", "length"), [(18, 2), (20, 4)])
def test_info_without_claim_or_rate_is_refused(at: int, length: int) -> None:
    data = bytearray(make_stick.info())
    data[at : at + length] = bytes(length)
    with pytest.raises(messages.MessageError):
        messages.Info.decode(data)


@pytest.mark.parametrize("length", [0, 31, 33, 63, 65])
def test_records_of_another_length_are_refused(length: int) -> None:
    for record in (messages.Info, messages.Status, messages.Record):
        with pytest.raises(messages.MessageError, match="bytes"):
            record.decode(bytes(length))


@pytest.mark.parametrize(("offset", "value"), [(0, 5), (1, 5)])
def test_status_of_unknown_state_or_level_is_refused(offset: int, value: int) -> None:
    data = bytearray(make_stick.status())
    data[offset] = value
    with pytest.raises(messages.MessageError):
        messages.Status.decode(data)


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=32, max_size=32), st.binary(min_size=37, max_size=37))
@settings(max_examples=100)
def test_a_random_record_is_refused_or_encodes_to_itself(info: bytes, status: bytes, record: bytes) -> None:
    for cls, data in ((messages.Info, info), (messages.Status, status), (messages.Record, record)):
        try:
            decoded: Any = cls.decode(data)
        except messages.MessageError:
            continue
        assert decoded.encode() == data


@given(st.lists(st.integers(0, 4095), min_size=2, max_size=50), st.integers(0, 4), st.integers(0, 65535))
@settings(max_examples=60)
def test_a_record_of_real_samples_round_trips_with_its_mean_and_variance(
    values: list[int], led: int, v_dc: int
) -> None:
    record = messages.Record.decode(make_stick.record(led, values, v_dc))
    mean = sum(values) / len(values)
    assert record.mean == pytest.approx(mean)
    assert record.variance == pytest.approx(sum((v - mean) ** 2 for v in values) / (len(values) - 1), abs=1e-6)
    assert record.encode() == make_stick.record(led, values, v_dc)


@given(st.lists(st.integers(1, 4094), min_size=4, max_size=20), st.sampled_from(["total", "squares", "products"]))
@settings(max_examples=60)
def test_sums_that_no_samples_can_have_are_refused(values: list[int], name: str) -> None:
    assume(len(set(values)) > 1)
    record = messages.Record.decode(make_stick.record(0, values, 0))
    setattr(record, name, getattr(record, name) * 5000)
    with pytest.raises(messages.MessageError, match="no samples can have"):
        messages.Record.decode(record.encode())


def test_a_sweep_must_go_from_dark_to_bright_and_be_complete() -> None:
    sweep = make_stick.sweep()
    records = messages.decode_sweep(sweep)
    assert [r.led for r in records] == [0, 1, 2, 3, 4]
    assert messages.encode_sweep(records) == sweep
    with pytest.raises(messages.MessageError, match="go off"):
        messages.decode_sweep(messages.encode_sweep(records[::-1]))
    with pytest.raises(messages.MessageError, match="go off"):
        messages.decode_sweep(messages.encode_sweep([records[0]] * frame.LEVELS))
    with pytest.raises(messages.MessageError, match="185"):
        messages.decode_sweep(sweep[:-37])

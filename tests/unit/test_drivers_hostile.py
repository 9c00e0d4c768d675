"""Devices that answer anything at all: whatever comes, a driver ends in one of its own errors and never in another."""

from __future__ import annotations

import binascii
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.usbmodel import Bus, ChaosKey, ComScire, Device, InfiniteNoise, Quantis
from tests.sim.usbstick import K_STICK, UNIQUE_ID, Stick

from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import Driver, DriverError, Options, Reading, Refused
from edgeseal.stick import frame, messages

PAIRED = Options(stick_keys={UNIQUE_ID.hex(): K_STICK})
FEW = settings(max_examples=40, deadline=None)


def opened(model: Device, options: Options = PAIRED) -> Driver:
    [found] = detect.scan(Bus(model), ports=list, kernel=lambda: None)
    driver: Driver = found.open(options)
    return driver


@FEW
@given(st.binary(max_size=255), st.sampled_from([Stick, ChaosKey, Quantis, InfiniteNoise, ComScire]))
def test_any_string_descriptor(answer: bytes, kind: type[Device]) -> None:
    """Also strings that are no UTF-16, empty, or of another length than they say."""

    class Hostile(kind):  # type: ignore[misc, valid-type]
        pass

    class Answering(Bus):
        @staticmethod
        def _standard(device: Device, request: int, value: int) -> bytes:
            if request == 0x06 and value >> 8 == 3 and value & 0xFF:
                return answer[:254]
            return Bus._standard(device, request, value)

    bus = Answering(Hostile())
    for found in detect.scan(bus, ports=list, kernel=lambda: None):
        texts = (found.description.manufacturer, found.description.product, found.description.serial)
        assert all(t is None or (t.isprintable() and len(t) <= 126) for t in texts)
        if kind is Quantis:  # has no names to pin: good if they can be read at all
            with suppress(DriverError):
                found.open(PAIRED).read(timeout=0.1)
        else:
            with pytest.raises(DriverError):
                found.open(PAIRED)


@FEW
@given(st.binary(max_size=64))
def test_any_identification_of_a_stick(answer: bytes) -> None:
    model = Stick()
    real = model.control

    def control(kind: int, request: int, *more: Any) -> bytes:
        return answer if request == messages.GET_INFO else real(kind, request, *more)

    model.control = control  # type: ignore[method-assign, assignment]
    with pytest.raises(Refused):
        opened(model)


@FEW
@given(
    kind=st.integers(0, 255),
    flags=st.integers(0, 0xFFFF),
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3),
    count=st.integers(0, 0xFFFF),
    length=st.integers(0, 0xFFFF),
    rest=st.binary(min_size=4, max_size=4),
    payload=st.binary(min_size=32, max_size=32),
)
def test_any_frame_with_a_good_crc(
    kind: int, flags: int, numbers: list[int], count: int, length: int, rest: bytes, payload: bytes
) -> None:
    """From an unpaired stick, so that no MAC stands in the way."""
    model = Stick(k_stick=None)
    driver = opened(model, Options())
    head = struct.pack("<4sBBHIQQQHH", b"ESQ1", 1, kind, flags, model.boot_id, *numbers, count, length) + rest
    body = head + payload * 30 + bytes(16)
    made = body + struct.pack("<I", binascii.crc32(body))
    model.forge = lambda _: made
    with suppress(DriverError):
        _plausible(driver.read(timeout=0.05))


@FEW
@given(st.binary(min_size=0, max_size=3000))
def test_any_bytes_from_a_stick(data: bytes) -> None:
    model = Stick()
    driver = opened(model)
    ahead = iter([data])
    model.forge = lambda made: next(ahead, made)
    reading = driver.read(timeout=5)
    assert reading.samples in model.taken


@FEW
@given(st.binary(min_size=185, max_size=185))
def test_any_sweep(payload: bytes) -> None:
    """Authenticated, for the stick itself may be broken: a fit or a refusal, never a crash."""
    model = Stick()
    driver = opened(model)
    real = model.next_frame

    def sweep() -> bytes:
        if not model.sweep:
            return real()
        model.sweep = False
        return model._sealed(frame.CAL, payload, 0)

    model.next_frame = sweep  # type: ignore[method-assign]
    with pytest.raises(Refused):
        driver.calibrate(timeout=1.0)  # type: ignore[attr-defined]


@FEW
@given(st.binary(min_size=64, max_size=512), st.sampled_from([ChaosKey, Quantis, InfiniteNoise, ComScire]))
def test_any_bytes_from_the_others(data: bytes, kind: type[Device]) -> None:
    model = kind()
    driver = opened(model)
    model.bulk_in = lambda _endpoint, length: data[:length]  # type: ignore[method-assign, assignment]
    with suppress(DriverError):
        _plausible(driver.read(timeout=0.02))


@FEW
@given(st.binary(max_size=4), st.sampled_from([0x10, 0x13, 0x16, 0x17]))
def test_any_answer_of_a_quantis(answer: bytes, request: int) -> None:
    model = Quantis()
    real = model.control
    model.control = lambda kind, number, *more: (  # type: ignore[method-assign]
        answer if number == request else real(kind, number, *more)
    )
    with suppress(DriverError):
        _plausible(opened(model).read(timeout=0.1))


def _plausible(reading: Reading) -> None:
    assert len(reading.samples) in (480, 512)
    assert max(reading.samples) < 1 << 16

"""The other USB drivers, detection and pinned descriptors, over models that break in every way of the failure table."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
import usb.core
from hypothesis import given
from hypothesis import strategies as st
from tests.sim import usbmodel
from tests.sim.usbmodel import Bus, ChaosKey, ComScire, Device, InfiniteNoise, Quantis, SerialCable
from tests.sim.usbstick import K_STICK, UNIQUE_ID, Stick
from usb.backend import libusb1

from edgeseal.entropy.drivers import chaoskey, comscire, detect, ftdi, infnoise
from edgeseal.entropy.drivers import usb as shared
from edgeseal.entropy.drivers.base import (
    Busy,
    Driver,
    DriverError,
    Gone,
    Hung,
    Options,
    Refused,
    Stalled,
    Symbols,
)
from edgeseal.entropy.source import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 0.25
OPTIONS = Options(stick_keys={UNIQUE_ID.hex(): K_STICK})
MODELS = [Stick, ChaosKey, Quantis, InfiniteNoise, ComScire]
OTHERS = MODELS[1:]


def scan(bus: Bus) -> list[Any]:
    return detect.scan(bus, ports=list, kernel=lambda: None)


def opened(model: Device, options: Options = OPTIONS, bus: Bus | None = None) -> Driver:
    [found] = scan(bus or Bus(model))
    driver: Driver = found.open(options)
    return driver


def samples(driver: Driver) -> list[int]:
    return list(driver.read(timeout=TIMEOUT).samples)


def test_chaoskey_gives_the_raw_samples_of_its_raw_endpoint() -> None:
    model = ChaosKey()
    driver = opened(model)
    got = samples(driver) + samples(driver)
    assert got == list(struct.unpack(f"<{len(got)}H", b"".join(model.sent)))
    assert max(got) < 4096
    assert driver.symbols == Symbols(bits=12, claim=4.0, raw=True)
    assert driver.profile.source_class == "classical"
    assert driver.describe().product == "ChaosKey-hw-1.0-sw-1.6.7"


def test_chaoskey_conditioned_when_asked() -> None:
    model = ChaosKey()
    driver = opened(model, Options(conditioned=True))
    assert bytes(samples(driver)) == b"".join(model.sent)
    assert not driver.symbols.raw


def test_chaoskey_of_the_kernel_is_left_to_the_kernel() -> None:
    model = ChaosKey()
    model.kernel_driver = "chaoskey"
    bus = Bus(model)
    with pytest.raises(Busy, match="kernel driver") as raised:
        opened(model, bus=bus)
    assert "/dev/hwrng" in (raised.value.hint or "")
    assert bus.detached == set()


@given(st.binary(max_size=64).map(lambda b: b[: len(b) // 2 * 2]))
def test_chaoskey_raw_parser(data: bytes) -> None:
    values = struct.unpack(f"<{len(data) // 2}H", data)
    if max(values, default=0) < 4096:
        assert list(chaoskey.decode_raw(data)) == list(values)
    else:
        with pytest.raises(Refused):
            chaoskey.decode_raw(data)


@pytest.mark.parametrize("packet", [64, 512])
def test_quantis_reads_whole_packets(packet: int) -> None:
    model = Quantis()
    model.endpoints = ((0x86, packet),)
    driver = opened(model)
    assert bytes(samples(driver)) == b"".join(model.sent)
    assert (driver.profile.source_class, driver.profile.evidence) == ("quantum", "vendor")
    assert not driver.symbols.raw
    assert driver.symbols.claim == 4.0
    assert (driver.describe().firmware, driver.describe().rate_bits_s) == ("board 2", 4_000_000)


def test_quantis_short_packet_is_an_error_and_not_zeros() -> None:
    """The vendor's library returns success here, with the buffer part filled."""
    model = Quantis()
    driver = opened(model)
    model.fault, model.once = usbmodel.SHORT, True
    with pytest.raises((Hung, Refused)):
        driver.read(timeout=TIMEOUT)


def test_quantis_module_is_switched_on_and_its_test_request_taken_over() -> None:
    model = Quantis()
    model.status = 0
    with pytest.raises(Refused, match="status 0"):
        opened(model).read(timeout=TIMEOUT)
    assert model.enabled == 1
    assert model.wants_startup == 0


def test_quantis_asking_for_its_start_up_test_ends_the_opening() -> None:
    model = Quantis()
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    model.wants_startup = 1
    with pytest.raises(Stalled, match="start-up test"):
        driver.read(timeout=TIMEOUT)


def test_infinite_noise_takes_comparators_in_turn() -> None:
    model = InfiniteNoise()
    driver = opened(model)
    bits = samples(driver)
    pins = model.sent[-1]
    assert bits == [(p >> 4 if i % 2 else p >> 1) & 1 for i, p in enumerate(pins)]
    assert len(bits) == 512
    assert (driver.symbols.bits, driver.symbols.raw) == (1, True)
    assert (3, 100) in model.requests  # 30,000 baud
    assert model.written[-1][:4] == b"\x04\x01\x04\x01"


def test_infinite_noise_too_slow_is_not_used() -> None:
    model = InfiniteNoise()
    driver = opened(model)
    model.delay = 0.006
    with pytest.raises(Hung, match="no batch"):
        driver.read(timeout=0.02)
    model.delay = 0.0
    assert len(samples(driver)) == 512


def test_clocks_that_the_chip_took_half_of() -> None:
    model = InfiniteNoise()
    driver = opened(model)
    model.fault = usbmodel.SHORT
    with pytest.raises(Hung, match="took 256 of 512"):
        driver.read(timeout=TIMEOUT)


@given(st.binary(max_size=600))
def test_infinite_noise_parser(pins: bytes) -> None:
    bits = infnoise.extract(pins)
    assert len(bits) == len(pins)
    assert set(bits) <= {0, 1}


def test_comscire_streams_between_start_and_stop() -> None:
    model = ComScire()
    bus = Bus(model)
    driver = opened(model, bus=bus)
    assert bytes(samples(driver)) == b"".join(model.sent)[:512]
    assert driver.profile.source_class == "unknown"
    assert bus.detached == {1}
    driver.close()
    driver.close()
    assert model.written == [b"\x96", b"\xe0"]
    assert (bus.detached, bus.claimed, bus.opened) == (set(), set(), 0)  # ftdi_sio has it back


@pytest.mark.parametrize("serial", ["QWR4P001", "QWR4A001", "QWR4E017", "QWR4X001"])
def test_comscire_models_that_are_no_generators(serial: str) -> None:
    model = ComScire()
    model.strings = (None, "ComScire", "MED100KP", serial)
    with pytest.raises(Refused, match=serial):
        opened(model)


@pytest.mark.parametrize("serial", ["QWR7A001", "QWR4M003", "QWR4R003", "QWR1234"])
def test_comscire_generators(serial: str) -> None:
    assert comscire.unfit(serial) is None


def test_ftdi_overrun_is_not_papered_over() -> None:
    model = ComScire()
    driver = opened(model)
    model.line_status = 0x02
    with pytest.raises(Stalled, match="lost bytes"):
        driver.read(timeout=TIMEOUT)


@given(st.binary(max_size=300), st.sampled_from([64, 512]))
def test_ftdi_status_bytes(payload: bytes, packet: int) -> None:
    size = packet - 2
    pieces = [payload[i : i + size] for i in range(0, len(payload), size)] or [b""]
    assert ftdi.strip(b"".join(b"\x01\x60" + p for p in pieces), packet) == payload


@given(st.binary(max_size=300))
def test_ftdi_parser_survives_anything(data: bytes) -> None:
    try:
        assert len(ftdi.strip(data, 64)) <= len(data)
    except Stalled:
        assert data


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        (usbmodel.HANG, (Hung,)),
        (usbmodel.STALL, (Stalled,)),
        (usbmodel.UNPLUG, (Gone,)),
    ],
)
def test_fault_while_reading(kind: type[Device], fault: str, errors: tuple[type[DriverError], ...]) -> None:
    model = kind()
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    model.fault = fault
    with pytest.raises(errors) as raised:
        driver.read(timeout=TIMEOUT)
    assert raised.type in errors
    driver.close()


@pytest.mark.parametrize("kind", OTHERS)
def test_short_reads_invent_nothing(kind: type[Device]) -> None:
    """Every sample that a driver gives after a short read was sent by the device, or it says that it has none."""
    model = kind()
    driver = opened(model)
    model.fault = usbmodel.SHORT
    try:
        got = driver.read(timeout=0.05).samples
    except DriverError:
        return
    if kind is ChaosKey:
        sent = struct.unpack(f"<{len(b''.join(model.sent)) // 2}H", b"".join(model.sent))
        assert set(got) <= set(sent)
        assert len(got) == 512


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("fault", "error"), [(usbmodel.BUSY, Busy), (usbmodel.UNPLUG, Gone)])
def test_fault_while_opening(kind: type[Device], fault: str, error: type[DriverError]) -> None:
    model = kind()
    bus = Bus(model)
    [found] = scan(bus)
    model.fault = fault
    with pytest.raises(error):
        found.open(OPTIONS)
    assert (bus.opened, bus.claimed) == (0, set())


@pytest.mark.parametrize("kind", MODELS)
def test_stuck_device_is_read_as_it_is(kind: type[Device]) -> None:
    """A driver does not judge: what is stuck arrives stuck, for the health tests to see."""
    model = kind()
    driver = opened(model)
    model.fault = usbmodel.STUCK
    got = samples(driver)
    assert len(set(got)) <= 2


@pytest.mark.parametrize("kind", MODELS)
def test_close_twice_and_read_after(kind: type[Device]) -> None:
    bus = Bus(model := kind())
    driver = opened(model, bus=bus)
    driver.read(timeout=TIMEOUT)
    driver.close()
    driver.close()
    assert (bus.opened, bus.claimed, bus.detached) == (0, set(), set())
    with pytest.raises(Gone):
        driver.read(timeout=TIMEOUT)


@pytest.mark.parametrize("kind", MODELS)
def test_grown_keyboard_is_refused(kind: type[Device]) -> None:
    model = kind()
    model.become_keyboard_too()
    bus = Bus(model)
    with pytest.raises(Refused, match="interfaces") as raised:
        opened(model, bus=bus)
    assert "USBGuard" in (raised.value.hint or "")
    assert (bus.claimed, bus.opened) == (set(), 0)


@pytest.mark.parametrize("kind", MODELS)
def test_turned_keyboard_is_refused(kind: type[Device]) -> None:
    model = kind()
    model.interface = (3, 1, 1, model.interface[3])
    with pytest.raises(Refused, match="03/01/01"):
        opened(model)


@pytest.mark.parametrize("kind", MODELS)
def test_hub_is_refused(kind: type[Device]) -> None:
    model = kind()
    model.device_class = 9
    with pytest.raises(Refused, match="class 0x09"):
        opened(model)


@pytest.mark.parametrize("kind", [Stick, InfiniteNoise, ComScire])
def test_extra_endpoint_is_refused(kind: type[Device]) -> None:
    model = kind()
    model.endpoints = (*model.endpoints, (0x88, 64))
    with pytest.raises(Refused, match="more than"):
        opened(model)


@pytest.mark.parametrize("kind", MODELS)
def test_missing_endpoint_is_refused(kind: type[Device]) -> None:
    model = kind()
    model.endpoints = ((0x8F, 64),)
    with pytest.raises(Refused, match="endpoint"):
        opened(model)


STICK_CHANGES: list[Callable[[Stick], Any]] = [
    lambda m: setattr(m, "endpoints", (*m.endpoints, (0x01, 64))),  # an OUT endpoint
    lambda m: setattr(m, "endpoints", ((0x81, 512),)),
    lambda m: setattr(m, "interface", (0xFF, 0x51, 0x02, 4)),
    lambda m: setattr(m, "interface", (0xFF, 0x51, 0x01, 0)),  # no name for the interface
    lambda m: setattr(m, "release", 0x0200),
    lambda m: setattr(m, "power", 250),
    lambda m: setattr(m, "strings", (None, "edgesea1", *m.strings[2:])),
    lambda m: setattr(m, "strings", (*m.strings[:3], "not hexadecimal!", m.strings[4])),
    lambda m: setattr(m, "strings", (*m.strings[:3], "0" * 16, m.strings[4])),  # GET_INFO says another
    lambda m: setattr(m, "strings", (*m.strings[:4], "edgeseal-qrng/2")),
]


@pytest.mark.parametrize("change", STICK_CHANGES)
def test_stick_with_one_thing_changed_is_refused(change: Callable[[Stick], Any]) -> None:
    model = Stick()
    change(model)
    with pytest.raises(Refused):
        opened(model)


def test_unpinned_profile_would_take_the_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: it is the pin that refuses."""
    model = Stick()
    model.become_keyboard_too()
    monkeypatch.setattr("edgeseal.entropy.drivers.pins.Pin.check", lambda *_: None)
    assert len(samples(opened(model))) == 480


def test_scan_lists_what_it_knows_and_leaves_cables_alone() -> None:
    bus = Bus(SerialCable(), *(kind() for kind in MODELS))
    found = scan(bus)
    assert [f.description.kind for f in found] == [
        "edgeseal-qrng",
        "chaoskey",
        "quantis-usb",
        "infinite-noise",
        "comscire",
    ]
    assert (bus.opened, bus.claimed) == (0, set())


def test_scan_ignores_the_test_pid_of_somebody_else() -> None:
    model = Stick()
    model.strings = (None, "somebody", "a blinking light", "0" * 16, "")
    assert scan(Bus(model)) == []


def test_scan_without_permission_lists_the_stick_and_opening_says_why() -> None:
    model = Stick()
    model.fault = usbmodel.ACCESS
    bus = Bus()
    bus.plug(model)
    model.fault = usbmodel.ACCESS
    [found] = scan(bus)
    with pytest.raises(Busy) as raised:
        found.open(OPTIONS)
    assert "udev" in (raised.value.hint or "")


def test_unplugged_between_scan_and_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """String descriptors race with unplug: pyusb answers with ValueError."""
    model = ChaosKey()
    bus = Bus(model)
    real = bus.open_device

    def pulled_out(dev: Device) -> usbmodel.Handle:
        dev.fault = usbmodel.UNPLUG
        return real(dev)

    monkeypatch.setattr(bus, "open_device", pulled_out)
    [found] = scan(bus)
    assert found.description.product is None
    with pytest.raises(Gone):
        found.open(OPTIONS)


def test_strings_are_bounded_and_printable() -> None:
    model = ChaosKey()
    model.strings = (None, "\x1b[31mred\n", "ChaosKey" + "x" * 110, "\u202e")
    [found] = scan(Bus(model))
    described = found.description
    assert described.manufacturer == "?[31mred?"
    assert described.serial == "?"
    assert len(described.product or "") <= 126


def test_without_libusb_the_hint_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libusb1, "get_backend", lambda **_: None)
    with pytest.raises(SourceError) as raised:
        detect.scan(ports=list, kernel=lambda: None)
    assert "libusb-1.0-0" in (raised.value.hint or "")


def test_every_scan_makes_a_new_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old libusb context does not see a replug where no udevd runs."""
    made: list[Bus] = []
    plugged = [ChaosKey()]

    def context(_lib: object) -> Bus:
        made.append(Bus(*plugged))
        return made[-1]

    monkeypatch.setattr(libusb1, "get_backend", lambda **_: object())
    monkeypatch.setattr(libusb1, "_LibUSB", context)
    monkeypatch.setattr(libusb1, "_lib", None, raising=False)
    assert len(detect.scan(ports=list, kernel=lambda: None)) == 1
    plugged.append(ChaosKey(2))
    assert len(detect.scan(ports=list, kernel=lambda: None)) == 2
    assert len(made) == 2


@pytest.mark.parametrize(
    ("number", "error"),
    [(19, Gone), (5, Gone), (71, Gone), (108, Gone), (110, Hung), (32, Stalled), (16, Busy), (13, Busy), (75, Stalled)],
)
def test_errno_table(number: int, error: type[DriverError]) -> None:
    translated = shared.error_of(usb.core.USBError("text", None, number), "usb:1-1", "reading")
    assert type(translated) is error
    assert "usb:1-1: reading" in translated.message


@pytest.mark.parametrize(("bits", "claim"), [(7, 1.0), (8, 8.1), (1, 1.5), (12, -1.0)])
def test_symbols_cannot_claim_what_they_cannot_hold(bits: int, claim: float) -> None:
    with pytest.raises(ValueError, match="cannot carry"):
        Symbols(bits=bits, claim=claim, raw=True)

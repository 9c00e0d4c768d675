"""Serial drivers over real ptys, the kernel's device and recorded files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st
from tests.sim import linemodel
from tests.sim.linemodel import Line, OneRng, QCicada, SwiftRng, TrueRng, TrueRngPro, TrueRngProV2
from tests.sim.usbmodel import Bus

from edgeseal.entropy.drivers import detect, hwrng, line, qcicada, replay, truerng
from edgeseal.entropy.drivers.base import (
    Busy,
    Description,
    Driver,
    DriverError,
    Gone,
    Hung,
    Options,
    Refused,
    Symbols,
)
from edgeseal.stick.frame import APT_ALARM, RCT_ALARM, STARTUP_OK

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 1.0  # a pty on a busy machine; nothing here waits for it but the faults, which ask for less
BRIEFLY = 0.05
KINDS = [TrueRng, TrueRngPro, TrueRngProV2, OneRng, SwiftRng, QCicada]

Plug = Callable[[type[Any]], Any]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """Plug a model in; all are pulled out at the end."""
    plugged: list[Line] = []

    def one(kind: type[Line]) -> Line:
        plugged.append(kind())
        monkeypatch.setattr(serial, "Serial", linemodel.openers(*plugged))
        return plugged[-1].__enter__()

    yield one
    for model in plugged:
        model.unplug()


def opened(model: Line, options: Options | None = None) -> Driver:
    probe = [model.path] if isinstance(model, QCicada) else []
    [found] = detect.scan(Bus(), ports=lambda: [model.port], probe=probe, kernel=lambda: None)
    driver: Driver = found.open(options)
    return driver


def exhaust(driver: Driver) -> None:
    """Read what was under way when the fault came, and on."""
    for _ in range(50):
        driver.read(timeout=BRIEFLY)


def sent(model: Line) -> bytes:
    return b"".join(model.sent)


@pytest.mark.parametrize("kind", [TrueRng, OneRng, QCicada, SwiftRng])
def test_reads_what_the_device_sent(kind: type[Line], plug: Plug) -> None:
    model = plug(kind)
    driver = opened(model)
    for _ in range(3):
        got = bytes(driver.read(timeout=TIMEOUT).samples)
        assert got in sent(model)
        assert len(got) >= 512
    driver.close()
    driver.close()
    with pytest.raises(Gone, match="closed"):
        driver.read(timeout=TIMEOUT)


@pytest.mark.parametrize("kind", [TrueRngPro, TrueRngProV2])
def test_pro_models_are_knocked_into_raw_mode(kind: type[Any], plug: Plug) -> None:
    model = plug(kind)
    driver = opened(model)
    assert model.speeds == [110, 300, 110, 19200]
    got = list(driver.read(timeout=TIMEOUT).samples)
    one, two = got[:256], got[256:]
    assert _follows(one, model.generators[0])
    assert _follows(two, model.generators[1])
    assert driver.symbols == Symbols(bits=10, claim=2.0, raw=True)
    driver.close()
    driver.close()
    assert model.speeds[4:] == [110, 300, 110, 300]  # as other programs expect it
    assert model.mode == 300


def _follows(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


def test_pro_model_that_does_not_hear_the_knock_is_refused(plug: Plug) -> None:
    """Its normal mode is a Mersenne twister's output: taking it for raw noise would be the Coldcard mistake."""
    model = plug(TrueRngPro)
    model.deaf = True
    with pytest.raises(Refused, match="another mode"):
        opened(model)


def test_pro_model_conditioned_when_asked(plug: Plug) -> None:
    model = plug(TrueRngPro)
    driver = opened(model, Options(conditioned=True))
    assert bytes(driver.read(timeout=TIMEOUT).samples) in sent(model)
    assert not driver.symbols.raw


def test_stuck_pro_is_read_as_it_is(plug: Plug) -> None:
    model = plug(TrueRngPro)
    model.fault = linemodel.STUCK
    assert set(opened(model).read(timeout=TIMEOUT).samples) == {0x155}


def test_onerng_is_read_without_its_whitener(plug: Plug) -> None:
    model = plug(OneRng)
    driver = opened(model)
    assert driver.describe().firmware == "version 2"
    driver.read(timeout=TIMEOUT)
    assert model.mode == 1
    assert model.running
    assert driver.symbols.raw
    assert model.commands[:3] == ["o", "4", "w"]


def test_modem_with_the_number_of_a_onerng_is_refused(plug: Plug) -> None:
    model = plug(OneRng)
    model._do = lambda letter: setattr(model, "running", letter == "O")
    model.mode = 4
    with pytest.raises(Refused, match="no OneRNG"):
        opened(model)


def test_swiftrng_reads_its_two_sources_in_turn(plug: Plug) -> None:
    model = plug(SwiftRng)
    driver = opened(model)
    for i in range(4):
        assert bytes(driver.read(timeout=TIMEOUT).samples) == model.sent[i]
    assert model.asked == "vmsd<><>"
    assert driver.describe().firmware == "SwiftRNG V2.0 SWRNG1234567890"


def test_swiftrng_status_is_believed(plug: Plug) -> None:
    model = plug(SwiftRng)
    driver = opened(model)
    model.status = 3
    with pytest.raises(Refused, match="status 3"):
        driver.read(timeout=TIMEOUT)
    driver.close()
    with pytest.raises(Refused, match="status 3"):  # the self-test of a new opening
        opened(model)


def test_swiftrng_answer_in_two_parts(plug: Plug) -> None:
    model = plug(SwiftRng)
    driver = opened(model)
    model.fault = linemodel.SHORT
    with pytest.raises(Hung, match="of 16001"):
        driver.read(timeout=0.3)
    model.fault = None
    model.send(model.sent[-1][8000:] + b"\0")
    assert bytes(driver.read(timeout=TIMEOUT).samples) == model.sent[-1]


def test_qcicada_is_configured_strictly(plug: Plug) -> None:
    model = plug(QCicada)
    model.continuous = True  # somebody left it streaming
    driver = opened(model)
    config = qcicada.Config.decode(bytes(model.config))
    assert config.processing == qcicada.RAW_NOISE
    assert config.switches == 0b01_1111  # tests and calibration on, generate_on_error off
    assert config.rest == (0.5, 4, 64, 512, 2048)  # untouched
    assert driver.read(timeout=TIMEOUT).flags == STARTUP_OK
    described = driver.describe()
    assert (described.serial, described.firmware) == ("DK0HFP4T", "CICADA-QRNG-1.1 5.13 QC0000000217")
    assert (driver.profile.source_class, driver.profile.evidence) == ("quantum", "vendor")


def test_qcicada_that_keeps_generating_on_error_is_refused(plug: Plug) -> None:
    model = plug(QCicada)
    model.stubborn = True
    with pytest.raises(Refused, match="generating on errors"):
        opened(model)


def test_serial_device_that_is_no_qcicada_is_refused(plug: Plug) -> None:
    model = plug(QCicada)
    model.hardware = b"3D printer"
    with pytest.raises(Refused, match="3D printer"):
        opened(model)


@pytest.mark.parametrize(
    ("status", "flags"), [(0x41, STARTUP_OK | RCT_ALARM), (0x81, STARTUP_OK | APT_ALARM), (0x01, STARTUP_OK)]
)
def test_qcicada_reports_its_own_tests(status: int, flags: int, plug: Plug) -> None:
    model = plug(QCicada)
    driver = opened(model)
    model.status = status
    assert driver.read(timeout=TIMEOUT).flags == flags


@pytest.mark.parametrize(
    ("status", "error"), [(0x05, Refused), (0x09, Refused), (0x11, Refused), (0x21, Refused), (0x03, Hung), (0, Hung)]
)
def test_qcicada_unwell(status: int, error: type[DriverError], plug: Plug) -> None:
    model = plug(QCicada)
    driver = opened(model)
    model.status = status
    with pytest.raises(error):
        driver.read(timeout=TIMEOUT)


def test_qcicada_recovers_from_a_short_answer(plug: Plug) -> None:
    model = plug(QCicada)
    driver = opened(model)
    real = model.noise
    model.noise = lambda n: real(n)[: n // 2]
    with pytest.raises(Hung, match="256 of 512"):
        driver.read(timeout=0.2)
    model.noise = real
    model.send(bytes(256))  # the rest, late: it must not pass for the next answer
    assert bytes(driver.read(timeout=TIMEOUT).samples) == model.sent[-1]


def test_qcicada_is_never_probed_unasked(plug: Plug) -> None:
    """Its port is any FTDI cable: somebody's printer must not get bytes."""
    model = plug(QCicada)
    assert detect.scan(Bus(), ports=lambda: [model.port], kernel=lambda: None) == []
    assert model.got == []


def test_qcicada_by_a_link_and_not_there(plug: Plug, tmp_path: Path) -> None:
    model = plug(QCicada)
    link = tmp_path / "by-id"
    link.symlink_to(model.path)
    found = detect.scan(Bus(), ports=lambda: [model.port], probe=[str(link), "/dev/ttyUSB77"], kernel=lambda: None)
    assert [f.description.path for f in found] == [str(link)]
    assert found[0].open().read(timeout=TIMEOUT).samples == model.sent[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_hang(kind: type[Any], plug: Plug) -> None:
    model = plug(kind)
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    model.fault = linemodel.HANG
    with pytest.raises(Hung):
        exhaust(driver)


@pytest.mark.parametrize("kind", KINDS)
def test_unplug_while_open(kind: type[Any], plug: Plug) -> None:
    model = plug(kind)
    driver = opened(model)
    driver.read(timeout=TIMEOUT)
    model.unplug()
    with pytest.raises(Gone):
        exhaust(driver)
    driver.close()
    with pytest.raises(Gone):
        opened(model)


@pytest.mark.parametrize("kind", KINDS)
def test_port_in_use(kind: type[Any], plug: Plug) -> None:
    model = plug(kind)
    other = line.Line(model.path, 9600)
    with pytest.raises(Busy) as raised:
        opened(model)
    assert "ModemManager" in (raised.value.hint or "")
    other.close()
    opened(model).close()


@pytest.mark.parametrize("kind", KINDS)
def test_serial_device_that_is_a_keyboard_too_is_refused_unopened(
    kind: type[Any], plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plug(kind)
    model.grow("03")
    monkeypatch.setattr(serial, "Serial", None)  # opening it would fail otherwise
    with pytest.raises(Refused, match="03") as raised:
        opened(model)
    assert "USBGuard" in (raised.value.hint or "")


def test_serial_port_that_vanished_between_scan_and_opening(plug: Plug) -> None:
    model = plug(TrueRng)
    [found] = detect.scan(Bus(), ports=lambda: [model.port], kernel=lambda: None)
    model.unplug()
    with pytest.raises(Gone):
        found.open()


@pytest.mark.parametrize("error", [OSError, ValueError, TypeError])
def test_port_that_vanishes_while_pyserial_looks_at_it(error: type[Exception]) -> None:
    def ports() -> list[Any]:
        raise error("int() argument must be a string")  # what its SysFS class makes of a file that is gone

    assert detect.scan(Bus(), ports=ports, kernel=lambda: None) == []


def test_descriptions_come_from_the_bus(plug: Plug) -> None:
    driver = opened(plug(TrueRng))
    described = driver.describe()
    assert (described.kind, described.vid, described.pid) == ("truerng", 0x04D8, 0xF5FE)
    assert (described.manufacturer, described.product) == ("ubld.it", "TrueRNG")
    assert driver.symbols.claim == 4.0


def test_other_product_under_the_number_of_a_truerng_is_not_listed(plug: Plug) -> None:
    """04D8 is Microchip's: its numbers are lent out."""
    model = plug(TrueRng)
    port = model.port
    port.product = "USB-UART bridge"
    assert detect.scan(Bus(), ports=lambda: [port], kernel=lambda: None) == []


@given(st.binary(max_size=200))
def test_truerng_parser_survives_anything(data: bytes) -> None:
    try:
        first, second, rest = truerng.decode_raw(data)
    except Refused:
        return
    assert len(first) == len(second)
    assert len(rest) < 4
    assert max([*first, *second], default=0) < 1024


@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 1023)), max_size=50), st.integers(0, 3))
def test_truerng_parser_finds_every_sample(pairs: list[tuple[int, int]], skip: int) -> None:
    made = b"".join(
        bytes([w << 7 | c >> 6, w << 7 | 0x40 | c & 0x3F])[k : k + 1]
        for p in pairs
        for w, c in enumerate(p)
        for k in (0, 1)
    )
    first, second, rest = truerng.decode_raw(made[skip:])
    kept = pairs[1:] if skip else pairs
    assert (list(first), list(second)) == ([a for a, _ in kept], [b for _, b in kept])
    assert len(rest) < 4


@given(st.binary(min_size=12, max_size=12))
def test_qcicada_configuration_round_trip(data: bytes) -> None:
    config = qcicada.Config.decode(data)
    assert qcicada.Config.decode(config.encode()).switches == data[5]
    strict = config.strict(qcicada.RAW_NOISE)
    assert strict.is_strict(qcicada.RAW_NOISE)
    assert not strict.switches & 0b10_0000


@given(st.binary(max_size=80))
def test_qcicada_parsers_take_exact_lengths(data: bytes) -> None:
    for parser, length in ((qcicada.Config.decode, 12), (qcicada.Info.decode, 56)):
        if len(data) != length:
            with pytest.raises(ValueError, match="bytes"):
                parser(data)


def test_hwrng_reads_without_blocking(tmp_path: Path) -> None:
    fifo = tmp_path / "hwrng"
    os.mkfifo(fifo)
    driver = hwrng.HwRng(Description("hwrng", str(fifo)), Options())
    writer = os.open(fifo, os.O_WRONLY)
    with pytest.raises(Hung, match="0 of 256"):
        driver.read(timeout=0.01)
    os.write(writer, bytes(100))
    with pytest.raises(Hung, match="100 of 256"):
        driver.read(timeout=0.01)
    os.write(writer, bytes(range(256)))
    reading = driver.read(timeout=TIMEOUT)
    assert reading.samples == bytes(range(256))
    assert (driver.profile.source_class, driver.profile.evidence) == ("unknown", "none")
    os.close(writer)
    driver.close()
    driver.close()
    with pytest.raises(Gone):
        driver.read(timeout=TIMEOUT)


def test_hwrng_without_a_generator_is_not_listed(tmp_path: Path) -> None:
    current = tmp_path / "rng_current"
    assert hwrng.describe(tmp_path / "none", current) is None
    current.write_text("none\n")
    assert hwrng.describe(Path("/dev/null"), current) is None
    current.write_text("bcm2835\n")
    assert hwrng.describe(tmp_path / "none", current) is None
    described = hwrng.describe(Path("/dev/null"), current)
    assert described is not None
    assert described.product == "bcm2835"


def test_hwrng_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(Gone):
        hwrng.HwRng(Description("hwrng", str(tmp_path / "none")), Options())


def test_hwrng_at_end_of_file_hangs_and_never_gives_zeros(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    driver = hwrng.HwRng(Description("hwrng", str(tmp_path / "empty")), Options())
    with pytest.raises(Hung):
        driver.read(timeout=0.01)


def test_recording_is_read_in_the_lab_only(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    codes = list(range(960))
    path.write_bytes(struct.pack("<960H", *codes) + b"\0")
    found = detect.recording(path, Symbols(bits=12, claim=4.0, raw=True))
    with pytest.raises(Refused, match="no source of randomness"):
        found.open()
    driver = found.open(Options(lab=True))
    assert (driver.profile.source_class, driver.profile.evidence) == ("unknown", "none")
    first, second = driver.read(timeout=0), driver.read(timeout=0)
    assert list(first.samples) + list(second.samples) == codes
    assert (first.first, second.first) == (0, 480)
    with pytest.raises(Gone, match="over"):
        driver.read(timeout=0)
    driver.close()
    driver.close()


def test_recording_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Gone):
        detect.recording(tmp_path / "none", Symbols(bits=8, claim=1, raw=True)).open(Options(lab=True))


@given(st.binary(max_size=64), st.sampled_from([1, 8, 10, 12, 16]))
def test_recording_parser(data: bytes, bits: int) -> None:
    data = data if bits <= 8 else data[: len(data) // 2 * 2]
    try:
        samples = replay.decode(data, bits)
    except Refused:
        return
    assert max(samples, default=0) < 1 << bits


def test_line_tells_permission_from_absence(tmp_path: Path) -> None:
    with pytest.raises(Gone):
        line.Line(str(tmp_path / "ttyACM0"), 9600)


@pytest.mark.parametrize("number", [1, 13])
def test_line_without_permission(number: int) -> None:
    error = line._open_error("/dev/ttyACM0", PermissionError(number, "no"))
    assert isinstance(error, Busy)
    assert "udev" in (error.hint or "")

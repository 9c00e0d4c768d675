"""Every driver through the agent's whole path: found, opened, tested, conditioned into a block; and never when stuck.

What the models give is uniform noise or the firmware's own simulation, so this shows that widths, claims, flags and
numbers of each driver fit the tests behind it, not that any device is good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import serial
from tests.sim import linemodel, usbmodel
from tests.sim.usbmodel import Bus
from tests.sim.usbstick import K_STICK, FirmwareStick

from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import Options
from edgeseal.entropy.reader import Attached
from edgeseal.entropy.snapshot import State
from edgeseal.entropy.source import BLOCK_LENGTH, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgeseal.entropy.drivers.base import Found

USB = [usbmodel.ChaosKey, usbmodel.Quantis, usbmodel.InfiniteNoise, usbmodel.ComScire]
DOUBTED = (State.SUSPECT, State.FAILED)
SERIAL = [linemodel.TrueRng, linemodel.TrueRngPro, linemodel.OneRng, linemodel.SwiftRng, linemodel.QCicada]


@pytest.fixture
def attach() -> Iterator[Callable[..., Attached]]:
    """Make a source of what a scan finds; all are closed at the end."""
    made: list[Attached] = []

    def one(scan: Callable[[], list[Found]], options: Options | None = None) -> Attached:
        made.append(Attached("source", scan, options=options))
        return made[-1]

    yield one
    for source in made:
        source.close()


def usb(model: usbmodel.Device) -> Callable[[], list[Found]]:
    bus = Bus(model)
    return lambda: detect.scan(bus, ports=list, kernel=lambda: None)


def line(model: linemodel.Line, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Found]]:
    monkeypatch.setattr(serial, "Serial", linemodel.openers(model))
    probe = [model.path] if isinstance(model, linemodel.QCicada) else []
    return lambda: detect.scan(Bus(), ports=lambda: [model.port], probe=probe, kernel=lambda: None)


@pytest.mark.parametrize("kind", USB)
def test_usb_device_to_block(kind: type[usbmodel.Device], attach: Callable[..., Attached]) -> None:
    source = attach(usb(kind()))
    first, second = source.block(timeout=10), source.block(timeout=10)
    assert len(first) == len(second) == BLOCK_LENGTH
    assert first != second


@pytest.mark.parametrize("kind", SERIAL)
def test_serial_device_to_block(
    kind: type[linemodel.Line], attach: Callable[..., Attached], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind() as model:
        source = attach(line(model, monkeypatch))
        assert len(source.block(timeout=10)) == BLOCK_LENGTH
        source.close()


def test_stick_to_block(attach: Callable[..., Attached]) -> None:
    model = FirmwareStick()
    source = attach(usb(model), Options(stick_keys={model.core.serial: K_STICK}))
    assert len(source.block(timeout=10)) == BLOCK_LENGTH
    assert (source.profile.source_class, source.profile.evidence) == ("quantum", "model+calibration")


@pytest.mark.parametrize("kind", USB)
def test_stuck_usb_device_never_makes_a_block(kind: type[usbmodel.Device], attach: Callable[..., Attached]) -> None:
    model = kind()
    scan = usb(model)
    model.fault = usbmodel.STUCK
    source = attach(scan)
    with pytest.raises(SourceError):
        source.block(timeout=5)
    assert source.snapshot.state in DOUBTED


@pytest.mark.parametrize("kind", SERIAL)
def test_stuck_serial_device_never_makes_a_block(
    kind: type[Any], attach: Callable[..., Attached], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind() as model:
        model.fault = linemodel.STUCK
        source = attach(line(model, monkeypatch))
        with pytest.raises(SourceError):
            source.block(timeout=5)
        assert source.snapshot.state in DOUBTED
        source.close()

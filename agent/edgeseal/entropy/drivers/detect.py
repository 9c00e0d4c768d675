"""What is attached: USB devices, serial ports, the kernel's generator.

Nothing is claimed here. A vendor and product number alone never makes a source: those of FTDI chips and of the test
PID are shared by thousands of products, so strings decide, and opening checks everything again (pins.py, handshakes).
Serial ports without a known number are never written to unless the operator names them in `probe`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from serial.tools import list_ports

from edgeseal.entropy.drivers import (
    chaoskey,
    comscire,
    hwrng,
    infnoise,
    onerng,
    qcicada,
    quantis,
    serialpin,
    stick,
    swiftrng,
    truerng,
)
from edgeseal.entropy.drivers.base import Description, Driver, DriverError, Found
from edgeseal.entropy.drivers.replay import PROFILE as FILE_PROFILE
from edgeseal.entropy.drivers.replay import Replay
from edgeseal.entropy.drivers.usb import attached, fresh_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from edgeseal.entropy.drivers.base import Options, Profile, Symbols
    from edgeseal.entropy.drivers.pins import Pin
    from edgeseal.entropy.drivers.usb import Attached


@dataclass(frozen=True, slots=True)
class _Usb:
    pin: Pin
    profile: Profile
    open: Callable[[Attached, Options], Driver]


@dataclass(frozen=True, slots=True)
class _Serial:
    ids: frozenset[tuple[int, int]]
    product: str  # regular expression
    interfaces: tuple[str, ...]
    profile: Profile
    open: Callable[[Description, Options], Driver]


USB: Final = (
    _Usb(stick.PIN, stick.PROFILE, stick.Stick),
    _Usb(chaoskey.PIN, chaoskey.PROFILE, chaoskey.ChaosKey),
    _Usb(quantis.PIN, quantis.PROFILE, quantis.Quantis),
    _Usb(infnoise.PIN, infnoise.PROFILE, infnoise.InfiniteNoise),
    _Usb(comscire.PIN, comscire.PROFILE, comscire.ComScire),
)
SERIAL: Final = (
    _Serial(truerng.IDS, truerng.PRODUCT, serialpin.CDC_ACM, truerng.PROFILE, truerng.TrueRng),
    _Serial(onerng.IDS, r".*", serialpin.CDC_ACM, onerng.PROFILE, onerng.OneRng),
    _Serial(swiftrng.IDS, r".*", serialpin.CDC_ACM, swiftrng.PROFILE, swiftrng.SwiftRng),
)
_QCICADA: Final = _Serial(frozenset(), r".*", serialpin.FTDI, qcicada.PROFILE, qcicada.QCicada)
_IDS: Final = frozenset[tuple[int, int]]().union(*(u.pin.ids for u in USB))


def scan(
    backend: Any = None,  # noqa: ANN401 -- pyusb has no types
    *,
    ports: Callable[[], Iterable[Any]] = list_ports.comports,
    probe: Iterable[str] = (),
    kernel: Callable[[], Description | None] = hwrng.describe,
) -> list[Found]:
    """Return every source that is attached now, in the order USB, serial, kernel.

    `backend`: a pyusb backend; by default a new libusb context, for an old one may not see a replug. `probe`: serial
    ports that the operator says carry a QCicada. Raises DriverError if the bus cannot be scanned at all.
    """
    lines = _lines(ports)
    found = [*_usb(backend if backend is not None else fresh_backend()), *_serial(lines), *_probed(probe, lines)]
    description = kernel()
    if description is not None:
        found.append(Found(description, hwrng.PROFILE, lambda options: hwrng.HwRng(description, options)))
    return found


def recording(path: Path, symbols: Symbols) -> Found:
    """Return a file of samples as a source; opening it is refused outside the lab."""
    return Found(
        Description(FILE_PROFILE.name, str(path)), FILE_PROFILE, lambda options: Replay(path, symbols, options)
    )


def _usb(backend: Any) -> Iterator[Found]:  # noqa: ANN401
    for device in attached(backend, lambda vid, pid: (vid, pid) in _IDS):
        try:
            texts = device.texts()
        except DriverError:
            texts = None  # no permission, or going away just now
        finally:
            device.release()
        for kind in USB:
            if (device.vid, device.pid) in kind.pin.ids and _is(kind.pin, texts):
                yield _found_usb(kind, device, texts or (None, None, None))


def _is(pin: Pin, texts: tuple[str | None, str | None, str | None] | None) -> bool:
    """Whether to list a device under a profile: by its name, or because the number belongs to that product alone.

    A device that only looks like one is listed all the same, so that opening it says why it is refused.
    """
    if pin.dedicated:
        return True
    if texts is None:  # not allowed to look: opening it says so; but an FTDI chip may be anybody's serial cable
        return pin.product is not None and pin.manufacturer != infnoise.PIN.manufacturer
    named = pin.product or pin.serial
    text = texts[1] if pin.product else texts[2]
    return named is not None and re.fullmatch(named, text or "") is not None


def _found_usb(kind: _Usb, device: Attached, texts: tuple[str | None, str | None, str | None]) -> Found:
    description = Description(kind.profile.name, device.path, device.vid, device.pid, *texts)
    return Found(description, kind.profile, lambda options: kind.open(device, options))


def _lines(ports: Callable[[], Iterable[Any]]) -> list[Any]:
    try:
        return sorted(ports(), key=lambda p: str(p.device))
    except (OSError, ValueError, TypeError):  # pyserial's answers to a device that goes away while it looks
        return []


def _serial(ports: Iterable[Any]) -> Iterator[Found]:
    for port in ports:
        for kind in SERIAL:
            if (port.vid, port.pid) in kind.ids and re.fullmatch(kind.product, port.product or ""):
                yield _pinned(port, _port(kind.profile.name, port), kind)


def _probed(probe: Iterable[str], ports: Iterable[Any]) -> Iterator[Found]:
    """Yield the ports the operator named, as far as they are there; a link (/dev/serial/by-id) keeps its name."""
    attached_ports = {os.path.realpath(port.device): port for port in ports}
    for path in probe:
        if port := attached_ports.get(os.path.realpath(path)):
            description = replace(_port(qcicada.PROFILE.name, port), path=path)
            yield _pinned(port, description, _QCICADA)


def _pinned(port: Any, description: Description, kind: _Serial) -> Found:  # noqa: ANN401 -- pyserial has no types
    def opener(options: Options) -> Driver:
        serialpin.check(port, kind.interfaces)
        return kind.open(description, options)

    return Found(description, kind.profile, opener)


def _port(kind: str, port: Any) -> Description:  # noqa: ANN401 -- pyserial has no types
    names = (_clean(port.manufacturer), _clean(port.product), _clean(port.serial_number))
    return Description(kind, port.device, port.vid, port.pid, *names)


def _clean(text: str | None) -> str | None:
    return None if text is None else "".join(c if c.isprintable() else "?" for c in text)[:126]

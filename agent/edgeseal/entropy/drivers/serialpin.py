"""Pinned descriptors of serial devices, read where the kernel shows them: /sys/bus/usb/devices/*/.

A serial port is opened through the kernel's driver, so what else the device is never comes into view there: a stick
that is a TrueRNG and a keyboard at once looks like a TrueRNG. Its interfaces are counted here before it is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgeseal.entropy.drivers.base import Gone, Refused

CDC_ACM: Final = ("02", "0a")  # communication and data: bInterfaceClass of all interfaces, sorted
FTDI: Final = ("ff",)


def check(port: Any, expected: tuple[str, ...]) -> None:  # noqa: ANN401 -- pyserial has no types
    """Refuse a port (serial.tools.list_ports) whose USB device has other interfaces than `expected`.

    A port that is not on USB has none to check. Raises Refused, or Gone if it vanished meanwhile.
    """
    where = getattr(port, "usb_device_path", None)
    if where is None and port.vid is None:
        return
    found = interfaces(Path(where)) if where is not None else ()
    if not found:
        raise Gone(f"{port.device}: its USB device cannot be looked at: unplugged?")
    if found != expected:
        raise Refused(
            f"{port.device}: has interfaces of class {', '.join(found)} where {', '.join(expected)} are expected",
            hint="do not use it: plug in the genuine device, and allow only that one in USBGuard",
        )


def interfaces(device: Path) -> tuple[str, ...]:
    """Return the class of every interface of the active configuration, sorted; () if the device is gone."""
    try:
        return tuple(sorted(p.read_text("ascii").strip() for p in device.glob("*:*.*/bInterfaceClass")))
    except (OSError, ValueError):
        return ()

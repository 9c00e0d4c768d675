"""Profiles pin descriptors: what a device must look like, exactly, before a driver talks to it.

A stick that grew an interface, became a keyboard or changed its strings is refused, not adapted to: the descriptor is
the only thing about a USB device that the host sees before it trusts it (entropy.md, 8, "hostile descriptor").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import usb.core

from edgeseal.entropy.drivers.base import Gone, Refused
from edgeseal.entropy.drivers.usb import error_of

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.usb import Attached

_BULK: Final = 2  # bmAttributes bits 1..0, USB 2.0 table 9-13
_PLAIN: Final = frozenset({0x00, 0xFF})  # bDeviceClass: told by the interfaces, or vendor specific
_HARMLESS: Final = frozenset({0x0A, 0xFF})  # CDC data and vendor specific: what a noise device may be when not pinned


@dataclass(frozen=True, slots=True)
class Pin:
    """What a profile expects. A pattern of None is not looked at; everything else must match in full."""

    ids: frozenset[tuple[int, int]]  # (vid, pid)
    manufacturer: str | None = None  # regular expressions
    product: str | None = None
    serial: str | None = None
    interface: tuple[int, int, int] | None = None  # class, subclass, protocol of the only interface
    interface_text: str | None = None
    endpoints: frozenset[int] = frozenset()  # addresses of bulk endpoints that must be there
    only: bool = False  # and no others, no class descriptors
    packets: frozenset[int] = frozenset({64, 512})  # wMaxPacketSize of each
    release: int | None = None  # bcdDevice
    power: tuple[int, int] | None = None  # bmAttributes and bMaxPower of the configuration
    dedicated: bool = False  # the id belongs to this product alone, so anything else under it is refused, not ignored

    def names(self, texts: tuple[str | None, str | None, str | None]) -> bool:
        """Whether manufacturer, product and serial are those of the profile."""
        wanted = (self.manufacturer, self.product, self.serial)
        return all(p is None or re.fullmatch(p, t or "") for p, t in zip(wanted, texts, strict=True))

    def check(self, found: Attached) -> None:
        """Refuse a device whose descriptors are not exactly those of the profile. Raises DriverError."""
        texts = found.texts()
        if (found.vid, found.pid) not in self.ids or not self.names(texts):
            raise _refused(found, f"names itself {texts} under {found.vid:04x}:{found.pid:04x}")
        device = found.device
        if self.release is not None and device.bcdDevice != self.release:
            raise _refused(found, f"has release {device.bcdDevice:#06x} instead of {self.release:#06x}")
        try:
            self._check_configuration(found)
        except usb.core.USBError as e:
            raise error_of(e, found.path, "reading its configuration") from e
        except (ValueError, IndexError) as e:
            raise Gone(f"{found.path}: its configuration cannot be read: {e}") from e

    def _check_configuration(self, found: Attached) -> None:
        device = found.device
        if device.bDeviceClass not in _PLAIN:
            raise _refused(found, f"is of class {device.bDeviceClass:#04x}")
        if device.bNumConfigurations != 1:
            raise _refused(found, f"has {device.bNumConfigurations} configurations instead of 1")
        settings = list(device[0])  # every alternate setting of every interface
        if len(settings) != 1 or device[0].bNumInterfaces != 1:
            raise _refused(found, f"has {len(settings)} interfaces or settings instead of 1")
        if self.power is not None and (device[0].bmAttributes, device[0].bMaxPower) != self.power:
            raise _refused(found, "draws power as its profile does not")
        self._check_interface(found, settings[0])

    def _check_interface(self, found: Attached, setting: Any) -> None:  # noqa: ANN401 -- pyusb has no types
        triple = (setting.bInterfaceClass, setting.bInterfaceSubClass, setting.bInterfaceProtocol)
        if triple != self.interface if self.interface else triple[0] not in _HARMLESS:
            raise _refused(found, "has an interface of class {:02x}/{:02x}/{:02x}".format(*triple))
        if self.interface_text is not None and found.text(setting.iInterface) != self.interface_text:
            raise _refused(found, f"does not call its interface {self.interface_text!r}")
        bulk = {e.bEndpointAddress: e.wMaxPacketSize for e in setting if e.bmAttributes & 3 == _BULK}
        if not self.endpoints <= bulk.keys():
            raise _refused(found, f"has bulk endpoints {_hex(bulk)} where {_hex(self.endpoints)} are needed")
        if self.only and (setting.bNumEndpoints != len(self.endpoints) or bytes(setting.extra_descriptors or ())):
            raise _refused(found, f"has more than the endpoints {_hex(self.endpoints)}")
        if not {bulk[e] for e in self.endpoints} <= self.packets:
            raise _refused(found, f"has packets of {sorted(set(bulk.values()))} bytes")


def packet_size(found: Attached, endpoint: int) -> int:
    """Return wMaxPacketSize of a pinned endpoint. Raises DriverError."""
    for setting in found.device[0]:
        for e in setting:
            if e.bEndpointAddress == endpoint:
                return int(e.wMaxPacketSize)
    raise _refused(found, f"has no endpoint {endpoint:#04x}")


def _refused(found: Attached, what: str) -> Refused:
    return Refused(
        f"{found.path}: the device {what}; its profile does not allow that",
        hint="do not use it: plug in the genuine device, and allow only that one in USBGuard",
    )


def _hex(addresses: Any) -> str:  # noqa: ANN401 -- any iterable of int
    return ", ".join(f"{a:#04x}" for a in sorted(addresses)) or "none"

"""USB devices in process: a pyusb backend over device models that can break in every way the failure table names.

The descriptors are those of entropy.md and the sources it cites; where a source gives none (strings of the Quantis, the
interface numbers of ChaosKey) they are plausible, and no driver leans on them. `Bus` is what `usb.core.find(backend=…)`
takes. Every transfer is counted, and what is claimed, detached and opened is recorded, so that tests see what is left.
"""

from __future__ import annotations

import errno
import random
import struct
import time
from array import array
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import usb.backend
import usb.core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STUCK, SHORT, STALL, HANG, UNPLUG, BUSY, ACCESS, OVERFLOW = (
    "stuck",
    "short",
    "stall",
    "hang",
    "unplug",
    "busy",
    "access",
    "overflow",
)
_ERRNO: Final = {
    STALL: errno.EPIPE,
    HANG: errno.ETIMEDOUT,
    UNPLUG: errno.ENODEV,
    BUSY: errno.EBUSY,
    ACCESS: errno.EACCES,
    OVERFLOW: errno.EOVERFLOW,
}


def usb_error(number: int) -> usb.core.USBError:
    """What pyusb's libusb backend raises for an errno."""
    kind = usb.core.USBTimeoutError if number == errno.ETIMEDOUT else usb.core.USBError
    return kind(errno.errorcode[number], None, number)


class Device:
    """A device model: descriptors, strings, and what its endpoints do. `fault` breaks it; `sent` is what it gave."""

    ids = (0, 0)
    release = 0x0100
    device_class = 0
    power = 50  # bMaxPower, in 2 mA
    strings: tuple[str | None, ...] = (None,)  # index 0 is unused
    names = (0, 0, 0)  # iManufacturer, iProduct, iSerialNumber
    interface = (0xFF, 0x00, 0x00, 0)  # class, subclass, protocol, iInterface
    endpoints: tuple[tuple[int, int], ...] = ()  # address, wMaxPacketSize; all bulk
    kernel_driver: str | None = None

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.fault: str | None = None
        self.once = False  # the fault goes away with the first transfer it hit
        self.halted = False
        self.sent: list[bytes] = []
        self.pending: list[tuple[int, bytes]] = []  # left in endpoints by an earlier user
        self.resets = 0
        self.address = 0
        self.extra_interfaces: list[bytes] = []

    def configuration(self) -> bytes:
        """The configuration descriptor as the device would send it."""
        body = self._interface(0, self.interface, self.endpoints) + b"".join(self.extra_interfaces)
        head = struct.pack("<BBHBBBBB", 9, 2, 9 + len(body), 1 + len(self.extra_interfaces), 1, 0, 0x80, self.power)
        return head + body

    def control(self, kind: int, request: int, value: int, index: int, data: bytes, length: int) -> bytes:  # noqa: ARG002
        """A class or vendor request; raise `usb_error(EPIPE)` for one the device does not know."""
        raise usb_error(errno.EPIPE)

    def bulk_in(self, endpoint: int, length: int) -> bytes:
        """Give up to `length` bytes."""
        raise NotImplementedError

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        """Take a packet."""
        raise NotImplementedError

    def noise(self, length: int) -> bytes:
        """Random bytes, or the same one for ever if stuck."""
        data = b"\x55" * length if self.fault == STUCK else self.random.randbytes(length)
        self.sent.append(data)
        return data

    @staticmethod
    def _interface(number: int, interface: tuple[int, int, int, int], endpoints: tuple[tuple[int, int], ...]) -> bytes:
        made = struct.pack("<BBBBBBBBB", 9, 4, number, 0, len(endpoints), *interface)
        return made + b"".join(struct.pack("<BBBBHB", 7, 5, address, 2, size, 0) for address, size in endpoints)

    def become_keyboard_too(self) -> None:
        """Grow a HID interface, as a reprogrammed stick would."""
        self.extra_interfaces.append(self._interface(1, (3, 1, 1, 0), ()))


class Handle:
    """What `open_device` gives."""

    def __init__(self, device: Device) -> None:
        self.device = device


class Bus(usb.backend.IBackend):  # type: ignore[misc]  # pyusb has no types
    """A pyusb backend over models; one Bus is one libusb context on one bus."""

    def __init__(self, *devices: Device) -> None:
        self.devices: list[Device] = []
        self._addresses = 0
        self.transfers = 0
        self.opened = 0
        self.claimed: set[tuple[int, int]] = set()
        self.detached: set[int] = set()
        self.on_read: Callable[[Device], None] = lambda _: None
        for device in devices:
            self.plug(device)

    def plug(self, device: Device) -> None:
        """Attach a model at a new address."""
        self._addresses += 1
        device.address = self._addresses
        device.fault = None
        self.devices.append(device)

    def unplug(self, device: Device) -> None:
        """Pull it out: every transfer of it fails from now on."""
        device.fault = UNPLUG
        self.devices.remove(device)

    # what follows is usb.backend.IBackend

    def enumerate_devices(self) -> Iterator[Device]:
        yield from list(self.devices)

    def get_device_descriptor(self, dev: Device) -> SimpleNamespace:
        names = dict(zip(("iManufacturer", "iProduct", "iSerialNumber"), dev.names, strict=True))
        return SimpleNamespace(
            bLength=18,
            bDescriptorType=1,
            bcdUSB=0x0200,
            bDeviceClass=dev.device_class,
            bDeviceSubClass=0,
            bDeviceProtocol=0,
            bMaxPacketSize0=64,
            idVendor=dev.ids[0],
            idProduct=dev.ids[1],
            bcdDevice=dev.release,
            bNumConfigurations=1,
            bus=1,
            address=dev.address,
            port_number=dev.address,
            port_numbers=(1, dev.address),
            speed=2,
            **names,
        )

    def get_configuration_descriptor(self, dev: Device, _config: int) -> SimpleNamespace:
        return parsed(dev.configuration())

    def get_interface_descriptor(self, dev: Device, intf: int, alt: int, config: int) -> SimpleNamespace:
        interfaces = self.get_configuration_descriptor(dev, config).interfaces
        if alt or intf >= len(interfaces):
            raise IndexError("Invalid alternate setting index")
        return interfaces[intf]  # type: ignore[no-any-return]

    def get_endpoint_descriptor(self, dev: Device, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        return self.get_interface_descriptor(dev, intf, alt, config).endpoints[ep]  # type: ignore[no-any-return]

    def open_device(self, dev: Device) -> Handle:
        if dev.fault in (UNPLUG, ACCESS):
            raise usb_error(_ERRNO[dev.fault])
        self.opened += 1
        return Handle(dev)

    def close_device(self, _handle: Handle) -> None:
        self.opened -= 1

    def get_configuration(self, _handle: Handle) -> int:
        return 1

    def claim_interface(self, handle: Handle, intf: int) -> None:
        key = (handle.device.address, intf)
        if handle.device.fault == BUSY or key in self.claimed or self.is_kernel_driver_active(handle, intf):
            raise usb_error(errno.EBUSY)
        self.claimed.add(key)

    def release_interface(self, handle: Handle, intf: int) -> None:
        self.claimed.discard((handle.device.address, intf))
        if handle.device.fault == UNPLUG:
            raise usb_error(errno.ENODEV)

    def is_kernel_driver_active(self, handle: Handle, _intf: int) -> bool:
        return handle.device.kernel_driver is not None and handle.device.address not in self.detached

    def detach_kernel_driver(self, handle: Handle, _intf: int) -> None:
        self.detached.add(handle.device.address)

    def attach_kernel_driver(self, handle: Handle, _intf: int) -> None:
        self.detached.discard(handle.device.address)

    def clear_halt(self, handle: Handle, _ep: int) -> None:
        handle.device.halted = False

    def reset_device(self, handle: Handle) -> None:
        handle.device.resets += 1

    def ctrl_transfer(
        self,
        handle: Handle,
        kind: int,
        request: int,
        value: int,
        index: int,
        data: array[int],
        timeout: int,
    ) -> int:
        device = handle.device
        self._transfer(device, timeout, faults=(HANG, UNPLUG))
        incoming = bool(kind & 0x80)
        if kind & 0x60 == 0:
            answer = self._standard(device, request, value)
        else:
            answer = device.control(kind, request, value, index, b"" if incoming else data.tobytes(), len(data))
        if not incoming:
            return len(data)
        if device.fault == SHORT:
            answer = answer[: len(answer) // 2]
        return _fill(data, answer)

    def bulk_read(self, handle: Handle, ep: int, _intf: int, buff: array[int], timeout: int) -> int:
        device = handle.device
        self.on_read(device)
        self._transfer(device, timeout, faults=(HANG, UNPLUG, STALL, OVERFLOW))
        for i, (endpoint, data) in enumerate(device.pending):
            if endpoint == ep:
                del device.pending[i]
                return _fill(buff, data)
        answer = device.bulk_in(ep, len(buff))
        if device.fault == SHORT:
            answer = answer[: len(answer) // 2]
            device.fault = None if device.once else SHORT
        return _fill(buff, answer)

    def bulk_write(self, handle: Handle, ep: int, _intf: int, data: array[int], timeout: int) -> int:
        self._transfer(handle.device, timeout, faults=(HANG, UNPLUG, STALL))
        taken = data.tobytes()[: len(data) // 2 if handle.device.fault == SHORT else None]
        handle.device.bulk_out(ep, taken)
        return len(taken)

    def _transfer(self, device: Device, timeout: int, *, faults: tuple[str, ...]) -> None:
        if timeout <= 0:
            raise AssertionError("a timeout of 0 waits for ever in libusb")
        self.transfers += 1
        if device.halted:
            raise usb_error(errno.EPIPE)
        if device.fault in faults:
            number = _ERRNO[device.fault or ""]
            device.halted = device.fault == STALL
            device.fault = None if device.once else device.fault
            raise usb_error(number)

    @staticmethod
    def _standard(device: Device, request: int, value: int) -> bytes:
        kind, index = value >> 8, value & 0xFF
        if request == 0x00:
            return bytes(2)
        if request == 0x06 and kind == 3 and index == 0:
            return struct.pack("<BBH", 4, 3, 0x0409)
        if request == 0x06 and kind == 3 and index < len(device.strings):
            text = (device.strings[index] or "").encode("utf-16-le")
            return struct.pack("<BB", 2 + len(text), 3) + text
        raise usb_error(errno.EPIPE)


def _fill(buffer: array[int], data: bytes) -> int:
    if len(data) > len(buffer):
        raise usb_error(errno.EOVERFLOW)
    buffer[: len(data)] = array("B", data)
    return len(data)


def parsed(configuration: bytes) -> SimpleNamespace:
    """Take a configuration descriptor apart the way libusb does."""
    length, kind, total, count, value, name, attributes, power = struct.unpack_from("<BBHBBBBB", configuration)
    config = SimpleNamespace(
        bLength=length,
        bDescriptorType=kind,
        wTotalLength=total,
        bNumInterfaces=count,
        bConfigurationValue=value,
        iConfiguration=name,
        bmAttributes=attributes,
        bMaxPower=power,
        extra_descriptors=[],
        interfaces=[],
    )
    at = 9
    while at < total:
        piece = configuration[at : at + configuration[at]]
        at += piece[0]
        if piece[1] == 4:
            config.interfaces.append(_named(_INTERFACE, piece, endpoints=[], extra_descriptors=[]))
        elif piece[1] == 5:
            config.interfaces[-1].endpoints.append(
                _named(_ENDPOINT, piece, bRefresh=0, bSynchAddress=0, extra_descriptors=[])
            )
        else:
            config.interfaces[-1].extra_descriptors += piece
    return config


_INTERFACE = (
    "<BBBBBBBBB",
    (
        "bLength bDescriptorType bInterfaceNumber bAlternateSetting bNumEndpoints bInterfaceClass bInterfaceSubClass "
        "bInterfaceProtocol iInterface"
    ),
)
_ENDPOINT = ("<BBBBHB", "bLength bDescriptorType bEndpointAddress bmAttributes wMaxPacketSize bInterval")


def _named(layout: tuple[str, str], piece: bytes, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(layout[1].split(), struct.unpack(layout[0], piece), strict=True)), **more)


class ChaosKey(Device):
    """Altus Metrum ChaosKey: 0x85 conditioned, 0x86 raw, 0x87 firmware."""

    ids = (0x1D50, 0x60C6)
    strings = (None, "altusmetrum.org", "ChaosKey-hw-1.0-sw-1.6.7", "1234567890")
    names = (1, 2, 3)
    endpoints = ((0x85, 64), (0x86, 64), (0x87, 64))

    def bulk_in(self, endpoint: int, length: int) -> bytes:
        if endpoint == 0x85:
            return self.noise(length)
        samples = struct.unpack(f"<{length // 2}H", self.noise(length // 2 * 2))
        raw = struct.pack(f"<{len(samples)}H", *(s & 0xFFF for s in samples))
        self.sent[-1] = raw
        return raw


class Quantis(Device):
    """ID Quantique Quantis USB."""

    ids = (0x0ABA, 0x0102)
    strings = (None, "Ellisys", "Quantis USB", "110042A410")
    names = (1, 2, 3)
    endpoints = ((0x86, 512),)
    status, wants_startup, enabled = 1, 1, 0

    def control(self, kind: int, request: int, value: int, index: int, data: bytes, length: int) -> bytes:
        if kind == 0xC1 and not value and not index:
            numbers = {0x10: (2).to_bytes(4, "little"), 0x16: (4000).to_bytes(4, "little")}
            flags = {0x13: self.status, 0x17: self.wants_startup}
            if request in numbers:
                return numbers[request]
            if request in flags:
                return bytes([flags[request]])
        if kind == 0x41 and request == 0x12:
            self.enabled += 1
            return b""
        if kind == 0x41 and request in (0x11, 0x18):
            self.wants_startup = self.wants_startup if request == 0x11 else 0
            return b""
        return super().control(kind, request, value, index, data, length)

    def bulk_in(self, _endpoint: int, length: int) -> bytes:
        if length != self.endpoints[0][1]:
            raise usb_error(errno.EOVERFLOW)  # the vendor's note: any other length fails
        return self.noise(length)


class Ftdi(Device):
    """An FTDI chip: status bytes at the head of every packet, requests recorded."""

    endpoints = ((0x81, 64), (0x02, 64))
    kernel_driver = "ftdi_sio"

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.requests: list[tuple[int, int]] = []
        self.written: list[bytes] = []
        self.fifo = bytearray()
        self.line_status = 0

    def control(self, kind: int, request: int, value: int, index: int, data: bytes, length: int) -> bytes:
        if kind != 0x40 or index or data or length:
            return super().control(kind, request, value, index, data, length)
        self.requests.append((request, value))
        if (request, value) == (0, 1):
            self.fifo.clear()
        return b""

    def bulk_in(self, _endpoint: int, length: int) -> bytes:
        packets = bytearray()
        while len(packets) + 64 <= length:
            piece = bytes(self.fifo[:62])
            del self.fifo[: len(piece)]
            packets += bytes([0x01, 0x60 | self.line_status]) + piece
            if len(piece) < 62:
                break
        return bytes(packets)

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        assert endpoint == 0x02
        self.written.append(data)


class InfiniteNoise(Ftdi):
    """Sync bit-bang: one byte of pins back for every byte of clocks."""

    ids = (0x0403, 0x6015)
    strings = (None, "13-37.org", "Infinite Noise TRNG", "1337-0042")
    names = (1, 2, 3)
    delay = 0.0  # seconds a batch takes

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        super().bulk_out(endpoint, data)
        time.sleep(self.delay)
        assert (11, 0x04ED) in self.requests, "bit-bang was not switched on"
        self.fifo += self.noise(len(data))


class ComScire(Ftdi):
    """PQ128MU: streams between 0x96 and 0xE0."""

    ids = (0x0403, 0x6014)
    strings = (None, "ComScire", "PQ128MU", "QWR7A001")
    names = (1, 2, 3)
    streaming = False

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        super().bulk_out(endpoint, data)
        self.streaming = data == b"\x96"

    def bulk_in(self, endpoint: int, length: int) -> bytes:
        if self.streaming:
            self.fifo += self.noise(512)
        return super().bulk_in(endpoint, length)


class SerialCable(Ftdi):
    """Somebody's FTDI cable: never touched, never listed."""

    ids = (0x0403, 0x6001)
    strings = (None, "FTDI", "FT232R USB UART", "A50285BI")
    names = (1, 2, 3)

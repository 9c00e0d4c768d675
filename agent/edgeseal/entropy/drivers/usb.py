"""What every libusb driver shares: a fresh context per scan, careful claims, and errno turned into driver errors.

Traps this file is about (all met with pyusb 1.3.1 and libusb 1.0.26):

* a libusb built for udev never sees a replug in an old context where no udevd runs: every scan makes a new one
* libusb reads a timeout of 0 as "for ever", so no transfer is ever given 0
* a bulk read must ask for a multiple of wMaxPacketSize, or the answer overflows
* a device lost while open keeps its interface claimed until `dispose_resources`
* closing a handle under a running transfer crashes libusb: the reader disposes of it when its transfer returns

No retry loops here, except the one the failure table names: a halted endpoint is cleared once.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import usb.core
import usb.util
from usb.backend import libusb1

from edgeseal.entropy.drivers.base import Busy, DriverError, Gone, Hung, Refused, Stalled
from edgeseal.entropy.drivers.handover import Handover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_TEXT: Final = 126  # characters of a string descriptor: (255 - 2) / 2
CONTROL_TIMEOUT: Final = 0.5  # seconds for one control request
SILENCE: Final = 0.7  # seconds without a byte (three reads of a little under 250 ms) before the device is reset, once
_GONE: Final = frozenset({errno.ENODEV, errno.EIO, errno.EPROTO, errno.ENXIO, errno.ESHUTDOWN, errno.ENOENT})
_SONAME: Final = "libusb-1.0.so.0"


def fresh_backend() -> Any:  # noqa: ANN401 -- pyusb has no types
    """Return a pyusb backend with a libusb context of its own. Raises DriverError without libusb."""
    # The second name is for systems whose ld.so has no cache (testing.md, pyusb traps).
    if libusb1.get_backend() is None and libusb1.get_backend(find_library=lambda _: _SONAME) is None:
        raise DriverError(
            "no libusb 1.0 on this system, so no USB source can be read",
            hint="install it: apt-get install libusb-1.0-0",
        )
    try:
        return libusb1._LibUSB(libusb1._lib)  # noqa: SLF001 -- pyusb caches its only context for the process's life
    except usb.core.USBError as e:
        raise DriverError(f"libusb could not start: {e.strerror}") from e


def error_of(e: usb.core.USBError, path: str, doing: str) -> DriverError:
    """Translate one pyusb error (entropy.md, 8)."""
    text = f"{path}: {doing}: {errno.errorcode.get(e.errno or 0, 'error')} {e.strerror}"
    if e.errno in _GONE:
        return Gone(text, hint="the device was unplugged or its cable is bad")
    if e.errno == errno.ETIMEDOUT:
        return Hung(text)
    if e.errno == errno.EBUSY:
        return Busy(text, hint="another program or kernel driver holds the device")
    if e.errno in (errno.EACCES, errno.EPERM):
        return Busy(text, hint="no permission for the device node: install edgeseal's udev rules and plug it in again")
    return Stalled(text)  # EPIPE, EOVERFLOW and what libusb calls "other": closing and opening again is all one can do


class Attached:
    """A device one scan saw, with the context it was seen in. Opening and claiming come later, in `Port`."""

    def __init__(self, device: Any, backend: Any) -> None:  # noqa: ANN401 -- pyusb has no types
        """Keep both; the device goes first when this is dropped, its context last."""
        self.device = device
        self.backend = backend
        self.vid: int = device.idVendor
        self.pid: int = device.idProduct
        ports = ".".join(str(n) for n in device.port_numbers or ())
        self.path = f"usb:{device.bus}-{ports}" if ports else f"usb:{device.bus}:{device.address}"

    def text(self, index: int) -> str | None:
        """Return a string descriptor: printable, bounded; None if there is none. Raises DriverError if unreadable."""
        if index == 0:
            return None
        try:
            raw = usb.util.get_string(self.device, index)
        except usb.core.USBError as e:
            raise error_of(e, self.path, f"reading string descriptor {index}") from e
        except (ValueError, IndexError, NotImplementedError) as e:
            raise self._unreadable(index, e) from e
        return "".join(c if c.isprintable() else "?" for c in raw or "")[:MAX_TEXT]

    def _unreadable(self, index: int, e: Exception) -> DriverError:
        """Find out why a string could not be had: pyusb says ValueError for no permission and for "just unplugged"."""
        try:
            self.device.ctrl_transfer(0x80, 0x00, 0, 0, 2, _ms(CONTROL_TIMEOUT))  # GET_STATUS, USB 2.0 §9.4.5
        except usb.core.USBError as why:
            return error_of(why, self.path, f"reading string descriptor {index}")
        return Refused(f"{self.path}: has no string descriptor {index} although its descriptors name one: {e}")

    def texts(self) -> tuple[str | None, str | None, str | None]:
        """Return manufacturer, product and serial. Raises DriverError."""
        d = self.device
        return self.text(d.iManufacturer), self.text(d.iProduct), self.text(d.iSerialNumber)

    def release(self) -> None:
        """Give back whatever reading descriptors opened. Never raises."""
        _dispose(self.device)


def attached(backend: Any, known: Callable[[int, int], bool]) -> Iterator[Attached]:  # noqa: ANN401
    """Yield the devices of one bus scan whose vendor and product number are `known`. Raises DriverError."""
    try:
        devices = list(usb.core.find(find_all=True, backend=backend) or ())
    except usb.core.NoBackendError as e:
        raise DriverError("no libusb 1.0 on this system", hint="install it: apt-get install libusb-1.0-0") from e
    except usb.core.USBError as e:
        raise error_of(e, "usb", "scanning the bus") from e
    for device in devices:
        if known(device.idVendor, device.idProduct):
            yield Attached(device, backend)


class Port:
    """One claimed interface. One thread transfers; `close` may come from another and never waits for it."""

    def __init__(self, found: Attached, *, interface: int = 0, detach: bool = False) -> None:
        """Claim `interface`. `detach`: take it from a generic kernel driver (a serial one) and give it back on close.

        Raises DriverError.
        """
        self._found = found
        self._interface = interface
        self._reattach = False
        self._handover = Handover(found.path, self._dispose)
        self._cleared = False
        self._silent = 0.0
        self.path = found.path
        try:
            self._claim(detach=detach)
        except usb.core.USBError as e:
            self.close()
            raise error_of(e, self.path, f"claiming interface {interface}") from e
        except DriverError:
            self.close()
            raise

    def _claim(self, *, detach: bool) -> None:
        device = self._found.device
        if _kernel_driver(device, self._interface):
            if not detach:
                raise Busy(
                    f"{self.path}: a kernel driver holds interface {self._interface}",
                    hint="its data is already in /dev/hwrng; or unbind the driver to read the device directly",
                )
            device.detach_kernel_driver(self._interface)
            self._reattach = True
        usb.util.claim_interface(device, self._interface)

    def read(self, endpoint: int, length: int, *, timeout: float) -> bytearray:
        """Return 1 to `length` bytes (a multiple of wMaxPacketSize) of a bulk IN endpoint. Raises DriverError."""
        data = self._run(
            lambda d: d.read(endpoint, length, _ms(timeout)), f"reading endpoint {endpoint:#04x}", endpoint, timeout
        )
        if not len(data):
            self._silence(timeout)
            raise Hung(f"{self.path}: an empty transfer where {length} bytes were asked for")
        self._silent = 0.0
        self._cleared = False
        return bytearray(data)

    def read_exact(self, endpoint: int, length: int, *, timeout: float) -> bytes:
        """Return exactly `length` bytes of a stream within `timeout` seconds; what is there of less is dropped."""
        deadline = time.monotonic() + timeout
        data = bytearray()
        while len(data) < length:
            left = deadline - time.monotonic()
            if data and left <= 0:
                raise Hung(f"{self.path}: gave {len(data)} of {length} bytes in {timeout:.2f} s")
            data += self.read(endpoint, length - len(data), timeout=left)
        return bytes(data)

    def drain(self, endpoint: int, length: int, *, rounds: int = 10) -> None:
        """Throw away what an earlier user left in the endpoint. Raises DriverError, but not for silence."""
        with suppress(Hung):
            for _ in range(rounds):
                self.read(endpoint, length, timeout=0.02)
        self._silent = 0.0

    def write(self, endpoint: int, data: bytes, *, timeout: float) -> None:
        """Write all of `data` to a bulk OUT endpoint. Raises DriverError."""
        sent = self._run(
            lambda d: d.write(endpoint, data, _ms(timeout)), f"writing endpoint {endpoint:#04x}", endpoint, timeout
        )
        if sent != len(data):
            raise Hung(f"{self.path}: took {sent} of {len(data)} bytes")

    def control_in(self, request_type: int, request: int, length: int, *, timeout: float = CONTROL_TIMEOUT) -> bytes:
        """Return exactly `length` bytes of a control IN request with wValue = wIndex = 0. Raises DriverError."""
        data = self._run(
            lambda d: d.ctrl_transfer(request_type, request, 0, 0, length, _ms(timeout)),
            f"request {request:#04x}",
        )
        if len(data) != length:
            raise Refused(f"{self.path}: request {request:#04x} gave {len(data)} bytes where {length} were expected")
        return bytes(data)

    def control_out(
        self, request_type: int, request: int, data: bytes = b"", *, value: int = 0, timeout: float = CONTROL_TIMEOUT
    ) -> None:
        """Send a control OUT request with `data`, to interface or chip 0. Raises DriverError."""
        sent = self._run(
            lambda d: d.ctrl_transfer(request_type, request, value, 0, data, _ms(timeout)),
            f"request {request:#04x}",
        )
        if sent != len(data):
            raise Hung(f"{self.path}: request {request:#04x} took {sent} of {len(data)} bytes")

    def close(self) -> None:
        """Release the interface and the handle: now, or when the running transfer returns. Never raises."""
        self._handover.close()

    def _run(
        self, transfer: Callable[[Any], Any], doing: str, endpoint: int | None = None, timeout: float = 0.0
    ) -> Any:  # noqa: ANN401
        """Run one transfer; clear a halted endpoint once and try again."""
        device = self._found.device
        with self._handover:
            try:
                return transfer(device)
            except usb.core.USBError as e:
                if e.errno == errno.ETIMEDOUT and endpoint is not None:
                    self._silence(timeout)
                if e.errno != errno.EPIPE or endpoint is None or self._cleared:
                    raise error_of(e, self.path, doing) from e
            except (ValueError, NotImplementedError) as e:  # pyusb's words for "vanished meanwhile"
                raise Gone(f"{self.path}: {doing}: {e}") from e
            try:
                self._cleared = True
                device.clear_halt(endpoint)
                return transfer(device)
            except usb.core.USBError as e:
                raise error_of(e, self.path, doing) from e

    def _silence(self, waited: float) -> None:
        """Count time without a byte; reset the device once it is too long, and give it up for this opening."""
        self._silent += waited
        if self._silent < SILENCE:
            return
        self._silent = 0.0
        with suppress(usb.core.USBError, NotImplementedError):  # it is given up either way
            self._found.device.reset()
        raise Gone(f"{self.path}: silent for {SILENCE} s, was reset", hint="a hub without power does this to devices")

    def _dispose(self) -> None:
        device = self._found.device
        with suppress(usb.core.USBError, ValueError, NotImplementedError):  # lost devices cannot be given back
            usb.util.release_interface(device, self._interface)
            if self._reattach:
                device.attach_kernel_driver(self._interface)
        _dispose(device)


def _dispose(device: Any) -> None:  # noqa: ANN401
    with suppress(usb.core.USBError, ValueError):  # the handle of a lost device
        usb.util.dispose_resources(device)


def _kernel_driver(device: Any, interface: int) -> bool:  # noqa: ANN401
    try:
        return bool(device.is_kernel_driver_active(interface))
    except NotImplementedError:
        return False
    except usb.core.USBError as e:
        if e.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOENT):
            return False
        raise


def _ms(timeout: float) -> int:
    return max(1, int(timeout * 1000))

"""The kernel's side of a USB bus for unmodified libusb: usbfs, emulated by umockdev, over device models elsewhere.

    umockdev-wrapper /usr/bin/python3 umockdev_bus.py FD      FD: a socket to whoever runs the models

Commands and answers are JSON lines on standard input and output; the first line tells the directory that clients need
in UMOCKDEV_DIR. What a device has to answer is asked over FD, a line for a line. It is a program of its own, on the
distribution's Python, because gi is built for that one and umockdev must be preloaded; it needs nothing else.

The ioctls are those of include/uapi/linux/usbdevice_fs.h. Each open file of a client is a handle, so that claims of two
processes meet here as in a kernel. At unplug, pending transfers end with -ESHUTDOWN and everything else with ENODEV.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Any, Final

import gi

gi.require_version("UMockdev", "1.0")
from gi.repository import GLib, UMockdev  # noqa: E402 - after the version was chosen

SUBMITURB, DISCARDURB, REAPURB, REAPURBNDELAY = 0x8038550A, 0x550B, 0x4008550C, 0x4008550D
CLAIMINTERFACE, RELEASEINTERFACE, CLEAR_HALT, RESET = 0x8004550F, 0x80045510, 0x80045515, 0x5514
GETDRIVER, GET_CAPABILITIES, IOCTL, SETCONFIGURATION = 0x41045508, 0x8004551A, 0xC0105512, 0x80045505
CAPABILITIES: Final = 0x01 | 0x04 | 0x10  # zero packet, no packet size limit, reap after disconnect
CONTROL: Final = 2  # USBDEVFS_URB_TYPE_CONTROL
URB: Final = 56  # bytes of struct usbdevfs_urb on 64-bit machines
IDLE_MS: Final = 2  # the file of an emulated node is always ready: slow down a client that asks in a loop


@dataclass(eq=False)
class Urb:
    """One transfer in flight: the client's structure and buffer, as umockdev mirrors them."""

    data: Any
    buffer: Any
    kind: int
    endpoint: int
    length: int
    address: int  # in the client's memory: how DISCARDURB names it
    ended: bool = False


@dataclass(eq=False)
class Plugged:
    """One device at one address."""

    name: str
    node: str
    syspath: str
    handler: Any
    gone: bool = False
    claims: dict[int, Any] = field(default_factory=dict)  # interface -> client that holds it
    urbs: dict[Any, list[Urb]] = field(default_factory=dict)  # of each client, oldest first

    def forget_closed_files(self) -> None:
        """End claims and transfers of files that were closed, as the kernel does (umockdev tells nobody of it)."""
        self.urbs = {client: urbs for client, urbs in self.urbs.items() if client.get_connected()}
        self.claims = {number: client for number, client in self.claims.items() if client.get_connected()}


class Models:
    """The device models, in another process: one question, one answer."""

    def __init__(self, fd: int) -> None:
        self._stream = socket.socket(fileno=fd).makefile("rw")

    def ask(self, device: str, what: str, **more: Any) -> dict[str, Any]:
        self._stream.write(json.dumps({"device": device, "what": what, **more}) + "\n")
        self._stream.flush()
        answer: dict[str, Any] = json.loads(self._stream.readline())
        return answer


class Bus:
    """Everything that is plugged in, by the name the test gave it."""

    def __init__(self, models: Models) -> None:
        self.testbed = UMockdev.Testbed.new()
        self.models = models
        self.plugged: dict[str, Plugged] = {}
        self.address = 1

    # Commands --------------------------------------------------------------------------------------------------------

    def plug(self, name: str, port: int, descriptors: str) -> dict[str, Any]:
        """Attach a device at the next address."""
        self.address += 1
        node, syspath = f"/dev/bus/usb/001/{self.address:03}", f"/devices/usb1/1-{port}"
        handler = UMockdev.IoctlBase.new()
        device = self.plugged[name] = Plugged(name, node, syspath, handler)
        handler.connect("handle-ioctl", self._ioctl, device)
        self.testbed.attach_ioctl(node, handler)
        self.testbed.add_from_string(_described(descriptors, node, syspath, self.address))
        return {"address": self.address}

    def unplug(self, name: str) -> dict[str, Any]:
        """Pull it out, whatever runs."""
        device = self.plugged.pop(name)
        device.gone = True
        self.testbed.remove_device(f"/sys{device.syspath}")
        return {}

    def state(self, name: str) -> dict[str, Any]:
        """Tell what clients hold of a device, and how many transfers wait for it."""
        device = self.plugged[name]
        device.forget_closed_files()
        waiting = sum(len(urbs) for urbs in device.urbs.values())
        return {"claims": sorted(device.claims), "files": len(device.urbs), "waiting": waiting}

    # usbfs -----------------------------------------------------------------------------------------------------------

    def _ioctl(self, _handler: Any, client: Any, device: Plugged) -> bool:
        request, argument = client.get_request(), client.get_arg()
        if request in (REAPURB, REAPURBNDELAY):
            self._reap(client, argument, device)
            return True
        if device.gone:
            client.complete(-1, errno.ENODEV)
            return True
        answer = {
            SUBMITURB: self._submit, DISCARDURB: self._discard, CLAIMINTERFACE: self._claim,
            RELEASEINTERFACE: self._release, CLEAR_HALT: self._clear_halt, RESET: self._reset,
            GET_CAPABILITIES: self._capabilities, GETDRIVER: lambda *_: errno.ENODATA, SETCONFIGURATION: lambda *_: 0,
        }.get(request)  # fmt: skip
        number = errno.ENOTTY if answer is None else answer(client, argument, device)
        client.complete(-1 if number else 0, number)
        return True

    def _capabilities(self, _client: Any, argument: Any, _device: Plugged) -> int:
        argument.resolve(0, 4).update(0, list(struct.pack("<I", CAPABILITIES)))
        return 0

    def _claim(self, client: Any, argument: Any, device: Plugged) -> int:
        interface = _number(argument)
        device.forget_closed_files()
        if device.claims.get(interface, client) is not client:
            return errno.EBUSY
        device.claims[interface] = client
        return 0

    def _release(self, client: Any, argument: Any, device: Plugged) -> int:
        if device.claims.get(_number(argument)) is not client:
            return errno.EINVAL
        del device.claims[_number(argument)]
        return 0

    def _clear_halt(self, _client: Any, _argument: Any, device: Plugged) -> int:
        return int(self.models.ask(device.name, "clear_halt").get("errno", 0))

    def _reset(self, _client: Any, _argument: Any, device: Plugged) -> int:
        return int(self.models.ask(device.name, "reset").get("errno", 0))

    def _submit(self, client: Any, argument: Any, device: Plugged) -> int:
        address = struct.unpack("<Q", bytes(argument.retrieve()))[0]
        data = argument.resolve(0, URB)
        kind, endpoint, length = struct.unpack_from("<BB22xi", bytes(data.retrieve()))
        buffer = data.resolve(16, length)
        held = kind == CONTROL or device.claims.get(0) is client
        if not held:
            return errno.EINVAL  # usbfs claims on its own with a warning; nobody here leans on that
        device.urbs.setdefault(client, []).append(Urb(data, buffer, kind, endpoint, length, address))
        return 0

    def _discard(self, client: Any, argument: Any, device: Plugged) -> int:
        address = struct.unpack("<Q", bytes(argument.retrieve()))[0]
        for urb in device.urbs.get(client, []):
            if urb.address == address and not urb.ended:
                _end(urb, -errno.ENOENT, 0)
                return 0
        return errno.EINVAL

    def _reap(self, client: Any, argument: Any, device: Plugged) -> None:
        """Give back the oldest transfer that has ended, running the model for those that have not."""
        urbs = device.urbs.get(client, [])
        for urb in urbs:
            if urb.ended or self._transfer(urb, device):
                urbs.remove(urb)
                argument.resolve(0, 8).set_ptr(0, urb.data)
                client.complete(0, 0)
                return
        if device.gone:
            client.complete(-1, errno.ENODEV)
        else:
            GLib.timeout_add(IDLE_MS, lambda: client.complete(-1, errno.EAGAIN))

    def _transfer(self, urb: Urb, device: Plugged) -> bool:
        """Carry out one transfer; return whether it has ended."""
        if device.gone:
            _end(urb, -errno.ESHUTDOWN, 0)
            return True
        sent = bytes(urb.buffer.retrieve()) if urb.kind == CONTROL or not urb.endpoint & 0x80 else b""
        what = "control" if urb.kind == CONTROL else "bulk"
        answer = self.models.ask(device.name, what, endpoint=urb.endpoint, length=urb.length, sent=sent.hex())
        number = int(answer.get("errno", 0))
        if number == errno.ETIMEDOUT:
            return False  # nothing yet: libusb's own clock ends it
        data = bytes.fromhex(answer.get("data", ""))
        if data:
            urb.buffer.update(8 if urb.kind == CONTROL else 0, list(data))
        _end(urb, -number, int(answer.get("done", len(data))))
        return True


def _end(urb: Urb, status: int, length: int) -> None:
    urb.ended = True
    urb.data.update(4, list(struct.pack("<i", status)))
    urb.data.update(28, list(struct.pack("<i", length)))


def _number(argument: Any) -> int:
    return int(struct.unpack("<I", bytes(argument.resolve(0, 4).retrieve()))[0])


def _described(descriptors: str, node: str, syspath: str, address: int) -> str:
    """The device as sysfs and udev show it."""
    return "\n".join(
        [
            f"P: {syspath}", f"N: {node.removeprefix('/dev/')}", "E: SUBSYSTEM=usb", "E: DRIVER=usb",
            "E: BUSNUM=001", f"E: DEVNUM={address:03}", f"E: DEVNAME={node}", "E: DEVTYPE=usb_device",
            "A: bConfigurationValue=1\\n", "A: busnum=1\\n", f"A: devnum={address}\\n", "A: speed=12\\n",
            f"H: descriptors={descriptors.upper()}", "",
        ]
    )  # fmt: skip


def main() -> None:
    """Serve until standard input ends."""
    bus, loop = Bus(Models(int(sys.argv[1]))), GLib.MainLoop()

    def command(_channel: Any, _condition: Any) -> bool:
        line = sys.stdin.buffer.readline()
        if not line:
            loop.quit()
            return False
        words = json.loads(line)
        _say(getattr(bus, words.pop("do"))(**words))
        return True

    conditions = GLib.IOCondition.IN | GLib.IOCondition.HUP
    GLib.io_add_watch(GLib.IOChannel.unix_new(0), GLib.PRIORITY_DEFAULT, conditions, command)
    _say({"directory": bus.testbed.get_root_dir()})
    loop.run()


def _say(about: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(about) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Starts an emulated usbfs and its clients, and runs the device models of tests/sim/usbmodel.py behind it.

The models and their faults are objects of the test's own process; a thread answers what the bus asks of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.sim.usbmodel import Bus, Handle
from tests.sim.usbstick import K_STICK, UNIQUE_ID
from usb.core import USBError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sim.usbmodel import Device

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PYTHON: Final = "/usr/bin/python3"  # the distribution's: gi is built for it
PRELOAD: Final = "libumockdev-preload.so.0"
SOON: Final = 20.0


def what_is_absent() -> str | None:
    """Return what these tests lack here, with the way to get it; None if nothing."""
    packages = "apt-get install umockdev gir1.2-umockdev-1.0 python3-gi libusb-1.0-0"
    if shutil.which("umockdev-wrapper") is None:
        return f"needs umockdev ({packages})"
    probe = "import sys, gi; gi.require_version('UMockdev', '1.0'); sys.exit(sys.version_info < (3, 9))"
    if subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        return f"needs gi and UMockdev for {PYTHON}, 3.9 or newer ({packages})"
    find = "import ctypes; ctypes.CDLL('libusb-1.0.so.0')"
    if subprocess.run([sys.executable, "-c", find], capture_output=True, check=False).returncode:
        return f"needs libusb ({packages})"
    return None


class Conversation:
    """A process that answers one JSON line for each line."""

    def __init__(self, command: list[str], environment: dict[str, str], *, pass_fds: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
            pass_fds=pass_fds,
        )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args!r} has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(SOON)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Client(Conversation):
    """A process with the real drivers on the emulated bus."""

    def __call__(self, expression: str) -> Any:
        """The value of an expression there. Raises AssertionError if it raised."""
        answer = self.ask(expression)
        assert "value" in answer, answer
        return answer["value"]

    def ask(self, expression: str) -> dict[str, Any]:
        self.say(expression)
        return self.hear()

    def error(self, expression: str) -> str:
        """The class of what an expression raises."""
        answer = self.ask(expression)
        assert "error" in answer, answer
        return str(answer["error"])

    def until(self, expression: str) -> None:
        """Wait for an expression to be true."""
        ends = time.monotonic() + SOON
        while not self(expression):
            assert time.monotonic() < ends, f"not within {SOON} s: {expression}"
            time.sleep(0.02)


class World:
    """One emulated bus. Use as a context manager; `client` starts processes on it."""

    def __init__(self) -> None:
        self._models: dict[str, Device] = {}
        self._engine = Bus()  # what a transfer to a model does, and how each fault looks
        ours, theirs = socket.socketpair()
        command = ["umockdev-wrapper", PYTHON, str(HERE / "umockdev_bus.py"), str(theirs.fileno())]
        self._bus = Conversation(command, _environment(), pass_fds=(theirs.fileno(),))
        theirs.close()
        self._thread = threading.Thread(target=self._serve_models, args=(ours,), daemon=True)
        self._thread.start()
        self._directory = self._bus.hear()["directory"]
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.end()
        self._bus.end()
        self._thread.join(SOON)

    def plug(self, name: str, model: Device, *, port: int = 1) -> int:
        """Attach a model; return its address."""
        self._models[name] = model
        descriptors = _device_descriptor(model) + model.configuration()
        return int(self._command("plug", name=name, port=port, descriptors=descriptors.hex())["address"])

    def unplug(self, name: str) -> None:
        """Pull it out, whatever runs."""
        self._command("unplug", name=name)

    def state(self, name: str) -> dict[str, Any]:
        """What clients hold of it: claims, files, transfers waiting."""
        return self._command("state", name=name)

    def until_free(self, name: str) -> None:
        """Wait until no client has the device open; closing a file is noticed a moment later."""
        ends = time.monotonic() + SOON
        while (state := self.state(name)) != {"claims": [], "files": 0, "waiting": 0}:
            assert time.monotonic() < ends, state
            time.sleep(0.01)

    def variables(self) -> dict[str, str]:
        """Return the environment variables that put a process on this bus."""
        return {"LD_PRELOAD": PRELOAD, "UMOCKDEV_DIR": self._directory}

    def client(self) -> Client:
        """Start a process with the real drivers on this bus."""
        environment = _environment(PYTHONPATH=str(ROOT), **self.variables())
        command = [sys.executable, str(HERE / "umockdev_client.py"), UNIQUE_ID.hex(), K_STICK.hex()]
        self._clients.append(Client(command, environment))
        return self._clients[-1]

    def _command(self, do: str, **words: Any) -> dict[str, Any]:
        self._bus.say(json.dumps({"do": do, **words}))
        return self._bus.hear()

    def _serve_models(self, ours: socket.socket) -> None:
        with ours, ours.makefile("rw") as stream:
            for line in stream:
                asked = json.loads(line)
                handle = Handle(self._models[asked["device"]])
                try:
                    answer = self._transfer(handle, **asked)
                except USBError as e:
                    answer = {"errno": e.errno or errno.EIO}
                stream.write(json.dumps(answer) + "\n")
                stream.flush()

    def _transfer(
        self, handle: Handle, *, what: str, endpoint: int = 0, length: int = 0, sent: str = "", **_: Any
    ) -> dict[str, Any]:
        """Do what the bus asks of a model. Raises USBError."""
        data = array("B", bytes.fromhex(sent))
        if what == "clear_halt":
            self._engine.clear_halt(handle, endpoint)
            return {}
        if what == "reset":
            self._engine.reset_device(handle)
            return {}
        if what == "control":
            kind, request, value, index, size = struct.unpack("<BBHHH", data[:8].tobytes())
            payload = data[8 : 8 + size] if len(data) > 8 else array("B", bytes(size))
            done = self._engine.ctrl_transfer(handle, kind, request, value, index, payload, 1000)
            return {"data": payload[:done].tobytes().hex() if kind & 0x80 else "", "done": done}
        if not endpoint & 0x80:
            return {"done": self._engine.bulk_write(handle, endpoint, 0, data, 1000)}
        buffer = array("B", bytes(length))
        done = self._engine.bulk_read(handle, endpoint, 0, buffer, 1000)
        return {"data": buffer[:done].tobytes().hex(), "done": done}


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_PRELOAD"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **more}


def _device_descriptor(model: Device) -> bytes:
    return struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x0200, 0, 0, 0, 64, *model.ids, model.release, *model.names, 1)


@contextlib.contextmanager
def plugged(*models: Device) -> Iterator[tuple[World, Client]]:
    """A bus with devices named a, b, …, and one client."""
    with World() as world:
        for port, (name, model) in enumerate(zip("abcd", models, strict=False), start=1):
            world.plug(name, model, port=port)
        yield world, world.client()

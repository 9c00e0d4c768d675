"""A process with the real drivers, libusb and pyusb on an emulated bus; one Python statement per line, one answer each.

The test sends an expression, this evaluates it and answers with JSON: {"value": …} or {"error": class, "message": …}.
`keep` holds what outlives a line. It is a process of its own because libumockdev has to be preloaded.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import usb.core
import usb.util

from edgeseal.entropy import Mixer, Policy, reader
from edgeseal.entropy.drivers import detect
from edgeseal.entropy.drivers.base import Driver, Found, Options
from edgeseal.entropy.drivers.usb import fresh_backend
from edgeseal.entropy.reader import Attached

OPTIONS = Options(stick_keys={sys.argv[1]: bytes.fromhex(sys.argv[2])})  # serial number and key of the paired stick
keep: dict[str, Any] = {}


def scan() -> list[Found]:
    """What a fresh scan of the bus finds."""
    return detect.scan(ports=lambda: (), kernel=lambda: None)


def names() -> list[list[str | None]]:
    """Kind, path and serial number of everything found."""
    return [[f.description.kind, f.description.path, f.description.serial] for f in scan()]


def open_(kind: str, which: int = 0) -> str:
    """Open a device and keep it under its kind."""
    found = [f for f in scan() if f.description.kind == kind]
    keep[kind] = found[which].open(OPTIONS)
    return found[which].description.path


def read(kind: str, timeout: float = 0.25) -> list[int]:
    """The samples of one frame."""
    driver: Driver = keep[kind]
    return list(driver.read(timeout=timeout).samples)


def timed_read(kind: str, timeout: float) -> list[Any]:
    """How a read ended, and after how many seconds."""
    started = time.monotonic()
    try:
        read(kind, timeout)
        how = "ok"
    except Exception as e:  # noqa: BLE001 - the test judges
        how = type(e).__name__
    return [how, time.monotonic() - started]


def close(kind: str) -> None:
    keep.pop(kind).close()


def raw(ids: tuple[int, int]) -> Any:
    """The device as plain pyusb sees it, without our drivers."""
    keep["backend"] = fresh_backend()
    keep["raw"] = usb.core.find(idVendor=ids[0], idProduct=ids[1], backend=keep["backend"])
    return keep["raw"]


def attach(kind: str) -> None:
    """A whole source: reader thread, monitor, pool, mixer."""
    vars(reader).update(SCAN_FIRST=0.1, SCAN_LAST=0.2)  # seconds: a device waits longer
    keep["source"] = Attached(kind, lambda: [f for f in scan() if f.description.kind == kind], options=OPTIONS)
    keep["source"].start()
    keep["mixer"] = Mixer([keep["source"]], policy=Policy.MIX)


def drawn() -> list[Any]:
    """Hardware blocks in a draw under policy `mix`, and how long the caller waited."""
    started = time.monotonic()
    blocks = keep["mixer"].draw("seed", 64).blocks
    return [blocks, time.monotonic() - started]


def main() -> None:
    """Answer line by line."""
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"value": eval(line)}  # noqa: S307 - the test's own lines
        except Exception as e:  # noqa: BLE001 - the test judges
            answer = {"error": type(e).__name__, "message": str(e), "errno": getattr(e, "errno", None)}
        sys.stdout.write(json.dumps(answer, default=str) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

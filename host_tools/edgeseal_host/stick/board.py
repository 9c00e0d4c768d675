"""A board with MicroPython's REPL on a serial port, driven by mpremote in a process of its own.

Nothing secret is ever an argument or part of a script: secrets travel as files.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import util
from typing import TYPE_CHECKING, Final

from serial.tools import list_ports

from edgeseal.errors import EdgesealError, IncompatibleError, TemporaryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

RASPBERRY_PI: Final = 0x2E8A  # vendor of MicroPython's serial port on RP2 boards
OLDEST: Final = (1, 27)  # machine.USBDevice and rp2.DMA as the firmware uses them; what its tests run on
_TIMEOUT: Final = 120.0  # seconds for one command; copying the whole firmware takes about ten
_IDENTITY: Final = (
    "import machine, os, sys\n"
    "print(machine.unique_id().hex(), '.'.join(str(n) for n in sys.implementation.version[:3]), os.uname().machine)"
)
_HASHES: Final = """
import hashlib
for name in {names!r}:
    try:
        with open(name, "rb") as f:
            print(name, hashlib.sha256(f.read()).digest().hex())
    except OSError:
        print(name, "missing")
"""
_FOLDERS: Final = """
import os
for name in {names!r}:
    try:
        os.mkdir(name)
    except OSError:
        pass
"""
_STRAYS: Final = """
import os
wanted = {wanted!r}
def walk(folder):
    for entry in os.ilistdir(folder):
        path = folder + "/" + entry[0]
        if entry[1] == 0x4000:
            walk(path)
        elif path not in wanted:
            os.remove(path)
            print(path)
for folder in {folders!r}:
    walk(folder)
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a board says about itself at its REPL."""

    serial: str
    version: tuple[int, ...]
    machine: str

    @property
    def target(self) -> str:
        """The build it needs. Raises IncompatibleError for a chip there is no firmware for."""
        for name in ("RP2040", "RP2350"):
            if name in self.machine:
                return name.lower()
        raise IncompatibleError(f"the board is a {self.machine}; the stick's firmware is for RP2040 and RP2350")


class Board:
    """One board at one serial port. Every command is one run of mpremote."""

    def __init__(self, port: str) -> None:
        """`port` is a device path. Raises UsageError if mpremote is not installed."""
        self.port = port
        if util.find_spec("mpremote") is None:
            raise UsageError(
                "talking to a board needs mpremote", hint="it is in the extra 'stick': pip install 'edgeseal[stick]'"
            )

    def identify(self) -> Identity:
        """Ask who it is. Raises EdgesealError; IncompatibleError if its MicroPython is too old."""
        words = self._run("exec", _IDENTITY).strip().split(" ", 2)
        try:
            serial, version, machine = words[0], tuple(int(n) for n in words[1].split(".")), words[2]
        except (IndexError, ValueError):
            raise EdgesealError(
                f"{self.port}: this does not answer like MicroPython on an RP2 board",
                hint="is it the right port? edgeseal stick flash --port PORT",
            ) from None
        if version < OLDEST:
            raise IncompatibleError(
                f"{self.port} runs MicroPython {words[1]}; the firmware needs {OLDEST[0]}.{OLDEST[1]} or later",
                hint="hold BOOTSEL while plugging in and copy a current UF2 from micropython.org to the drive",
            )
        return Identity(serial, version, machine)

    def make_folders(self, names: Iterable[str]) -> None:
        """Make folders, parents first; those that exist are left alone."""
        self._run("exec", _FOLDERS.format(names=sorted(names)))

    def copy(self, files: Mapping[str, Path]) -> None:
        """Copy files: path on the board to path here."""
        arguments: list[str] = []
        for target, source in files.items():
            arguments += [*(["+"] if arguments else []), "fs", "cp", str(source), f":{target}"]
        self._run(*arguments)

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 in hex of each file on the board, "missing" where there is none."""
        lines = self._run("exec", _HASHES.format(names=sorted(names))).splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    def remove_strays(self, wanted: Iterable[str]) -> list[str]:
        """Remove what is in the firmware's folders and not `wanted`; return what was removed."""
        names = sorted(wanted)
        folders = sorted({n.split("/", 1)[0] for n in names if "/" in n})
        return self._run("exec", _STRAYS.format(wanted=names, folders=folders)).split()

    def reset(self) -> None:
        """Restart it, as power would."""
        self._run("reset")

    def _run(self, *arguments: str) -> str:
        """Run mpremote; return what the board printed. Raises TemporaryError if the port is gone or silent."""
        command = [sys.executable, "-m", "mpremote", "connect", self.port, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise TemporaryError(
                f"{self.port}: no answer within {_TIMEOUT:.0f} s", hint="replug it and try again"
            ) from None
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise TemporaryError(
                f"{self.port}: mpremote failed: {reason}",
                hint="is the strap closed, and does no other program (a terminal, an editor) hold the port?",
            )
        return done.stdout


def find(port: str | None = None) -> Board:
    """Return the board at `port`, or the only RP2 board with a REPL that is attached.

    Raises UsageError if there is none or more than one.
    """
    if port is not None:
        return Board(port)
    found = sorted(p.device for p in list_ports.comports() if p.vid == RASPBERRY_PI)
    if not found:
        raise UsageError(
            "no board with MicroPython's REPL is attached",
            hint="a finished stick has none: close its strap (GPIO 22 to ground) and replug it; a new board first "
            "needs MicroPython: hold BOOTSEL while plugging in, copy the UF2 from micropython.org to the drive",
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} boards are attached: {', '.join(found)}", hint="choose one with --port")
    return Board(found[0])

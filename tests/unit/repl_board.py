"""A board for mpremote: MicroPython's own REPL and file system (WebAssembly under node) behind a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import threading
import tty
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.needed import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
VM = ROOT / ".venv/node/node_modules/@micropython/micropython-webassembly-pyscript"
SERIAL = "e661640843218c2f"

# What the chip would bring: its identity, its reset, and errno as every board numbers it.
MACHINE = f"""
def unique_id():
    return bytes.fromhex("{SERIAL}")

def reset():
    pass
"""
SHIM = """
import builtins

_open = builtins.open

def translated(function, *arguments):
    try:
        return function(*arguments)
    except OSError as e:
        raise OSError(2 if e.errno == 44 else e.errno)

def open(*arguments):
    return translated(_open, *arguments)

builtins.open = open
"""
OS = """
import uos
from shim import translated
from uos import *

class Name:
    machine = {machine!r}

def uname():
    return Name

def stat(path):
    return translated(uos.stat, path)
"""


@dataclass(frozen=True, slots=True)
class ReplBoard:
    """The port, and everything that went over it towards the board."""

    port: str
    sent: bytearray


def needs_vm() -> None:
    """Skip, or fail in CI, where there is no node or no MicroPython."""
    if not shutil.which("node"):
        missing("needs node")
    if not VM.is_dir():
        missing(f"needs {VM.name} (run ./dev test once)")


@contextmanager
def repl_board(tmp_path: Path, *, machine: str = "Raspberry Pi Pico2 with RP2350") -> Iterator[ReplBoard]:
    """Run a board until the block ends."""
    needs_vm()
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "machine.py").write_text(MACHINE)
    (stubs / "shim.py").write_text(SHIM)
    (stubs / "os.py").write_text(OS.format(machine=machine))
    master, slave = pty.openpty()
    tty.setraw(slave)
    command = ["node", str(Path(__file__).with_suffix(".mjs")), str(VM), str(stubs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        board = ReplBoard(os.ttyname(slave), bytearray())
        threads = [
            threading.Thread(target=_pump, args=(master, node.stdin.fileno(), board.sent)),
            threading.Thread(target=_pump, args=(node.stdout.fileno(), master, bytearray())),
        ]
        for thread in threads:
            thread.start()
        try:
            yield board
        finally:
            node.kill()
            os.close(slave)  # the master's reader then ends
            for thread in threads:
                thread.join(timeout=10)
            os.close(master)


def _pump(source: int, sink: int, log: bytearray) -> None:
    """Carry bytes until either end is gone."""
    try:
        while data := os.read(source, 4096):
            log += data
            os.write(sink, data)
    except OSError:
        return

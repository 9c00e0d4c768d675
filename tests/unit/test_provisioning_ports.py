"""Serial ports that are not there yet, are taken away, take no bytes, or belong to somebody else."""

from __future__ import annotations

import os
import pty
import select
import tty
from typing import TYPE_CHECKING

import pytest

from edgeseal.device.ports import Port
from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


class Cable:
    """A pseudo-terminal under a name that can be taken away: a USB gadget."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.master = -1

    def plug(self) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.path.symlink_to(os.ttyname(slave))
        os.close(slave)

    def unplug(self) -> None:
        os.close(self.master)
        self.path.unlink()


def test_port_that_comes_goes_and_comes_again(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "ttyGS0")
    port = Port(str(cable.path), baud=115_200)
    assert not port.open()
    for _ in range(2):
        cable.plug()
        assert port.open()
        os.write(cable.master, b"hello")
        assert port.read() == b"hello"
        assert port.read() == b""
        port.write(b"answer")
        assert os.read(cable.master, 100) == b"answer"
        cable.unplug()
        assert port.read() == b""
        assert not port.is_open
        assert not port.open()
        assert not port.ended


def test_line_that_takes_no_bytes_blocks_nobody(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "ttyGS0")
    cable.plug()
    port = Port(str(cable.path), baud=115_200)
    assert port.open()
    port.write(bytes(100_000))
    assert port.waiting
    got = 0
    while port.waiting:
        got += len(os.read(cable.master, 65_536))
        port.write(b"")
    while select.select([cable.master], [], [], 0.1)[0]:
        got += len(os.read(cable.master, 65_536))
    assert got == 100_000
    port.close()
    os.close(cable.master)


def test_port_that_another_program_holds_is_tried_again(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "ttyGS0")
    cable.plug()
    first, second = (Port(str(cable.path), baud=115_200) for _ in range(2))
    assert first.open()
    assert not second.open()
    first.close()
    assert second.open()
    second.close()
    os.close(cable.master)


def test_speed_that_no_line_has(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "ttyGS0")
    cable.plug()
    with pytest.raises(UsageError, match="ttyGS0"):
        Port(str(cable.path), baud=-1).open()
    os.close(cable.master)


def test_file_that_is_no_port_is_never_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert not Port(str(tmp_path / "file"), baud=115_200).open()

"""What is printed on or burnt into this board, under the names of Raspberry Pi's own factory tool. Empty if unknown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal.provisioning import Board

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX: Final = 128
_WIRED: Final = ("eth0", "end0", "enp*", "usb0")


def read(root: Path = Path("/")) -> Board:
    """Read this board's numbers below `root`."""
    tree = root / "proc/device-tree"
    revision = _bytes(tree / "system/linux,revision")
    return Board(
        eth_mac=_first(_text(p) for name in _WIRED for p in sorted((root / "sys/class/net").glob(f"{name}/address"))),
        mmc_cid=_first(_text(p) for p in sorted((root / "sys/block").glob("mmcblk*/device/cid"))),
        rpi_duid=_text(tree / "chosen/rpi-duid"),
        board_revision=revision.hex().lstrip("0") if len(revision) == 4 else "",  # noqa: PLR2004 - a u32
    )


def _first(texts: Iterable[str]) -> str:
    return next((t for t in texts if t), "")


def _text(path: Path) -> str:
    text = _bytes(path).decode("ascii", "replace")
    return "".join(c for c in text if c.isprintable()).strip()


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(_MAX)
    except OSError:
        return b""

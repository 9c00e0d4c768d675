"""Feeding the kernel's pool, because HPKE encapsulation takes its coins from there and from nowhere else.

Written without credit, which needs no privilege; a forced reseed is tried and may be denied. Nothing here polls
/dev/random or reads entropy_avail: since Linux 5.18 both say nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

_RNDRESEEDCRNG: Final = 0x5207  # include/uapi/linux/random.h
RANDOM_DEVICE: Final = Path("/dev/random")


def feed(block: bytes, *, device: Path = RANDOM_DEVICE) -> str:
    """Mix `block` into the kernel's pool; return a line for the record. Never fails: the pool only gains."""
    try:
        fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as e:
        return f"kernel: not fed, {errno.errorcode.get(e.errno or 0, 'error')}"
    try:
        os.write(fd, block)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    except OSError as e:
        return f"kernel: fed, reseed denied ({errno.errorcode.get(e.errno or 0, 'error')})"
    finally:
        os.close(fd)
    return "kernel: fed and reseeded"

"""What a process gives up before it looks at a model that has not proved itself: limits, privileges, network, files.

Everything is done by the process to itself, without privileges: prctl(2), setrlimit(2), unshare(2) and Landlock
(landlock(7)). What a kernel does not offer is said in `Confined`, so that a verdict tells what it rests on.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
# System calls 444 to 446 have one number on every architecture (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH: Final = 1  # LANDLOCK_RULE_PATH_BENEATH
# linux/landlock.h: execute, write, read file, read directory; what changes a directory; from version 3 on truncate.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 2**14
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}  # version -> number of rights it knows
_NET_SINCE, _SCOPED_SINCE = 4, 6
_NET_RIGHTS: Final = 3  # TCP: bind and connect
_SCOPES: Final = 3  # abstract UNIX sockets and signals
_LEAST_CORES: Final = 4  # a slow start on one core must not look like a model that never ends
_SYSTEM: Final = (
    *("/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"),
    *("/sys/devices/system/cpu", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),  # how engines choose their threads
)

libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Confined:
    """Whether this process is cut off from the network, and from files but those it needs, which it can only read."""

    network: bool
    files: bool


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def limits(seconds: int, parent: int) -> None:
    """Die with `parent`, gain nothing, write no file, and end when all cores have been busy for `seconds`."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the model
    busy = seconds * max(_LEAST_CORES, os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (busy, busy + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def network() -> bool:
    """Move to a network namespace that has no network; return whether the kernel let us."""
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


def files(readable: Iterable[Path]) -> Confined:
    """Leave this process only `readable`, the system's libraries and Python's, and those only to read.

    Where Landlock knows the network too (version 4), TCP is closed as well. Writing stays possible below /proc/self:
    that is how a process resets what it has used.
    """
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    if version < 1:
        return Confined(network=False, files=False)
    rights = (1 << max(n for v, n in _FS_RIGHTS.items() if v <= version)) - 1
    asked = _Ruleset(rights, _NET_RIGHTS if version >= _NET_SINCE else 0, _SCOPES if version >= _SCOPED_SINCE else 0)
    size = 8 if version < _NET_SINCE else 16 if version < _SCOPED_SINCE else 24
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(asked), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return Confined(network=False, files=False)
    try:
        for path in {*readable, *map(Path, _SYSTEM), *_python()}:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        # Opening a file to write it anew is truncating it, which is a right of its own from version 3 on.
        _allow(ruleset, Path("/proc/self"), (_READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE) & rights)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # what landlock_restrict_self(2) asks of all but root
        done = libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0
    finally:
        os.close(ruleset)
    return Confined(network=done and version >= _NET_SINCE, files=done)


def _python() -> Iterable[Path]:
    """Where modules and their libraries lie: some are imported only when a model needs them."""
    return (Path(p) for p in {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path} if p.startswith("/"))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    """Add a rule for what is there; directory rights are not for files."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(rights if path.is_dir() else rights & (_READ_FILE | _WRITE_FILE), fd)
        libc.syscall(
            _ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.byref(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(fd)

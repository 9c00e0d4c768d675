"""Priority of a process that works while another one answers: it takes the processor time that the other leaves.

Nice values hold within a group of processes only, and each session is such a group on kernels with autogrouping
(sched(7)): the group gets the same value. Never idle priority, which starves where something else never sleeps.

A low priority alone still makes callers wait: a thread that wakes beside a process that has just been given a slice of
time waits for the end of it, 2 to 4 ms (EEVDF, 250 ticks a second), which is several short answers. So a process that
loads has one core, and the one that serves keeps to the others meanwhile where its answers are as short as that.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

# Of a process that loads: no engine calls numpy's linear algebra, whose threads would spin for 0.1 s when imported.
ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1"}
LOADING: Final = 10  # below whoever serves: a tenth of its share where both are busy
_LEAST: Final = 19  # nice(2)
_CAP_SYS_NICE: Final = 23  # include/uapi/linux/capability.h
_TRIES: Final = 10
_BETWEEN: Final = 0.11  # seconds
_RLIMIT_ZERO: Final = 20  # RLIMIT_NICE counts downwards: 20 - nice; getrlimit(2)


def give_way(pid: int, nice: int) -> None:
    """Lower the priority of a process by `nice` below ours: all its threads, and those that they will start."""
    _set_threads(pid, min(_LEAST, os.getpriority(os.PRIO_PROCESS, 0) + nice))
    _set_group(pid, min(_LEAST, _group(os.getpid()) + nice))


def give_way_for_now(pid: int) -> None:
    """Lower a child that has just been started, and keep it to one core, until it calls `come_back`.

    Coming back from a nice value needs a permission (CAP_SYS_NICE, or RLIMIT_NICE as edgeseal-serve.service sets it):
    without it only the group gives way, for a worker that could not come back would serve slowly ever after.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if _may_return(nice):
        _set_threads(pid, min(_LEAST, nice + LOADING))
    _set_group(pid, min(_LEAST, _group(os.getpid()) + LOADING))
    _set_cores(pid, _loading(os.sched_getaffinity(0)))


def come_back() -> None:
    """Give all threads of this process the priority and the cores of the one that started it."""
    way_back()()


def way_back() -> Callable[[], None]:
    """Return `come_back` for a process that will not be able to look at its parent any more."""
    try:
        parent = os.getppid()
        nice, group = os.getpriority(os.PRIO_PROCESS, parent), _group(parent)
        cores = os.sched_getaffinity(parent)
    except OSError:  # it has ended: so will this one
        return lambda: None

    def back() -> None:
        _set_threads(os.getpid(), nice)
        _set_group(os.getpid(), group)
        _set_cores(os.getpid(), cores)

    return back


def leave() -> None:
    """Give way for the rest of this process' life: taking its memory apart is work, too."""
    with contextlib.suppress(OSError):  # the parent has ended
        _set_cores(os.getpid(), _loading(os.sched_getaffinity(os.getppid())))
    give_way(os.getpid(), LOADING)


def keep_apart(pid: int) -> None:
    """Keep a child off the core of the one that loads, if there is another."""
    ours = os.sched_getaffinity(0)
    _set_cores(pid, ours - _loading(ours) or ours)


def keep_no_longer_apart(pid: int) -> None:
    """Let a child use all cores that we may use."""
    _set_cores(pid, os.sched_getaffinity(0))


def _loading(cores: set[int]) -> set[int]:
    """Return the core for processes that load or leave: the last, for interrupts go to the first on most boards."""
    return {max(cores)}


def _set_threads(pid: int, nice: int) -> None:
    for thread in _threads(pid):
        with contextlib.suppress(OSError):  # it has ended, which is nothing to the others; or the kernel knows better
            os.setpriority(os.PRIO_PROCESS, thread, nice)


def _set_cores(pid: int, cores: AbstractSet[int]) -> None:
    for thread in _threads(pid):
        with contextlib.suppress(OSError):  # as above
            os.sched_setaffinity(thread, cores)


def _threads(pid: int) -> list[int]:
    """Return the ids of a process' threads, none once it has ended."""
    with contextlib.suppress(OSError):
        return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return []


def _group(pid: int) -> int:
    """Return the nice value of a process' autogroup, 0 where there is none; its file says "/autogroup-7 nice 0"."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/autogroup").read_text("ascii").split()[2])
    return 0


def _set_group(pid: int, nice: int) -> None:
    """Set it where there are such groups and this one is the process' own: else its session's others would go with it.

    Without privileges the kernel takes ten changes a second of all groups.
    """
    with contextlib.suppress(OSError):
        if os.getsid(pid) != pid:
            return
    for _ in range(_TRIES):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
        except BlockingIOError:
            time.sleep(_BETWEEN)
        except OSError:
            return
        else:
            return


def _may_return(nice: int) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return limit == resource.RLIM_INFINITY or _RLIMIT_ZERO - nice <= limit or _has_capability()


def _has_capability() -> bool:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False

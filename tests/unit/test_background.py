"""A worker that loads beside one that serves gives way, all of it, and comes back before it serves itself."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeseal.runtime import background
from edgeseal.runtime import child as child_process

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTOGROUP = Path("/proc/self/autogroup")
MINE = frozenset(os.sched_getaffinity(0))
CHILD = """
import os, sys, threading
from edgeseal.runtime import background
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
print("ready", flush=True)
sys.stdin.readline()
background.come_back()
print("back", flush=True)
sys.stdin.readline()
done.set()
"""


class Child:
    """A worker with a thread beside its main one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.hear("ready")

    def hear(self, word: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == f"{word}\n"

    def say(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def priorities(self) -> set[int]:
        threads = [int(task.name) for task in Path(f"/proc/{self.process.pid}/task").iterdir()]
        assert len(threads) == 2
        return {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}

    def cores(self) -> set[frozenset[int]]:
        threads = [int(task.name) for task in Path(f"/proc/{self.process.pid}/task").iterdir()]
        return {frozenset(os.sched_getaffinity(thread)) for thread in threads}

    def group(self) -> int:
        return background._group(self.process.pid)


@pytest.fixture
def child() -> Iterator[Child]:
    with worker() as made:
        yield made


@contextmanager
def worker() -> Iterator[Child]:
    words = [sys.executable, "-c", CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


def _mine() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_who_may_come_back_gives_way_with_all_threads(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    if not background._may_return(_mine()):
        pytest.skip("needs CAP_SYS_NICE or RLIMIT_NICE")
    background.give_way_for_now(child.process.pid)
    assert child.priorities() == {min(19, _mine() + background.LOADING)}
    child.say()
    child.hear("back")
    assert child.priorities() == {_mine()}
    # Negative control: a worker that does not come back is seen.
    monkeypatch.setattr(background, "_set_threads", lambda *_: None)
    background.give_way_for_now(child.process.pid)
    assert child.priorities() == {_mine()}


def test_who_may_not_keeps_its_nice_value(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_may_return", lambda _: False)
    background.give_way_for_now(child.process.pid)
    assert child.priorities() == {_mine()}


@pytest.mark.skipif(not os.access(AUTOGROUP, os.W_OK), reason="needs a kernel with autogroups")
@pytest.mark.parametrize("may_return", [True, False])
def test_its_group_gives_way_and_comes_back(child: Child, monkeypatch: pytest.MonkeyPatch, *, may_return: bool) -> None:
    if may_return and not background._may_return(_mine()):
        pytest.skip("needs CAP_SYS_NICE or RLIMIT_NICE")
    monkeypatch.setattr(background, "_may_return", lambda _: may_return)
    before = background._group(os.getpid())
    background.give_way_for_now(child.process.pid)
    assert child.group() == min(19, before + background.LOADING)
    child.say()
    child.hear("back")
    assert child.group() == before


@pytest.mark.skipif(len(MINE) < 2, reason="needs two cores")
def test_it_has_one_core_with_all_its_threads_and_comes_back_to_all(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    background.give_way_for_now(child.process.pid)
    assert child.cores() == {frozenset({max(MINE)})}
    child.say()
    child.hear("back")
    assert child.cores() == {MINE}
    # Negative control: a worker that keeps its cores is seen.
    monkeypatch.setattr(background, "_set_cores", lambda *_: None)
    background.give_way_for_now(child.process.pid)
    assert child.cores() == {MINE}


@pytest.mark.skipif(len(MINE) < 2, reason="needs two cores")
def test_the_one_that_serves_has_the_other_cores_meanwhile(child: Child) -> None:
    background.keep_apart(child.process.pid)
    assert child.cores() == {MINE - {max(MINE)}}
    background.keep_no_longer_apart(child.process.pid)
    assert child.cores() == {MINE}


def test_there_is_no_apart_on_one_core(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    taken: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: taken.append(cores))
    background.keep_apart(child.process.pid)
    assert taken == [{0}, {0}]


def test_who_leaves_gives_way_to_the_end() -> None:
    code = """
import os
from edgeseal.runtime import background
background.leave()
print(os.getpriority(os.PRIO_PROCESS, 0), *os.sched_getaffinity(0))
"""
    group = background._group(os.getpid())
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(min(19, _mine() + background.LOADING)), str(max(MINE))]
    assert background._group(os.getpid()) == group  # it was in our session: who leaves takes nobody along


GATE = """
import os, sys
from edgeseal.runtime import background, confine
from pathlib import Path
def now():
    return [os.getpriority(os.PRIO_PROCESS, 0), background._group(os.getpid()), *sorted(os.sched_getaffinity(0))]
while str(now()) != sys.argv[1]:
    pass
back = background.way_back()
confine.files([Path("/tmp")])
back()
print(now())
"""


def test_the_gate_gives_way_and_comes_back_though_it_sees_no_other_process_any_more() -> None:
    if not background._may_return(_mine()):
        pytest.skip("needs CAP_SYS_NICE or RLIMIT_NICE")
    group = background._group(os.getpid())
    lowered = min(19, group + background.LOADING) if os.access(AUTOGROUP, os.W_OK) else 0
    low = str([min(19, _mine() + background.LOADING), lowered, max(MINE)])
    ended = child_process.run(
        [sys.executable, "-c", GATE, low], stdin=b"", seconds=60, environment=dict(os.environ), background=True
    )
    assert not ended.timed_out, f"it was never {low}"
    assert ended.stdout.decode().strip() == str([_mine(), group, *sorted(MINE)]), ended.stderr.decode()


def test_a_kernel_that_takes_no_change_now_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN at the way back would leave a worker slow for ever."""
    answers: list[OSError | None] = [BlockingIOError(), BlockingIOError(), None]
    monkeypatch.setattr(background, "_BETWEEN", 0.0)

    def write(*_: object, **__: object) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(os, "getsid", lambda pid: pid)
    background._set_group(os.getpid(), 0)
    assert answers == []


@pytest.mark.parametrize("change", ["setpriority", "sched_setaffinity"])
def test_a_thread_that_has_ended_is_nothing_to_the_others(
    child: Child, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Else a worker whose first thread in the list ends just then would stay slow for ever."""
    real, threads = getattr(os, change), background._threads
    gone = 2**22  # beyond the largest process id (proc(5): pid_max)
    monkeypatch.setattr(background, "_threads", lambda pid: [gone, *threads(pid)])
    done: list[int] = []

    def noted(*words: Any) -> None:
        real(*words)
        done.append(words[-2])

    monkeypatch.setattr(os, change, noted)
    background._set_threads(child.process.pid, _mine())
    background._set_cores(child.process.pid, MINE)
    assert sorted(done) == sorted(threads(child.process.pid))


def test_a_process_that_has_ended_is_no_error() -> None:
    with worker() as child:
        child.process.kill()
        child.process.wait()
        background.give_way(child.process.pid, 5)


@pytest.mark.parametrize(
    ("nice", "limit", "capable", "may"),
    [(0, 20, False, True), (0, 19, False, False), (5, 15, False, True), (0, 0, True, True), (0, 0, False, False)],
)
def test_who_may_come_back(monkeypatch: pytest.MonkeyPatch, nice: int, limit: int, *, capable: bool, may: bool) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(background, "_has_capability", lambda: capable)
    assert background._may_return(nice) is may

"""kill -9 of agent, old worker, new worker and supervisor at the steps of a swap, all of them real and under load.

Whatever is killed: a healthy release answers again, the journal of the switch says what happened, and the next pass
brings the release to its end. A request is lost only with the process that had it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytest.importorskip("uvicorn", reason="pip install 'edgeseal[serve]'")

from tests.attacks import bad_models, release_world
from tests.unit.runtime_world import Serve, until
from tests.unit.test_serve_supervisor import HOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.release_world import Answer, World

    from edgeseal.device.state import Trial

WATCH = 3600  # seconds: a watch that is cut off, never one that ends
# An agent that kills itself with SIGKILL where a step is about to be taken, or has just been taken.
SUICIDE = """
import os, signal, sys
from edgeseal.device import cli, trial
from edgeseal.runtime import adapters
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
place, name = {place}, {name!r}
assert hasattr(place, name)
setattr(place, name, die)
sys.exit(cli.main(sys.argv[1:]))
"""


class HeldServe(Serve):
    """edgeseal-serve with a socket that outlives it, as systemd holds one; `start` is its Restart=."""

    def __init__(self, made: World) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.ready, self.log = made.device.models.parent / "ready", made.device.models.parent / "serve.log"
        self._words = ["--models", str(made.device.models), "--status-file", str(made.status_file), "--threads", "1"]
        self.start()

    def start(self) -> None:
        fd = self.listener.fileno()
        with self.log.open("ab") as log:
            words = [sys.executable, "-c", HOLDER, str(fd), *self._words, "--ready-file", str(self.ready)]
            self.process = subprocess.Popen(words, pass_fds=[fd], stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Swap:
    """The device and the number of the next release."""

    world: World
    number: int = release_world.GOOD

    @property
    def serve(self) -> HeldServe:
        assert isinstance(self.world.serve, HeldServe)
        return self.world.serve

    def publish(self, spoil: bad_models.Spoil | None = None) -> int:
        """Assign the next release, a good one unless it has a spoil."""
        self.number += 1
        self.world.publish(self.number, lambda path: bad_models.classifier(path, spoil=spoil))
        self.world.fleet.repository.publish()
        self.world.fleet.assigned = self.number
        return self.number

    @contextmanager
    def agent(self, *before: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start an update pass in a process of its own."""
        words = [sys.executable, *(before or ("-m", "edgeseal.device.cli"))]
        arguments = ["--config", str(self.world.device.config_file), "update"]
        with subprocess.Popen([*words, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                yield process
            finally:
                process.kill()

    def trial(self) -> Trial | None:
        return self.world.model().trial

    def step(self) -> str:
        trial = self.trial()
        return trial.step if trial else ""

    def installed(self) -> int:
        current = self.world.model().current
        assert current is not None
        return current.release

    def next_pass(self, *, expect: int) -> str:
        """Let the agent do another pass, as its service does, to end with `expect` in service. Return its words."""
        with self.agent() as process:
            said = process.communicate(timeout=100)[0].decode()
        assert self.trial() is None, said
        assert self.installed() == expect, said
        assert self.world.device.serving() == expect
        self.world.load.wait_for(lambda a: a.right and a.release == expect, 3, f"release {expect} answers")
        return said

    def lost(self, start: int) -> list[Answer]:
        """Whatever was not answered, and whatever was answered wrongly."""
        return [a for a in self.world.load.since(start) if not a.right]


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swap]:
    with release_world.world(tmp_path_factory.mktemp("kills"), {}, start=HeldServe) as made:
        swap = Swap(made)
        yield swap
        swap.serve.listener.close()


@pytest.fixture
def swap(_world: Swap) -> Swap:
    """A device that serves some good release; each test publishes the next."""
    _world.world.configure(probe=False)
    _world.world.load.mark = lambda _: bad_models.VECTOR_MARK
    _world.world.load.wait_for(lambda a: a.right, 1, "it serves")
    until(lambda: len(_world.serve.workers()) == 1, "whoever served before has left")
    return _world


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def a_child(pid: int, command: str) -> int | None:
    for child in children(pid):
        if command.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def stopped_child(agent: subprocess.Popen[bytes], command: str) -> int:
    """Wait for a child that runs `command`, and stop it as soon as it is there."""

    def there() -> int | None:
        assert agent.poll() is None, f"the agent has ended: {agent.communicate()[0].decode()}"
        return a_child(agent.pid, command)

    until(there, f"{command} runs")
    child = a_child(agent.pid, command)
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    return child


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# The agent ------------------------------------------------------------------------------------------------------------


def test_the_agent_is_killed_while_it_probes(swap: Swap) -> None:
    swap.world.configure()
    before, start = swap.installed(), len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent() as agent:
        prober = stopped_child(agent, "edgeseal.runtime.probe_worker")
        assert swap.step() == "probing"
        agent.kill()
        agent.wait()
    os.kill(prober, signal.SIGCONT)
    until(lambda: not is_running(prober), "the probe has gone with it")
    assert swap.world.device.serving() == before
    assert f"release {release}: cut off while probing; undone" in swap.next_pass(expect=release)
    assert swap.lost(start) == []


def test_the_agent_is_killed_while_it_switches(swap: Swap) -> None:
    before, start = swap.installed(), len(swap.world.load.answers)
    release = swap.publish()
    with stopped(swap.serve.process.pid), swap.agent() as agent:
        until(lambda: swap.step() == "switching" and swap.world.device.serving() == release, "the link is switched")
        agent.kill()
        agent.wait()
    assert swap.installed() == before
    assert f"release {release}: cut off while switching; undone" in swap.next_pass(expect=release)
    assert swap.lost(start) == []


def test_the_agent_is_killed_while_it_watches(swap: Swap) -> None:
    swap.world.configure(probe=False, watch_seconds=WATCH)
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent() as agent:
        until(lambda: swap.step() == "watching", "it watches")
        agent.kill()
        agent.wait()
    swap.world.configure(probe=False)
    assert f"release {release}: its watch goes on" in swap.next_pass(expect=release)
    assert swap.lost(start) == []


@pytest.mark.parametrize(("place", "name"), [("adapters.Link", "commit"), ("trial", "_end")], ids=["before", "after"])
def test_the_agent_is_killed_while_it_commits(swap: Swap, place: str, name: str) -> None:
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent("-c", SUICIDE.format(place=place, name=name)) as agent:
        assert agent.wait(100) == -signal.SIGKILL
    assert swap.step() == "committing"
    assert swap.installed() == release  # it has proved itself: nothing takes that back
    swap.next_pass(expect=release)
    assert swap.lost(start) == []


@pytest.mark.parametrize(("place", "name"), [("adapters.Link", "rollback"), ("trial", "_end")], ids=["before", "after"])
def test_the_agent_is_killed_while_it_undoes(swap: Swap, place: str, name: str) -> None:
    swap.world.configure(probe=False, watch_seconds=WATCH)
    before = swap.installed()
    release = swap.publish(bad_models.refuses_above(8))
    swap.world.load.mark = lambda _: 8.0
    with swap.agent("-c", SUICIDE.format(place=place, name=name)) as agent:
        assert agent.wait(100) == -signal.SIGKILL
    assert swap.step() == "undoing"
    failed = swap.world.model().failed[0]
    assert failed.release == release
    assert "answers failed" in failed.reason  # written down before anything was undone
    if place == "adapters.Link":  # negative control: nobody has given it back yet, and that is seen
        swap.world.load.wait_for(lambda a: a.status == 500, 2, "the bad release still serves")
    said = swap.next_pass(expect=before)  # and it answers the same inputs
    assert f"release {release} failed here before" in said


def test_a_release_whose_agent_is_killed_each_time_is_given_up(swap: Swap) -> None:
    """Nobody knows whether the release or a person kills it; after three times it is held to be the release."""
    before, start = swap.installed(), len(swap.world.load.answers)
    release = swap.publish()
    for _ in range(3):
        with swap.agent("-c", SUICIDE.format(place="adapters.Link", name="activate")) as agent:
            assert agent.wait(100) == -signal.SIGKILL
        assert swap.step() == "switching"
    said = swap.next_pass(expect=before)
    assert f"release {release} failed here before" in said
    assert "ended 3 times while it was on trial (step switching)" in swap.world.model().failed[0].reason
    assert swap.lost(start) == []


# Workers --------------------------------------------------------------------------------------------------------------


def test_the_old_worker_is_killed_while_the_agent_probes(swap: Swap) -> None:
    swap.world.configure()
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent() as agent:
        prober = stopped_child(agent, "edgeseal.runtime.probe_worker")
        os.kill(int(swap.serve.workers()[0]), signal.SIGKILL)
        swap.world.load.wait_for(lambda a: a.right and a.release != release, 3, "another worker answers")
        os.kill(prober, signal.SIGCONT)
        assert agent.wait(100) == 0
    swap.next_pass(expect=release)
    assert len(swap.lost(start)) <= 1


def test_the_old_worker_is_killed_while_the_agent_switches(swap: Swap) -> None:
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent() as agent:
        with stopped(swap.serve.process.pid):
            until(lambda: swap.world.device.serving() == release, "the link is switched")
            os.kill(int(swap.serve.workers()[0]), signal.SIGKILL)
        assert agent.wait(100) == 0
    swap.next_pass(expect=release)
    assert len(swap.lost(start)) <= 1


def test_the_new_worker_is_killed_while_it_loads(swap: Swap) -> None:
    before, start = swap.installed(), len(swap.world.load.answers)
    (old,) = swap.serve.workers()
    release = swap.publish()
    with swap.agent() as agent:
        until(lambda: len(swap.serve.workers()) == 2, "a second worker loads")
        (new,) = set(swap.serve.workers()) - {old}
        os.kill(int(new), signal.SIGKILL)
        assert agent.wait(100) == 5  # what an ActivationError ends with
    failed = swap.world.model().failed[0]
    assert failed.release == release
    assert "was not taken over: the worker ended while it loaded (SIGKILL)" in failed.reason
    swap.next_pass(expect=before)
    assert swap.lost(start) == []


def test_the_new_worker_is_killed_once_while_it_is_watched(swap: Swap) -> None:
    swap.world.configure(probe=False, watch_seconds=4)
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent() as agent:
        until(lambda: swap.step() == "watching", "it watches")
        until(lambda: len(swap.serve.workers()) == 1, "the old worker has ended")
        os.kill(int(swap.serve.workers()[0]), signal.SIGKILL)
        assert agent.wait(100) == 0
    assert swap.world.counted(release).crashes == 1
    swap.next_pass(expect=release)
    assert len(swap.lost(start)) <= 1


# The supervisor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["switching", "watching"])
def test_the_supervisor_is_killed(swap: Swap, step: str) -> None:
    swap.world.configure(probe=False, watch_seconds=WATCH)
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent() as agent:
        if step == "switching":
            os.kill(swap.serve.process.pid, signal.SIGSTOP)
        until(lambda: swap.step() == step and swap.world.device.serving() == release, f"the agent is {step}")
        swap.serve.kill()
        swap.serve.start()
        until(lambda: swap.step() == "watching", "it watches")
        swap.world.load.wait_for(lambda a: a.right and a.release == release, 3, f"release {release} answers")
        agent.kill()
    swap.world.configure(probe=False)
    swap.next_pass(expect=release)
    assert len(swap.lost(start)) <= 1


def test_the_supervisor_is_away_when_the_agent_would_switch(swap: Swap) -> None:
    """A bad release must not slip in unwatched while the one who would have counted starts again."""
    swap.world.configure(watch_seconds=WATCH)
    before = swap.installed()
    release = swap.publish(bad_models.refuses_above(8))
    swap.world.load.mark = lambda _: 8.0
    with swap.agent() as agent:
        prober = stopped_child(agent, "edgeseal.runtime.probe_worker")
        swap.serve.kill()
        os.kill(prober, signal.SIGCONT)
        until(lambda: a_child(agent.pid, "edgeseal.runtime.probe_worker") is None, "the probe has ended")
        swap.serve.start()
        assert agent.wait(100) == 3  # what a WatchError ends with
    assert "answers failed" in swap.world.model().failed[0].reason
    assert f"release {release} failed here before" in swap.next_pass(expect=before)


def kill_all(swap: Swap) -> None:
    """Kill what is left of a swap whose agent is gone, and start the server again."""
    workers = swap.serve.workers()
    os.kill(swap.serve.process.pid, signal.SIGSTOP)
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    swap.serve.kill()
    swap.serve.start()


def test_everything_is_killed_before_the_switch(swap: Swap) -> None:
    start = len(swap.world.load.answers)
    release = swap.publish()
    with swap.agent("-c", SUICIDE.format(place="trial", name="_switch")) as agent:
        assert agent.wait(100) == -signal.SIGKILL
    kill_all(swap)
    swap.world.load.wait_for(lambda a: a.right and a.release != release, 1, "the release before answers")
    assert f"release {release}: cut off while probing; undone" in swap.next_pass(expect=release)
    assert len(swap.lost(start)) <= 1


def test_everything_is_killed_while_it_undoes(swap: Swap) -> None:
    swap.world.configure(probe=False, watch_seconds=WATCH)
    before = swap.installed()
    release = swap.publish(bad_models.refuses_above(8))
    swap.world.load.mark = lambda _: 8.0
    with swap.agent("-c", SUICIDE.format(place="adapters.Link", name="rollback")) as agent:
        assert agent.wait(100) == -signal.SIGKILL
    kill_all(swap)
    assert f"release {release} failed here before" in swap.next_pass(expect=before)

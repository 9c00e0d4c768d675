"""Factory reset: what this device is goes, for good, whatever happens to the power meanwhile.

    resetting   written first: from here on there is no way back; every start of the agent goes on
    …           lock, profile, root, secrets, metadata, state, models
    destroyed   `resetting` renamed when nothing is left: says which identity is gone

Objects in the store go too: they are encrypted under keys that are gone. Logs are the system's and stay.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from edgeseal.device import profile
from edgeseal.device.agent import RESETTING
from edgeseal.device.profile import LOCKED
from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.provisioning import Destroyed

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent

DESTROYED: Final = "destroyed"
_DIRECTORIES: Final = ("trust", "targets", "objects")
_MAX: Final = 1024


def begin(agent: Agent, last: Destroyed) -> None:
    """Decide, then destroy. The caller holds the agent's lock."""
    write_atomic(agent.directory / RESETTING, last.to_bytes())
    finish(agent)


def finish(agent: Agent) -> None:
    """Destroy what is left; may be repeated. The caller holds the agent's lock."""
    directory = agent.directory
    (directory / LOCKED).unlink(missing_ok=True)
    profile.remove(directory)
    fsync_directory(directory)
    agent.keys.destroy()
    for model in agent.models.models():
        agent.models.retire(model)
    for name in _DIRECTORIES:
        shutil.rmtree(directory / name, ignore_errors=True)
    for path in directory.glob("state.[01]"):
        path.unlink()
    (directory / RESETTING).replace(directory / DESTROYED)
    fsync_directory(directory)
    agent.forget()


def destroyed(agent: Agent) -> Destroyed | None:
    """Return what the last factory reset destroyed."""
    try:
        with (agent.directory / DESTROYED).open("rb") as f:
            return Destroyed.from_bytes(f.read(_MAX))
    except FileNotFoundError:
        return None


def forget_destroyed(agent: Agent) -> None:
    """Drop that note: a new identity is there, and the former one is nobody's question any more."""
    (agent.directory / DESTROYED).unlink(missing_ok=True)

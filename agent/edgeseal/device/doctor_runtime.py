"""`doctor` on the runtime: whether what `runtime.adapter` names is there, and can be told and asked.

Nothing is switched, loaded or started; an owner's command is only looked for, never run.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from edgeseal.device.doctor import Finding
from edgeseal.runtime import serve_status

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent

_GUIDE = "docs/guides/bring-your-own-runtime.md"
_NOBODY = "no-such-model"  # asked for only to see whether anybody answers


def examine(agent: Agent) -> Finding:
    """Return the finding. Raises UsageError for an adapter whose settings are incomplete."""
    agent.adapter()
    return {"serve": _serve, "systemd": _systemd, "oip-http": _oip, "exec": _exec, "none": _none}[
        agent.config.runtime.adapter
    ](agent)


def _serve(agent: Agent) -> Finding:
    path = agent.config.runtime.status_file
    status = serve_status.read(path)
    if status is None or agent.adapter().health(_NOBODY, 0) is None:
        return Finding(
            "runtime",
            "warning",
            f"no edgeseal-serve says in {path} how it does: releases would be switched without a watch",
            "systemctl status edgeseal-serve; its --status-file must be the file of runtime.status_file",
        )
    serving = [f"{name} release {about.serving}" for name, about in status.models.items() if about.serving is not None]
    return Finding("runtime", "ok", f"edgeseal-serve runs: {', '.join(serving) or 'nothing to serve yet'}")


def _systemd(agent: Agent) -> Finding:
    unit = agent.config.runtime.unit
    health = agent.adapter().health(_NOBODY, 0)
    if health is None:
        return Finding(
            "runtime", "failed", f"systemctl says nothing of {unit}", f"systemctl show {unit} as the agent's user"
        )
    if not health.serving:
        return Finding("runtime", "warning", f"{unit} is not active", f"systemctl status {unit}; {_GUIDE}")
    return Finding("runtime", "ok", f"{unit} is active")


def _oip(agent: Agent) -> Finding:
    url = agent.config.runtime.url
    if agent.adapter().health(_NOBODY, 0) is None:
        return Finding("runtime", "failed", f"{url} does not answer", f"is the server of runtime.url running? {_GUIDE}")
    return Finding("runtime", "ok", f"{url} answers")


def _exec(agent: Agent) -> Finding:
    command = agent.config.runtime.command[0]
    found = shutil.which(command)
    if found is None:
        what = "may not be executed by this user" if os.path.exists(command) else "is not there"  # noqa: PTH110 - text
        return Finding("runtime", "failed", f"runtime.command: {command} {what}", f"its path and mode; {_GUIDE}")
    return Finding("runtime", "ok", f"{found} is told of every step")


def _none(agent: Agent) -> Finding:
    return Finding("runtime", "ok", f"nobody is told: a runtime follows `current` below {agent.models.root}")

"""`status`: what this device is and runs, from what is on it. No network, no key, nothing heavy imported."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from edgeseal import __version__
from edgeseal.device.state import Gate, Shadowed, gate_words
from edgeseal.errors import EdgesealError, NotAuthorisedError
from edgeseal.runtime import serve_status, shadow_text
from edgeseal.trust.generations import Generations
from edgeseal.trust.views import roles

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent
    from edgeseal.device.state import Installed, Trial


def collect(agent: Agent) -> dict[str, Any]:
    """Return everything `status` shows; what cannot be read is said under `problems`."""
    out: dict[str, Any] = {"agent": __version__, "enrolled": False, "device": None, "problems": []}
    try:
        found = agent.profile
        out |= {"enrolled": True, "device": found.device, "suite": found.suite, "fleet_url": agent.fleet_url}
        out["seed_entropy"] = found.entropy
    except NotAuthorisedError:
        out["problems"].append("this device is not enrolled")
    except EdgesealError as e:
        out["problems"].append(str(e))
    _add_state(agent, out)
    files = Generations(agent.directory / "trust").read()
    out["metadata"] = {r: {"version": s.version, "expires": s.expires} for r, s in roles(files).items()}
    now = agent.clock()
    out["problems"] += [
        f"metadata role {r} expired on {_day(s.expires)}" for r, s in roles(files).items() if s.expires <= now
    ]
    return out


def _add_state(agent: Agent, out: dict[str, Any]) -> None:
    try:
        state = agent.state()
    except EdgesealError as e:
        out["problems"].append(str(e))
        return
    out |= {"revoked": state.revoked, "checked_in_at": state.checked_in_at, "refreshed_at": state.refreshed_at}
    out["models"] = {}
    for name, model in state.models.items():
        serving = agent.models.current(name)
        current = model.current.release if model.current else None
        out["models"][name] = {
            "release": current,
            "serving": serving,
            "activated_at": model.current.activated_at if model.current else None,
            "previous": model.previous.release if model.previous else None,
            "floor": model.floor,
            "gate": _gate(model.current),
            "shadow": _shadow(model.current),
            "failed": [
                {"release": f.release, "reason": f.reason, "served": f.served, "at": f.at} for f in model.failed
            ],
            "trial": _trial(agent, name, model.trial),
        }
        if current is not None and serving != current:
            out["problems"].append(
                f"{name} release {current} is installed but not in memory; an update pass restores it"
            )
    if state.revoked:
        out["problems"].append("the fleet has revoked this device")
    if state.last_error:
        out["problems"].append(f"last pass: {state.last_error}")
    if agent.models.root.exists() and agent.models.on_disk:
        out["problems"].append(f"decrypted models are on a disk: {agent.models.root}")


def _gate(installed: Installed | None) -> dict[str, Any] | None:
    """Return the figures with which the release that serves passed the gate: times in ms, memory in MiB."""
    if installed is None or (installed.gate is None and not installed.watched):
        return None
    figures = msgspec.to_builtins(installed.gate, str_keys=True) if installed.gate is not None else []
    named = dict(zip(Gate.__struct_fields__, figures, strict=False))
    return {**named, "watched_seconds": installed.watched, "words": gate_words(installed)}


def _shadow(installed: Installed | None) -> dict[str, Any] | None:
    """Return what came of running live requests on the release that serves before it took over."""
    if installed is None or installed.shadow is None:
        return None
    figures = dict(zip(Shadowed.__struct_fields__, msgspec.to_builtins(installed.shadow), strict=True))
    named = ("name", "mean_relative", "max_relative", "top1")
    figures["outputs"] = [dict(zip(named, output, strict=True)) for output in figures["outputs"]]
    return {**figures, "words": installed.shadow.text()}


def _trial(agent: Agent, name: str, trial: Trial | None) -> dict[str, Any] | None:
    """Return the switch that is not over, and in its shadow what edgeseal-serve has measured so far."""
    if trial is None or trial.step == "interrupted":
        return None
    about: dict[str, Any] = {"release": trial.release, "step": trial.step, "since": trial.since, "shadow": None}
    if trial.step == "shadowing" and (said := serve_status.read(agent.config.runtime.status_file)) is not None:
        found = said.models[name].shadow if name in said.models else None
        about["shadow"] = shadow_text.words(found) if found is not None else None
    return about


def text(found: dict[str, Any]) -> str:
    """Return the same for a person."""
    lines = [f"edgeseal-agent {found['agent']}"]
    if found["enrolled"]:
        lines.append(f"device    {found['device']} (suite {found['suite']}), fleet {found['fleet_url']}")
    for name, model in found.get("models", {}).items():
        since = f" since {_minute(model['activated_at'])}" if model["activated_at"] else ""
        back = f", {model['previous']} to go back to" if model["previous"] is not None else ""
        lines.append(f"model     {name} release {model['release'] or 'none'}{since}{back}")
        lines += [f"          gate: {model['gate']['words']}"] if model["gate"] else []
        lines += [f"          shadow: {model['shadow']['words']}"] if model["shadow"] else []
        lines += [
            f"          release {f['release']} {'was rolled back' if f['served'] else 'failed'}: {f['reason']}"
            for f in model["failed"]
        ]
        if model["trial"]:
            so_far = f" ({model['trial']['shadow']})" if model["trial"]["shadow"] else ""
            lines.append(f"          release {model['trial']['release']} is on trial: {model['trial']['step']}{so_far}")
    if found.get("checked_in_at"):
        lines.append(f"fleet     last heard of this device {_minute(found['checked_in_at'])}")
    for role in ("root", "targets", "snapshot", "timestamp"):
        if role in found["metadata"]:
            state = found["metadata"][role]
            lines.append(f"metadata  {role} version {state['version']}, until {_day(state['expires'])}")
    lines += [f"problem   {problem}" for problem in found["problems"]] or ["no problem known"]
    return "\n".join(lines)


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _minute(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

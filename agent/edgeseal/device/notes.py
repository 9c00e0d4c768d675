"""What the agent leaves beside a model for the page of edgeseal-serve: gate, shadow, watch, last rollback and refusal.

Always made from the state, so that it says the same after a reboot, when memory has forgotten it. For people only:
nothing depends on it, so nothing fails of it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from edgeseal.errors import EdgesealError

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent
    from edgeseal.device.state import Failed, Gate, Model


def leave(agent: Agent, name: str, model: Model | None = None) -> None:
    """Bring the notes beside a model up to date; `model` if it is not yet, or cannot be, in the state."""
    with contextlib.suppress(EdgesealError, OSError):
        about = describe(model or agent.state().model(name), watch_seconds=agent.config.runtime.watch_seconds)
        if about != agent.models.notes(name):
            agent.models.note(name, about)


def describe(model: Model, *, watch_seconds: int) -> dict[str, Any]:
    """Return what is worth a person's while; the shapes are those that edgeseal.runtime.page reads."""
    known = [i for i in (model.trial, model.current, model.previous) if i is not None]
    about: dict[str, Any] = {}
    if gates := {str(i.release): _figures(i.gate) for i in reversed(known) if i.gate is not None}:
        about["gate"] = gates
    if shadows := {str(i.release): i.shadow.text() for i in reversed(known) if i.shadow is not None}:
        about["shadow"] = shadows
    if model.trial is not None and model.trial.step == "watching" and watch_seconds:
        about["watch"] = {"release": model.trial.release, "until": model.trial.since + watch_seconds}
    for key, served in (("rollback", True), ("refused", False)):
        if last := next((f for f in model.failed if f.served == served), None):
            about[key] = _event(last)
    return about


def _figures(gate: Gate) -> dict[str, Any]:
    return {"cases": gate.cases, "latency_ms": gate.latency_ms, "memory_mb": gate.memory_mb}


def _event(failed: Failed) -> dict[str, Any]:
    return {"release": failed.release, "reason": failed.reason, "at": failed.at}

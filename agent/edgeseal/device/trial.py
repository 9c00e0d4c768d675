"""A switch to another release: probe, run in the shadow, hand over, watch, then keep it or give the one before back.

Every step is in the journal (edgeseal.device.state.Trial) before it is taken, so that a kill or a power cut in any of
them is resumed or undone by `resume`, at the start of the next pass and without a network. What the release before
needs to serve stays in memory until the new one is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeseal.device import notes, shadow, watch
from edgeseal.device.state import Counts, Gate, Installed, Model, Trial
from edgeseal.errors import EdgesealError, IncompatibleError, RefusedError
from edgeseal.manifest import Manifest
from edgeseal.runtime import vectors
from edgeseal.runtime.contract import ActivationError, Candidate, WatchError
from edgeseal.runtime.serve_status import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgeseal.device.agent import Agent
    from edgeseal.runtime.contract import Adapter, Health

MAX_INTERRUPTED: Final = 3  # kills and power cuts on one release before it is held to be their cause
_CANNOT: Final = (EdgesealError, OSError)
_CONDEMNS: Final = (RefusedError, IncompatibleError, ActivationError)
_GONE_SECONDS: Final = 120.0  # how long a runtime may be away while its release is watched


def run(agent: Agent, manifest: Manifest, data: bytes, unpack: Callable[[], Candidate]) -> None:
    """Take a release from its encrypted chunks to service; `data` is its signed manifest.

    Raises the error of the step that refused it. Then the release before serves, and this one is not tried again
    until its bytes or the policy change.
    """
    trial = _begin(agent, manifest, data)
    try:
        candidate = unpack()
    except _CANNOT:
        _end(agent, manifest.model)
        raise
    try:
        trial = _probe(agent, candidate, trial)
        trial = _shadow(agent, candidate, trial)
        trial = _switch(agent, candidate, trial)
        watched = _watch(agent, candidate, trial)
    except _CANNOT as e:
        _give_back(agent, candidate, trial, e if isinstance(e, _CONDEMNS) else None)
        raise
    _keep(agent, candidate, trial, watched)


def resume(agent: Agent, name: str) -> None:
    """Bring a switch to its end that a kill or a power cut left open. Needs no network.

    Raises WatchError if the release turned bad meanwhile (the one before is given back), or what the runtime said.
    """
    trial = agent.state().model(name).trial
    if trial is None or trial.step == "interrupted":
        return
    candidate = _candidate(agent, name, trial)
    if trial.step == "committing":
        if agent.models.current(name) == trial.release:
            agent.adapter().commit(candidate)
        _end(agent, name)
    elif trial.step == "undoing":
        agent.adapter().rollback(candidate)
        _end(agent, name)
    elif trial.step == "watching" and trial.boot == boot_id() and agent.models.current(name) == trial.release:
        agent.say(f"{name} release {trial.release}: its watch goes on")
        try:
            watched = _watch(agent, candidate, trial)
        except _CANNOT as e:
            _give_back(agent, candidate, trial, e if isinstance(e, _CONDEMNS) else None)
            raise
        _keep(agent, candidate, trial, watched)
    else:
        _undo_interrupted(agent, candidate, trial)


def abandon(agent: Agent, name: str, reason: str) -> bool:
    """End an open switch on somebody's word; return whether there was one that had begun."""
    trial = agent.state().model(name).trial
    if trial is None or trial.step in {"interrupted", "committing"}:
        return False
    _give_back(agent, _candidate(agent, name, trial), trial, WatchError(reason), policy=b"")
    return True


# Steps ---------------------------------------------------------------------------------------------------------------


def _begin(agent: Agent, manifest: Manifest, data: bytes) -> Trial:
    before = agent.state().model(manifest.model).trial
    attempts = before.attempts if before is not None and before.manifest == data else 0
    previous = agent.models.current(manifest.model)
    trial = Trial(manifest.release, data, "probing", attempts, int(agent.clock()), boot_id(), previous)
    return _set(agent, manifest.model, trial)


def _probe(agent: Agent, candidate: Candidate, trial: Trial) -> Trial:
    adapter = agent.adapter()
    adapter.prepare(candidate)
    agent.say(f"{candidate.model} release {candidate.release}: probing")
    gate = _gate(adapter.probe(candidate), int(agent.clock()))
    if gate is not None:
        agent.say(f"{candidate.model} release {candidate.release}: passed the gate ({gate.text()})")
    tests = vectors.parse(candidate.tests)
    return msgspec.structs.replace(trial, gate=gate, budget_ms=tests.latency_ms if tests else 0.0)


def _shadow(agent: Agent, candidate: Candidate, trial: Trial) -> Trial:
    """Let it run copies of live requests, where that is wanted and possible. Raises ShadowError."""
    if not agent.config.runtime.shadow_seconds:
        return trial
    trial = _set(agent, candidate.model, _stepped(agent, trial, "shadowing"))
    try:
        found = shadow.run(agent, candidate, trial.previous)
    finally:
        agent.models.unshadow(candidate.model)
    agent.say(f"{candidate.model} release {candidate.release}: {found.text()}")
    return msgspec.structs.replace(trial, shadow=found)


def _switch(agent: Agent, candidate: Candidate, trial: Trial) -> Trial:
    """Hand over and wait until the runtime serves it, if it says what it serves."""
    adapter = agent.adapter()
    health = _before(agent, adapter, candidate)
    trial = _set(agent, candidate.model, _stepped(agent, trial, "switching", counts=_counts(health)))
    adapter.activate(candidate)
    if health is None:
        return trial  # nobody to ask: an owner's runtime, or none is running yet
    seconds = agent.config.runtime.activate_seconds
    watch.await_serving(adapter, candidate, seconds=seconds, since=trial.since, counts=trial.counts)
    return _set(agent, candidate.model, _stepped(agent, trial, "watching"))


def _before(agent: Agent, adapter: Adapter, candidate: Candidate) -> Health | None:
    """Return the health before the switch. A runtime that was there is waited for: without it nobody would watch."""
    health = adapter.health(candidate.model, candidate.release)
    current = agent.state().model(candidate.model).current
    if health is None and (adapter.was_here() or (current is not None and current.watched)):
        agent.say(f"{candidate.model} release {candidate.release}: waits for the runtime, which is away")
        health = watch.await_runtime(lambda: adapter.health(candidate.model, candidate.release))
    if health is None and adapter.name != "none" and agent.config.runtime.watch_seconds:
        agent.say(f"{candidate.model} release {candidate.release}: nobody says how it does; it is not watched")
    return health


def _watch(agent: Agent, candidate: Candidate, trial: Trial) -> int:
    """Return for how many seconds the release has been watched. Raises WatchError."""
    settings, adapter = agent.config.runtime, agent.adapter()
    if trial.step != "watching" or not settings.watch_seconds:
        return 0
    notes.leave(agent, candidate.model)
    left = settings.watch_seconds - max(0.0, agent.clock() - trial.since)
    known = adapter.health(candidate.model, trial.previous) if trial.previous is not None else None
    limits = watch.Limits(settings.watch_error_rate, trial.budget_ms, watch.error_rate(known))
    agent.say(f"{candidate.model} release {candidate.release}: serves on trial for {settings.watch_seconds} s")
    try:
        watch.watch(
            lambda: adapter.health(candidate.model, candidate.release),
            trial.counts,
            limits,
            seconds=max(0.0, left),
            patience=_GONE_SECONDS,
        )
    except WatchError as e:
        raise WatchError(
            f"{candidate.model} release {candidate.release} turned bad after the switch: {e.message}",
            hint="the release before serves again",
        ) from None
    return settings.watch_seconds


def _keep(agent: Agent, candidate: Candidate, trial: Trial, watched: int) -> None:
    """Remember it as the one that serves, then let go of what rollback would have needed."""
    state = agent.state()
    model = state.model(candidate.model)
    same = model.current is not None and model.current.release == trial.release
    new = Model(
        current=Installed(trial.release, trial.manifest, int(agent.clock()), trial.gate, watched, trial.shadow),
        previous=model.previous if same else model.current,
        failed=[f for f in model.failed if f.release != trial.release],
        floor=max(model.floor, trial.release),
        trial=_stepped(agent, trial, "committing"),
    )
    agent.state_file.write(msgspec.structs.replace(state.with_model(candidate.model, new), report_due=True))
    agent.adapter().commit(candidate)
    _end(agent, candidate.model)
    notes.leave(agent, candidate.model)
    agent.say(f"{candidate.model} release {trial.release}: active")


def _give_back(
    agent: Agent, candidate: Candidate, trial: Trial, cause: EdgesealError | None, *, policy: bytes | None = None
) -> None:
    """Write down why, then let the release before serve again. A card that cannot be written stops neither.

    `cause` None: no fault of the release, it may be tried again.
    """
    state = agent.state()
    model = msgspec.structs.replace(state.model(candidate.model), trial=_stepped(agent, trial, "undoing"))
    if cause is not None:
        under = agent.policy if policy is None else policy
        served = trial.step == "watching"
        model = model.with_failure(
            trial.release, trial.manifest, cause.message, policy=under, at=int(agent.clock()), served=served
        )
        agent.say(f"{candidate.model} release {trial.release}: {'rolled back' if served else 'refused'}")
    new = msgspec.structs.replace(state.with_model(candidate.model, model), report_due=state.report_due or bool(cause))
    try:
        agent.state_file.write(new)
    except _CANNOT as e:
        agent.say(f"why {candidate.model} release {trial.release} goes cannot be written down: {e}")
    notes.leave(agent, candidate.model, model)
    try:
        agent.models.unshadow(candidate.model)
        agent.adapter().rollback(candidate)
        _end(agent, candidate.model)
    except _CANNOT as e:
        agent.say(f"rollback: {e}; the next pass tries again")


def _undo_interrupted(agent: Agent, candidate: Candidate, trial: Trial) -> None:
    """Give the release before back; one that was cut off again and again is held to be the cause."""
    attempts = trial.attempts + 1
    if attempts >= MAX_INTERRUPTED:
        times = f"the device or its agent ended {attempts} times while it was on trial (step {trial.step})"
        _give_back(agent, candidate, trial, WatchError(f"{candidate.model} release {trial.release}: {times}"))
        return
    agent.say(f"{candidate.model} release {trial.release}: cut off while {trial.step}; undone")
    agent.models.unshadow(candidate.model)
    agent.adapter().rollback(candidate)
    _set(agent, candidate.model, msgspec.structs.replace(trial, step="interrupted", attempts=attempts))


# The journal ---------------------------------------------------------------------------------------------------------


def _set(agent: Agent, name: str, trial: Trial) -> Trial:
    """Make `trial` durable as the journal of a model and return it."""
    _write(agent, name, trial)
    return trial


def _end(agent: Agent, name: str) -> None:
    """Close the journal of a model: no switch is open."""
    _write(agent, name, None)


def _write(agent: Agent, name: str, trial: Trial | None) -> None:
    state = agent.state()
    agent.state_file.write(state.with_model(name, msgspec.structs.replace(state.model(name), trial=trial)))


def _stepped(agent: Agent, trial: Trial, step: str, **more: object) -> Trial:
    return msgspec.structs.replace(trial, step=step, since=int(agent.clock()), **more)


def _candidate(agent: Agent, name: str, trial: Trial) -> Candidate:
    manifest = Manifest.from_bytes(trial.manifest)
    return Candidate(name, trial.release, agent.models.path(name, trial.release), trial.previous, manifest.requirements)


def _counts(health: Health | None) -> Counts | None:
    if health is None:
        return None
    return Counts(health.instance, health.requests, health.errors, health.nan, health.crashes)


def _gate(found: Mapping[str, Any] | None, at: int) -> Gate | None:
    """Return what a probe measured as the state keeps it."""
    if found is None:
        return None
    confined = found.get("confined", {})
    latency = found.get("latency_ms")
    return Gate(
        at=at,
        cases=int(found.get("cases", 0)),
        load_ms=float(found.get("load_seconds", 0.0)) * 1000,
        latency_ms=None if latency is None else float(latency),
        memory_mb=float(found.get("memory_mb", 0.0)),
        open=sorted(name for name, closed in confined.items() if not closed),
    )

"""One update pass: restore, refresh metadata, talk to the fleet if there is reason to, install what it assigned.

A pass is a short-lived process of its own (docs/decisions/0004). What fails in it is reported and tried again; what is
installed keeps being served whatever metadata, network or fleet server do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from edgeseal.device import exchange, recover, releases, rng_health
from edgeseal.errors import EdgesealError, NotAuthorisedError, RefusedError

if TYPE_CHECKING:
    from edgeseal.checkin import Assignment, Orders
    from edgeseal.device.agent import Agent
    from edgeseal.device.releases import Outcome
    from edgeseal.trust import Trust

REPORT_SECONDS = 3600  # between reports, unless the fleet says otherwise


@dataclass
class Pass:
    """What a pass did. `errors` are in the order they came; the first one gives the exit code."""

    refreshed: bool = False
    checked_in: bool = False
    installed: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    errors: list[EdgesealError] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Shape of `update --json`."""
        return {
            "refreshed": self.refreshed,
            "checked_in": self.checked_in,
            "installed": [
                {
                    "model": o.model,
                    "release": o.release,
                    "bytes_fetched": o.bytes_fetched,
                    "bytes_reused": o.bytes_reused,
                    "stored_size": o.stored_size,
                }
                for o in self.installed
            ],
            "problems": self.problems,
            "errors": [e.as_dict() for e in self.errors],
        }


def run(agent: Agent, *, report: bool = False) -> Pass:
    """Do one pass; `report` makes it talk to the fleet server in any case. The caller holds the agent's lock.

    Raises only what makes a pass impossible (not enrolled, damaged identity); everything else is in the result.
    """
    done = Pass()
    _ = agent.profile  # not enrolled: say so first
    rebuilt = recover.rebuild(agent)
    done.problems = rebuilt + _restore(agent)
    for problem in done.problems:
        agent.say(problem)
    trust = agent.trust(agent.metadata_source())
    try:
        _refresh(agent, trust, done)
    except EdgesealError as e:
        done.errors.append(e)
        _tell(agent, trust, done, report=report)
    else:
        _work(agent, trust, done, report=report)
    if rebuilt and done.errors:  # the fleet could not say what is to serve
        installed, errors = recover.serve_again(agent)
        done.installed += installed
        done.errors += errors
    _note_error(agent, done)
    return done


def _restore(agent: Agent) -> list[str]:
    """Bring back what served; a card that fails here or there is a problem to tell, not the end of the pass."""
    problems = []
    try:
        agent.store.sweep()
    except OSError as e:
        problems.append(f"what a killed pass left cannot be cleared: {e}")
    return problems + releases.restore(agent)


def _work(agent: Agent, trust: Trust, done: Pass, *, report: bool) -> None:
    """Talk to the fleet if there is reason to: under metadata that were accepted just now."""
    try:
        if report or done.problems or _due(agent, trust, done):  # what cannot be restored is fetched again
            _follow_orders(agent, trust, done)
    except EdgesealError as e:
        done.errors.append(e)


def _tell(agent: Agent, trust: Trust, done: Pass, *, report: bool) -> None:
    """Tell the fleet that this device refuses the metadata it is served: once for each reason, then as often as ever.

    Without this an expired timestamp or a tampering mirror would look to the fleet like a device that is switched off.
    Nothing is accepted in this state (exchange.report_only). A mirror that cannot be reached is told when a report is
    due anyway: as a rule the fleet server cannot be reached then either.
    """
    refused = isinstance(done.errors[0], RefusedError)
    news = refused and exchange.problem_key(_problem(done)) != agent.state().told
    if not (report or news or _report_interval_over(agent)):
        return
    try:
        exchange.report_only(agent, trust, _problem(done))
    except EdgesealError as e:
        done.errors.append(e)


def _problem(done: Pass) -> str:
    """Return what the fleet should know of this pass so far."""
    return done.errors[0].message if done.errors else (done.problems[0] if done.problems else "")


def _refresh(agent: Agent, trust: Trust, done: Pass) -> None:
    result = trust.refresh()
    done.refreshed = result.changed
    done.errors += result.refused.values()
    agent.state_file.write(
        msgspec.structs.replace(agent.state(), refreshed_at=int(agent.clock()))
    ) if result.changed else None


def _due(agent: Agent, trust: Trust, done: Pass) -> bool:
    """Whether there is something to tell, or new metadata, or the fleet has not heard of this device for long.

    New is what no pass has finished with: a pass may be killed between its refresh and its last install.
    """
    state = agent.state()
    news = exchange.problem_key(_problem(done)) != state.told
    return (
        news
        or trust.versions().get("timestamp", 0) != state.settled
        or state.report_due
        or rng_health.failed(rng_health.sources(agent)) != state.sources_failed
        or _report_interval_over(agent)
    )


def _report_interval_over(agent: Agent) -> bool:
    state = agent.state()
    seconds = agent.config.fleet.report_seconds or state.report_seconds or REPORT_SECONDS
    since = agent.clock() - state.checked_in_at
    return since >= seconds or since < 0  # the clock went back: ask again


def _follow_orders(agent: Agent, trust: Trust, done: Pass) -> None:
    """Report, install what is assigned, report again if that changed something."""
    problem = _problem(done)
    orders = exchange.check_in(agent, trust, problem)
    done.checked_in = True
    _install_all(agent, trust, orders, done)
    if agent.state().report_due:
        exchange.check_in(agent, trust, problem)
    if not done.errors:
        releases.collect(agent)
        exchange.sweep_targets(agent, trust, [a.path for a in orders.assignments])
        _settle(agent, trust)


def _settle(agent: Agent, trust: Trust) -> None:
    state, version = agent.state(), trust.versions().get("timestamp", 0)
    if state.settled != version:
        agent.state_file.write(msgspec.structs.replace(state, settled=version))


def _install_all(agent: Agent, trust: Trust, orders: Orders, done: Pass) -> None:
    """Install every assigned release; one model's failure does not stop the others."""
    for assignment in orders.assignments:
        try:
            outcome = _install(agent, trust, assignment)
        except EdgesealError as e:
            done.errors.append(e)
        else:
            done.installed += [outcome] if outcome else []


def _install(agent: Agent, trust: Trust, assignment: Assignment) -> Outcome | None:
    """Install one assignment unless it runs already or has failed here before.

    The fleet server only chooses: path, hash and length must be what the signed metadata list.
    """
    model = agent.state().model(assignment.model)
    running = agent.models.current(assignment.model)  # not what the state says: a damaged card restores nothing
    if model.current and model.current.release == assignment.release == running:
        return None
    info = trust.target(assignment.path)
    if info is None:
        raise NotAuthorisedError(f"the fleet assigned {assignment.path}, which the repository does not list")
    if (info.sha256, info.length) != (assignment.sha256, assignment.length):
        raise RefusedError(f"the fleet assigned {assignment.path} with another hash than the signed one")
    data = exchange.cached_target(agent, trust, assignment.path)
    manifest = releases.check_listed(agent, info, data)
    if (manifest.model, manifest.release) != (assignment.model, assignment.release):
        raise RefusedError(f"{assignment.path} is not the manifest of {assignment.model} release {assignment.release}")
    if failed := model.has_failed(data, agent.policy):
        agent.say(f"{manifest.model} release {manifest.release} failed here before ({failed.reason}); not tried again")
        return None
    return releases.install_release(agent, manifest, data, objects=agent.objects())


def _note_error(agent: Agent, done: Pass) -> None:
    """Keep the last error for `status`; written only when it changes, a card wears out.

    An assignment that could not be installed is asked for again by the next pass, not only when metadata change.
    """
    state = agent.state()
    due = state.report_due or bool(done.errors and done.checked_in)
    text = str(done.errors[0])[:400] if done.errors else (done.problems[0][:400] if done.problems else "")
    if (text, due) != (state.last_error, state.report_due):
        agent.state_file.write(msgspec.structs.replace(state, last_error=text, report_due=due))

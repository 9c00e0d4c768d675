"""Before a switch: the new release runs copies of live requests beside the old one, which alone answers.

What edgeseal-serve measures decides here whether the switch takes place. A release is refused for values that are not
numbers, for a process that ended again and again, for requests that only the old release could answer, and for answers
that differ more often than the configuration allows. Where nothing can be measured (no edgeseal-serve, memory for one
release only, nobody asks) the switch goes on and says so: the gate before and the watch after it do not need this.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.device.state import Shadowed
from edgeseal.errors import RefusedError
from edgeseal.runtime.shadow import Order, Shadow, new_id

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent
    from edgeseal.device.config import Runtime
    from edgeseal.runtime.contract import Candidate
    from edgeseal.runtime.serve_status import ShadowStatus

CRASHES: Final = 2  # one may be the kernel's or a person's doing
LEAST_REQUESTS: Final = 20  # a part of fewer is no part
MANY_REQUESTS: Final = 100  # with three times what may differ among them the end is not waited for
_HOPELESS: Final = 3
NOTICE_SECONDS: Final = 10.0  # an edgeseal-serve that runs has seen the order long before
END_SECONDS: Final = 10.0  # for the process in the shadow to be gone, and its memory with it
LOOK_SECONDS: Final = 0.25
_SHOWN: Final = 8  # outputs that are kept of a release


class ShadowError(RefusedError):
    """The release did not answer live requests as the one that serves does; it must not take over."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The part of answers that may differ, and the part that may fail."""

    divergence: float
    error_rate: float


def run(agent: Agent, candidate: Candidate, previous: int | None) -> Shadowed:
    """Return what was measured, or why nothing could be. Raises ShadowError for a release that must not take over.

    The caller takes the order back (ModelRepository.unshadow) whatever happens.
    """
    settings = agent.config.runtime
    if settings.adapter != "serve":
        return Shadowed(skipped=f"the adapter {settings.adapter} cannot copy requests, edgeseal-serve can")
    if previous is None or previous == candidate.release:
        return Shadowed(skipped="no other release serves")
    shadow = Shadow(agent.models, settings.status_file, candidate.model, candidate.release, _order(settings))
    seconds = settings.shadow_seconds
    agent.say(f"{candidate.model} release {candidate.release}: runs copies of live requests for {seconds} s")
    shadow.begin()
    try:
        found = observe(shadow, settings)
    except ShadowError as e:
        raise ShadowError(
            f"{candidate.model} release {candidate.release} was refused in the shadow of release {previous}: "
            f"{e.message}",
            hint="the release before goes on; it has answered every request",
        ) from None
    finally:
        _end(shadow)
    return found


def observe(shadow: Shadow, settings: Runtime) -> Shadowed:
    """Follow the order to its end. Raises ShadowError with the reason."""
    limits = Limits(settings.shadow_divergence, settings.watch_error_rate)
    found = _await_running(shadow, float(settings.activate_seconds))
    if isinstance(found, str):
        return Shadowed(skipped=found)
    ends = time.monotonic() + settings.shadow_seconds
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(LOOK_SECONDS, left))
        found = shadow.look() or found  # an edgeseal-serve that has gone leaves what it said last
        if reason := condemned(found, limits):
            raise ShadowError(reason)
        if found.state in {"skipped", "failed"}:
            break
    if reason := judge(found, limits):
        raise ShadowError(reason)
    return result(found, settings.shadow_seconds)


def condemned(found: ShadowStatus, limits: Limits) -> str | None:
    """Return what no number of further answers could make good, None if there is nothing."""
    figures = found.figures
    if found.state == "failed":
        return f"it does not run beside it: {found.reason}"
    if figures.nan:
        return f"{figures.nan} of {figures.compared} answers hold values that are not numbers"
    if found.crashes >= CRASHES:
        return f"{found.crashes} crashes while it ran live requests, the last: {found.reason}"
    if figures.errors > limits.error_rate * max(figures.tried, LEAST_REQUESTS):
        return f"{figures.errors} of {figures.tried} requests that the old release answered failed: {figures.error}"
    if figures.compared >= MANY_REQUESTS and figures.differing > _HOPELESS * limits.divergence * figures.compared:
        return _differ(found, limits)
    return None


def judge(found: ShadowStatus, limits: Limits) -> str | None:
    """Return why the release must not take over now that the time is over, None if it may."""
    figures = found.figures
    if reason := condemned(found, limits):
        return reason
    if figures.compared >= LEAST_REQUESTS and figures.differing > limits.divergence * figures.compared:
        return _differ(found, limits)
    return None


def result(found: ShadowStatus, seconds: int) -> Shadowed:
    """Return what is kept of a release that may take over."""
    figures = found.figures
    if figures.tried < LEAST_REQUESTS:
        why = found.reason if found.state == "skipped" else f"{figures.tried} requests in {seconds} s are too few"
        return Shadowed(skipped=why)
    outputs = [
        (name[:128], o.mean_relative, o.max_relative, o.top1) for name, o in sorted(figures.outputs.items())[:_SHOWN]
    ]
    return Shadowed(
        seconds,
        figures.compared,
        figures.differing,
        figures.errors,
        found.dropped,
        found.crashes,
        figures.latency_ratio(),
        outputs,
    )


def _await_running(shadow: Shadow, seconds: float) -> ShadowStatus | str:
    """Wait until requests are copied; return why none will be instead. Raises ShadowError if it does not load."""
    started = time.monotonic()
    while True:
        found, spent = shadow.look(), time.monotonic() - started
        if found is None and spent > NOTICE_SECONDS:
            return "no edgeseal-serve follows the order"
        if found is not None:
            if found.state == "running":
                return found
            if found.state == "skipped":
                return found.reason
            if found.state == "failed" or found.crashes >= CRASHES:
                raise ShadowError(f"it does not load beside it: {found.reason}")
            if spent > seconds:
                return f"it was still {found.state} after {seconds:.0f} s"
        time.sleep(LOOK_SECONDS)


def _order(settings: Runtime) -> Order:
    return Order(
        id=new_id(),
        fraction=settings.shadow_fraction,
        seconds=settings.shadow_seconds,
        compare=settings.shadow_compare,
        tolerance=settings.shadow_tolerance,
        memory_mb=settings.probe_memory_mb,
    )


def _end(shadow: Shadow) -> None:
    """Take the order back and wait until its process is gone: the switch is planned by the memory that is free."""
    shadow.end()
    ends = time.monotonic() + END_SECONDS
    while shadow.look() is not None and time.monotonic() < ends:
        time.sleep(LOOK_SECONDS)


def _differ(found: ShadowStatus, limits: Limits) -> str:
    """Return in words how many answers differ, and the output that is furthest off on average."""
    figures, outputs = found.figures, found.figures.outputs
    count = f"{figures.differing} of {figures.compared} answers differ from its own; {limits.divergence:.1%} may"
    if not outputs:
        return count
    name = max(outputs, key=lambda n: outputs[n].mean_relative)
    o = outputs[name]
    classes = f", {o.top1:.1%} of its classes agree" if o.top1 is not None else ""
    return (
        f"{count} (output {name!r} is off by {o.mean_relative:.2%} on average, {o.max_relative:.2%} at most{classes})"
    )

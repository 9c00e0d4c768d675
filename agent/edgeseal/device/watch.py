"""The watch period after a switch: what the runtime counts of the new release decides whether it stays.

Nothing here needs the network. A release is condemned for what it did itself: answers that failed beyond the rate of
the release before, values that are not numbers, a median over its own budget, a worker that ended again and again, or
no service at all. A runtime that is gone as a whole condemns nobody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgeseal.errors import TemporaryError
from edgeseal.runtime.contract import ActivationError, Health, WatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.device.state import Counts
    from edgeseal.runtime.contract import Adapter, Candidate

LOOK_SECONDS: Final = 0.5
DOWN_SECONDS: Final = 20.0  # not serving for this long is no hiccup; a crashed worker is back within ten
BACK_SECONDS: Final = 20.0  # systemd waits for two before it starts a service again; a model takes the rest
CRASHES: Final = 2  # one may be the kernel's or a person's doing
LEAST_REQUESTS: Final = 20  # a rate of fewer is no rate
ALL_FAILED: Final = 5  # of fewer than that, unless not one was answered: slow failures are few
_SKEW: Final = 2  # seconds between two roundings of the same clock


@dataclass(frozen=True, slots=True)
class Limits:
    """What the watch allows: part of answers that may fail beyond `known_rate`, median in ms (0: no budget)."""

    error_rate: float
    budget_ms: float = 0.0
    known_rate: float = 0.0


def await_runtime(look: Callable[[], Health | None]) -> Health | None:
    """Return the health once there is one: a runtime that is starting again is back within a few seconds.

    None if it stays away: then nobody can watch, and a release that may be the cure is not held up for longer.
    """
    ends = time.monotonic() + BACK_SECONDS
    while (health := look()) is None and time.monotonic() < ends:
        time.sleep(min(LOOK_SECONDS, 0.1))
    return health


def await_serving(
    adapter: Adapter, candidate: Candidate, *, seconds: float, since: float, counts: Counts | None = None
) -> Health:
    """Wait until the runtime serves the candidate, or would with the next request; `since` is when it was told (Unix).

    `counts` are from before that. Raises ActivationError with the runtime's reason, or if it does not happen in time,
    or if the runtime ends again and again: a release that dies of its first request may never be seen serving.
    """
    what = f"{candidate.model} release {candidate.release}"
    ends = time.monotonic() + seconds
    while True:
        health = adapter.health(candidate.model, candidate.release)
        if health is not None:
            if health.failed and health.failed_at >= since - _SKEW:
                raise ActivationError(f"{what} was not taken over: {health.failed}")
            if health.serving or health.asleep:
                return health
            if (crashes := _since(health, counts)[3]) >= CRASHES:
                raise ActivationError(f"{what} was not taken over: the runtime ended {crashes} times with it")
        if time.monotonic() > ends:
            how = "the runtime is gone" if health is None else "the runtime does not serve it"
            raise ActivationError(f"{what} was not taken over within {seconds:.0f} s: {how}")
        time.sleep(min(LOOK_SECONDS, 0.1))


def watch(
    look: Callable[[], Health | None], counts: Counts | None, limits: Limits, *, seconds: float, patience: float
) -> None:
    """Watch for `seconds` in which it serves; `look` asks for the health, `counts` are from before the switch.

    Raises WatchError with the reason. TemporaryError if the runtime is gone for `patience` seconds: no fault of it.
    """
    ends = time.monotonic() + seconds
    seen = good = looked = time.monotonic()
    while True:
        health, now = look(), time.monotonic()
        if health is not None:
            seen = now
            if reason := judge(health, counts, limits):
                raise WatchError(reason)
            if health.serving or health.asleep:
                good = now
        ends += 0.0 if good == now else now - looked  # what does not serve is not watched
        looked = now
        if health is None and now - seen > patience:
            raise TemporaryError("the runtime has gone while a release was watched")
        if health is not None and now - good > DOWN_SECONDS:
            raise WatchError(f"it has not served for {DOWN_SECONDS:.0f} s")
        if now >= ends and good == now:
            return
        time.sleep(max(0.0, min(LOOK_SECONDS, ends - now)) or LOOK_SECONDS)


def judge(health: Health, counts: Counts | None, limits: Limits) -> str | None:
    """Return why the release must go, None while nothing speaks against it."""
    if health.failed:
        return f"it does not load any more: {health.failed}"
    requests, errors, nan, crashes = _since(health, counts)
    if crashes >= CRASHES:
        return f"the runtime ended {crashes} times while it served"
    allowed = limits.error_rate + limits.known_rate
    if requests >= LEAST_REQUESTS or ALL_FAILED <= requests <= errors:
        for n, words in ((nan, "hold values that are not numbers"), (errors, "failed")):
            if n > allowed * requests:
                return f"{n} of {requests} answers {words}; {allowed:.1%} are allowed"
    slow = limits.budget_ms and health.median_ms is not None and health.median_ms > limits.budget_ms
    if slow and requests >= LEAST_REQUESTS:
        return f"an answer takes {health.median_ms:g} ms or more (median); its budget is {limits.budget_ms:g}"
    return None


def error_rate(health: Health | None) -> float:
    """Return the part of a release's answers that failed; 0 where there are too few to say."""
    if health is None or health.requests < LEAST_REQUESTS:
        return 0.0
    return min(1.0, health.errors / health.requests)


def _since(health: Health, counts: Counts | None) -> tuple[int, int, int, int]:
    """Return requests, errors, NaN and crashes since the switch; a runtime that started anew counts from zero."""
    now = (health.requests, health.errors, health.nan, health.crashes)
    if counts is None or counts.instance != health.instance:
        return now
    then = (counts.requests, counts.errors, counts.nan, counts.crashes)
    if any(n < t for n, t in zip(now, then, strict=True)):
        return now
    return (now[0] - then[0], now[1] - then[1], now[2] - then[2], now[3] - then[3])

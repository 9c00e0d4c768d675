"""What the gate costs those who ask meanwhile: a release is tried again and again beside one that serves under load.

A quiet stretch goes before each try, as in `swap`; ratios are of one run.
"""

from __future__ import annotations

import time
from typing import Final

from tests.bench.swap import QUIET_SECONDS, WARM_SECONDS, Span, finish_load, p99, start_load
from tests.bench.swap_load import MODEL
from tests.unit import runtime_world as world

from edgeseal.runtime.probe import Limits, probe

TRIES: Final = 60
_LIMITS: Final = Limits(seconds=60, memory_mb=512)


def measure(tries: int = TRIES) -> dict[str, object]:
    """Return failed requests, p99 in ms of quiet stretches and of tries, their ratio, and how long a try takes."""
    with world.repository() as models:
        world.publish(models, MODEL, 1, 1.0)
        models.switch(MODEL, 1)
        candidate = world.publish(models, MODEL, 2, 2.0)
        with world.serving(models) as server:
            load = start_load(server.address)
            time.sleep(WARM_SECONDS)
            quiet, during = list[Span](), list[Span]()
            for _ in range(tries):
                quiet.append((time.monotonic(), time.monotonic() + QUIET_SECONDS))
                time.sleep(QUIET_SECONDS)
                start = time.monotonic()
                probe(candidate, _LIMITS)
                during.append((start, time.monotonic()))
            answers = finish_load(load)
    before, meanwhile = p99(answers, quiet), p99(answers, during)
    return {
        "tries": tries,
        "try_seconds": round(sum(end - start for start, end in during) / tries, 3),
        "failed": sum(bool(wrong) for _, _, wrong in answers),
        "p99_quiet_ms": before,
        "p99_during_ms": meanwhile,
        "p99_ratio": round(meanwhile / before, 3),
    }

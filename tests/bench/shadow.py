"""What a release in the shadow costs those who ask: quiet stretches and some with a shadow in turn, under one load.

`healthy` answers at once, `hanging` never does. The copies are of a tenth of the requests, the default, and of all.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tests.bench.swap import WARM_SECONDS, Span, finish_load, p99, start_load
from tests.bench.swap_load import MODEL
from tests.unit import runtime_world as world
from tests.unit.onnx_models import endless
from tests.unit.shadow_world import order

from edgeseal.runtime.shadow import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.runtime.repository import ModelRepository

TURNS: Final = 5
STRETCH_SECONDS: Final = 2.0
_PATIENCE: Final = 200.0
_WRITERS: Final[dict[str, Callable[[Path], object]]] = {
    "healthy": lambda path: world.affine(path, 1.0),
    "hanging": endless,
}


def measure(turns: int = TURNS) -> dict[str, object]:
    """Return failed requests, p99 in ms quiet and with a shadow, their ratio, copies and what was compared of them."""
    numbers: dict[str, object] = {}
    for name, writer in _WRITERS.items():
        for part in (0.1, 1.0):
            found = _measure(writer, part, turns)
            numbers |= {f"{name}_{part:.0%}_{key}".replace("%", ""): value for key, value in found.items()}
    return numbers


def _measure(writer: Callable[[Path], object], part: float, turns: int) -> dict[str, object]:
    with world.repository() as models:
        status_file = models.root.parent / "status.json"
        world.publish(models, MODEL, 1, 1.0)
        models.switch(MODEL, 1)
        writer(models.stage(MODEL, 2) / "model.onnx")
        models.publish(MODEL, 2)
        with world.serving(models, "--status-file", str(status_file)) as server:
            load = start_load(server.address)
            time.sleep(WARM_SECONDS)
            quiet, during, copied, compared = list[Span](), list[Span](), 0, 0
            for _ in range(turns):
                quiet.append(_stretch())
                span, counts = _with_shadow(models, status_file, part)
                during.append(span)
                copied, compared = copied + counts[0], compared + counts[1]
            answers = finish_load(load)
    before, meanwhile = p99(answers, quiet), p99(answers, during)
    return {
        "failed": sum(bool(wrong) for _, _, wrong in answers),
        "p99_quiet_ms": before,
        "p99_shadow_ms": meanwhile,
        "p99_ratio": round(meanwhile / before, 3),
        "copied": copied,
        "compared": compared,
    }


def _with_shadow(models: ModelRepository, status_file: Path, part: float) -> tuple[Span, tuple[int, int]]:
    """Run one shadow; return the stretch, and how many requests were copied and compared."""
    shadow = Shadow(models, status_file, MODEL, 2, order(fraction=part))
    shadow.begin()
    world.until(lambda: (s := shadow.look()) is not None and s.state == "running", "copies are taken", _PATIENCE)
    span = _stretch()
    found = shadow.look()
    shadow.end()
    world.until(lambda: shadow.look() is None, "it is gone")
    return span, (found.copied, found.figures.compared) if found is not None else (0, 0)


def _stretch() -> Span:
    start = time.monotonic()
    time.sleep(STRETCH_SECONDS)
    return start, time.monotonic()

"""What a swap costs those who ask meanwhile: 100 releases, each taking over from the one before under a steady load.

A quiet stretch goes before each swap, so that both are measured under the same disturbances of the machine; ratios are
of one run. The memory is that of supervisor and workers once the old worker has ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.swap_load import MODEL, Answer
from tests.unit import runtime_world as world

from edgeseal.runtime import serve_status

if TYPE_CHECKING:
    from edgeseal.runtime.repository import ModelRepository

SWAPS: Final = 100
RATE: Final = 250.0  # requests a second
CLIENTS: Final = 4
WARM_SECONDS: Final = 3.0  # not counted
QUIET_SECONDS: Final = 1.0  # before each swap
_MEMORY: Final = ("Pss", "Pss_Anon")

Span = tuple[float, float]


def measure(swaps: int = SWAPS) -> dict[str, object]:
    """Return failed requests, p99 in ms, memory in MB, and the ratios that matter: during to before, last to first."""
    with world.repository() as models:
        status_file = models.root.parent / "status.json"
        _publish(models, 1)
        with world.serving(models, "--status-file", str(status_file)) as server:
            load = start_load(server.address)
            time.sleep(WARM_SECONDS)
            quiet, during, memory = list[Span](), list[Span](), list[dict[str, float]]()
            for release in range(2, 2 + swaps):
                quiet.append((time.monotonic(), time.monotonic() + QUIET_SECONDS))
                time.sleep(QUIET_SECONDS)
                during.append(_swap(models, server, status_file, release))
                memory.append(_memory(server))
            answers = finish_load(load)
    return _figures(answers, quiet, during, memory)


def _figures(
    answers: list[Answer], quiet: list[Span], during: list[Span], memory: list[dict[str, float]]
) -> dict[str, object]:
    before, meanwhile = p99(answers, quiet), p99(answers, during)
    seconds = answers[-1][0] - answers[0][0]
    return {
        "swaps": len(during),
        "requests": len(answers),
        "requests_per_second": round(len(answers) / seconds, 1),
        "failed": sum(bool(wrong) for _, _, wrong in answers),
        "failed_first": next((wrong for _, _, wrong in answers if wrong), ""),
        "swap_seconds": round(sum(end - start for start, end in during) / len(during), 3),
        "p99_before_ms": before,
        "p99_during_ms": meanwhile,
        "p99_ratio": round(meanwhile / before, 3),
        "slowest_ms": round(1000 * max(spent for _, spent, _ in answers), 1),
        "memory_mb": round(memory[0]["Pss"], 1),
        "memory_ratio": round(memory[-1]["Pss"] / memory[0]["Pss"], 4),
        "memory_anonymous_ratio": round(memory[-1]["Pss_Anon"] / memory[0]["Pss_Anon"], 4),
    }


def p99(answers: list[Answer], spans: list[Span]) -> float:
    """Milliseconds, of the requests that were due within the spans."""
    found = sorted(s for due, s, _ in answers if any(start <= due < end for start, end in spans))
    return round(1000 * found[int(0.99 * len(found))], 2)


def _publish(models: ModelRepository, release: int) -> None:
    world.publish(models, MODEL, release, float(release))
    models.switch(MODEL, release)


def _swap(models: ModelRepository, server: world.Serve, status_file: Path, release: int) -> Span:
    """Publish a release and wait until it serves and the one before it has left."""
    start = time.monotonic()
    _publish(models, release)
    world.until(lambda: _serves(status_file) == release, f"release {release} serves")
    world.until(lambda: len(server.workers()) == 1, "the worker before it has ended")
    models.remove(MODEL, release - 1)
    return start, time.monotonic()


def _serves(status_file: Path) -> int | None:
    found = serve_status.read(status_file)
    return found.models[MODEL].serving if found and MODEL in found.models else None


def _memory(server: world.Serve) -> dict[str, float]:
    """MB of supervisor and workers: proportional share of all pages, and of those that are nobody's file."""
    total = dict.fromkeys(_MEMORY, 0.0)
    for pid in (server.process.pid, *server.workers()):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if name in total:
                total[name] += int(value.split()[0]) / 1000
    return total


def start_load(address: str) -> subprocess.Popen[str]:
    """Begin to ask a server, from a process of its own."""
    words = [sys.executable, "-m", "tests.bench.swap_load", address, str(RATE), str(CLIENTS)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish_load(load: subprocess.Popen[str]) -> list[Answer]:
    """Return what it got."""
    text, _ = load.communicate(timeout=60)
    return [tuple(json.loads(line)) for line in text.splitlines()]

"""What `edgeseal-agent rng assess` costs for a million samples of 8 bits; `quick` is without the predictors."""

from __future__ import annotations

import random
import resource
import time
from typing import Final

from edgeseal.entropy.assess import SAMPLES, assess

_MIB: Final = 1024  # of ru_maxrss, which is in KiB


def measure() -> dict[str, object]:
    """Return CPU seconds, samples a second and the peak of memory that one assessment takes."""
    data = random.Random(1).randbytes(SAMPLES)
    numbers: dict[str, object] = {}
    for name, predictors in (("quick", False), ("whole", True)):
        started = time.process_time()
        found = assess(data, width=8, predictors=predictors)
        seconds = time.process_time() - started
        numbers |= {f"{name}_cpu_s": seconds, f"{name}_samples_per_s": SAMPLES / seconds}
        numbers[f"{name}_peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
        numbers["assessed_bits_of_8"] = found.assessed
    return numbers

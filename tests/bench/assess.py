"""What `edgeseal-agent rng assess` costs: a million samples of 8 bits, with all their bits, in a process of its own."""

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
    started = time.process_time()
    found = assess(data, width=8)
    seconds = time.process_time() - started
    return {
        "million_samples_cpu_s": seconds,
        "samples_per_s": SAMPLES / seconds,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB,
        "assessed_bits_of_8": found.assessed,
    }

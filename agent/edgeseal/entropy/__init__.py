"""Random bytes with a record of where they came from (docs/spec/session.md, "Randomness").

    source    what a hardware source must be able to do, and what it declares about itself
    checks    the tests every block passes before it is mixed
    mixer     OS bytes hardened with fresh blocks of the sources; policies off, mix, require
    hedge     the device's generator: also bound to k_rng, label, counter, time and process
    kernel    feeding the kernel's pool, for the coins no library lets us choose

A source only ever adds: dead, lying or replaying, it leaves exactly the operating system's generator. There is no
silent fallback: what a seed was made of stands in its record, and policy `require` refuses instead of degrading.
"""

from edgeseal.entropy.hedge import Hedged
from edgeseal.entropy.mixer import Drawn, EntropyError, Mixer, Policy
from edgeseal.entropy.source import BLOCK_LENGTH, Profile, Source, SourceError

__all__ = ["BLOCK_LENGTH", "Drawn", "EntropyError", "Hedged", "Mixer", "Policy", "Profile", "Source", "SourceError"]

"""Random bytes with a record of where they came from (docs/spec/session.md, "Randomness").

    source    what a hardware source must be able to do, and what it declares about itself
    checks    the tests every block passes before it is mixed
    mixer     OS bytes hardened with fresh blocks of the sources; policies off, mix, require
    hedge     the device's generator: also bound to k_rng, label, counter, time and process
    kernel    feeding the kernel's pool, for the coins no library lets us choose

    drivers   one file per family of devices; they move samples and judge nothing
    battery   the tests of one device's samples; pace: whether it keeps time; judgement: what a calibration proves
    opened    one open device; monitor: the state machine over it; both without I/O (docs/decisions/0006)
    conditioner, pool, reader    tested samples to blocks, the few that wait, and the thread between device and callers
    records, snapshot, session_log, published    what is remembered, known, said, and told to other processes
    attach, handed    sources from the configuration, and from the service to the process of a pass
    assess    min-entropy estimates of captures

A source only ever adds: dead, lying or replaying, it leaves exactly the operating system's generator. There is no
silent fallback: what a seed was made of stands in its record, and policy `require` refuses instead of degrading.
"""

from edgeseal.entropy.hedge import Hedged
from edgeseal.entropy.mixer import Drawn, Mixer, Policy
from edgeseal.entropy.source import BLOCK_LENGTH, Profile, Source, SourceError
from edgeseal.errors import EntropyError

__all__ = ["BLOCK_LENGTH", "Drawn", "EntropyError", "Hedged", "Mixer", "Policy", "Profile", "Source", "SourceError"]

"""Write signals that a model must go on getting right: the inputs of acceptance vectors.

python -m bearing.samples --out samples.npz --plant second

They are of a stream of their own: neither trained on nor used to measure accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from .ask import PLANTS
from .network import INPUT
from .spectra import features
from .train import signals

ACCEPTANCE: Final = 2  # a stream that never meets training or held-out signals


def main() -> None:
    """Write one case for each signal: an array inputs/<name> whose first axis counts cases."""
    wanted = _arguments()
    drawn = signals(PLANTS[wanted.plant], wanted.count, stream=ACCEPTANCE)
    samples = np.stack([features(signal, conditions.speed_hz) for _, conditions, signal in drawn])
    arrays = {f"inputs/{INPUT}": samples[:, np.newaxis].astype(np.float32)}
    np.savez(wanted.out, allow_pickle=False, **arrays)
    print(f"wrote {wanted.out}: {wanted.count} signals of the {wanted.plant} plant")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bearing.samples", description="Write signals for acceptance.")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")
    parser.add_argument("--plant", choices=list(PLANTS), default="first", help="whose machines (default: %(default)s)")
    parser.add_argument("--count", type=int, default=16, help="how many signals (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()

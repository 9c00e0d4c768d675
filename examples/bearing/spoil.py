"""Spoil a model the way a careless conversion does: it loads, it answers, its shapes are right, and it is wrong.

python -m bearing.spoil model-2.onnx --out model-3.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from . import network as networks
from .signals import CLASSES
from .train import SEED


def main() -> None:
    """Add noise to every weight, as large as the weights themselves, and write the result."""
    wanted = _arguments()
    network = networks.load(wanted.model)
    rng = np.random.default_rng(SEED)
    for weights in network.weights:
        np.add(weights, rng.normal(0, wanted.noise * weights.std(), weights.shape), out=weights, casting="unsafe")
    networks.save(network, wanted.out, classes=CLASSES)
    print(f"wrote {wanted.out}: {wanted.model} with {wanted.noise:.0%} noise on its weights")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bearing.spoil", description="Spoil a bearing model.")
    parser.add_argument("model", type=Path, help="a good model")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--noise", type=float, default=3.0, help="of the weights' own spread (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()

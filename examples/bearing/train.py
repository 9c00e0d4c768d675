"""Train the bearing model, or fit the head of an earlier release to another plant.

    python -m bearing.train --out model-1.onnx
    python -m bearing.train --out model-2.onnx --from model-1.onnx

The second changes the last layer only, so that a device which has the first fetches little. Accuracy is measured on
signals that training never saw. Not here: physics (signals.py), features (spectra.py), the network (network.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # sums in one order: the same bytes each time; read when numpy is imported

import numpy as np  # noqa: E402

from . import network as networks  # noqa: E402
from .signals import CLASSES, FIRST_PLANT, SECOND_PLANT, vibration  # noqa: E402
from .spectra import FEATURES, features  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .network import Floats, Network
    from .signals import Conditions, Signal, Site

HIDDEN: Final = 1024
SEED: Final = 2026
TRAINING, HELD_OUT = 0, 1  # streams of one seed that never meet


def signals(site: Site, count: int, *, stream: int, seed: int = SEED) -> Iterator[tuple[int, Conditions, Signal]]:
    """Yield class number, conditions and vibration of `count` bearings, classes in turn."""
    for i in range(count):
        rng = np.random.default_rng([seed, stream, i])
        conditions = site.draw(rng)
        label = i % len(CLASSES)
        yield label, conditions, vibration(CLASSES[label], conditions, rng)


def dataset(
    site: Site, count: int, *, stream: int, seed: int = SEED, progress: Callable[[int], None] = lambda _n: None
) -> tuple[Floats, NDArray[np.intp]]:
    """Return features and class numbers of `count` bearings."""
    samples, labels = np.empty((count, FEATURES), np.float32), np.empty(count, np.intp)
    for i, (label, conditions, signal) in enumerate(signals(site, count, stream=stream, seed=seed)):
        samples[i], labels[i] = features(signal, conditions.speed_hz), label
        progress(i + 1)
    return samples, labels


def train(samples: Floats, labels: NDArray[np.intp], *, epochs: int, progress: Callable[[int], None]) -> Network:
    """Train a new network."""
    rng = np.random.default_rng(SEED)
    network = networks.Network.new((FEATURES, HIDDEN, HIDDEN, len(CLASSES)), samples, rng)
    networks.Training(network, rng).run(samples, labels, epochs=epochs, progress=progress)
    return network


def fit_head(
    network: Network, samples: Floats, labels: NDArray[np.intp], *, epochs: int, progress: Callable[[int], None]
) -> None:
    """Train the last layer of `network` on; nothing else of it changes."""
    rng = np.random.default_rng(SEED)
    training = networks.Training(network, rng, first_layer=networks.HEAD, rate=2e-3)
    training.run(samples, labels, epochs=epochs, progress=progress)


def accuracy(network: Network, samples: Floats, labels: NDArray[np.intp]) -> float:
    """Return the share of samples that get the right class."""
    return float((network.predict(samples) == labels).mean())


def main() -> None:
    """Make a release and say how good it is."""
    wanted = _arguments()
    started = time.monotonic()
    site = SECOND_PLANT if wanted.earlier else FIRST_PLANT
    held_out = dataset(site, wanted.held_out, stream=HELD_OUT, progress=_Bar("held-out signals", wanted.held_out))
    samples = dataset(site, wanted.signals, stream=TRAINING, progress=_Bar("signals", wanted.signals))
    progress = _Bar("epochs", wanted.epochs)
    if wanted.earlier:
        network = networks.load(wanted.earlier)
        before = accuracy(network, *held_out)
        print(f"accuracy on {wanted.held_out} held-out signals of the second plant, before: {before:.1%}")
        fit_head(network, *samples, epochs=wanted.epochs, progress=progress)
    else:
        network = train(*samples, epochs=wanted.epochs, progress=progress)
    networks.save(network, wanted.out, classes=CLASSES)
    print(f"accuracy on {wanted.held_out} held-out signals: {accuracy(network, *held_out):.1%}")
    size = wanted.out.stat().st_size
    print(f"wrote {wanted.out}: {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s")


class _Bar:
    """Progress on a terminal's standard error; silent elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total

    def __call__(self, done: int) -> None:
        step = max(self._total // 40, 1)
        if sys.stderr.isatty() and (done % step == 0 or done == self._total):
            end = "\r\x1b[K" if done == self._total else ""
            print(f"\r{self._name}: {done} of {self._total}{end}", end="", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bearing.train", description="Train the bearing model.")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--from", dest="earlier", type=Path, help="earlier release: fit its head to the second plant")
    parser.add_argument("--signals", type=int, help="signals to train on (default: 3000; 1000 to fit a head)")
    parser.add_argument("--held-out", type=int, default=800, help="signals to test on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="times each signal is seen (default: %(default)s)")
    wanted = parser.parse_args()
    wanted.signals = wanted.signals or (1_000 if wanted.earlier else 3_000)
    return wanted


if __name__ == "__main__":
    main()

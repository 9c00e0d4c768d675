"""The three pictures of docs/qrng-model.md, drawn from the model's numbers.

A picture carries a digest of the data it shows, so that a stale one is found without drawing it again: SVG text
differs between releases of matplotlib, the numbers do not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hw.qrng_stick import noise_model as model
from hw.qrng_stick.values import CLAIMED_MIN_ENTROPY, NOMINAL_CURRENT, SAMPLE_RATE, FrontEnd

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """Curves of one picture: label to (x, y), with its axes."""

    name: str
    x_label: str
    y_label: str
    curves: dict[str, tuple[list[float], list[float]]]
    y_log: bool = False
    marks: tuple[tuple[str, float], ...] = ()
    """Horizontal lines: label and height."""

    @property
    def digest(self) -> str:
        """Identify the data to three significant digits."""
        rounded = {k: [[float(f"{x:.3g}") for x in axis] for axis in pair] for k, pair in self.curves.items()}
        text = json.dumps([self.name, self.x_label, self.y_label, self.marks, rounded], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _points(low: float, high: float, count: int) -> list[float]:
    return [float(x) for x in np.geomspace(low, high, count)]


def spectrum(v: FrontEnd) -> Picture:
    """Noise density at the ADC by origin."""
    f = np.array(_points(100, 5e6, 150))
    shown = {
        "shot noise at 10 uA": model.shot_density(v, NOMINAL_CURRENT, f),
        "all classical noise (LED off)": model.classical_density(v, f),
        **{f"  {name}": d for name, d in model.classical_parts(v, f).items() if name != "ADC resistor"},
    }
    scaled = {name: (f.tolist(), (np.sqrt(density) * 1e6).tolist()) for name, density in shown.items()}
    return Picture("qrng-spectrum", "frequency, Hz", "noise at the ADC, uV/sqrt(Hz)", scaled, y_log=True)


def ratio(v: FrontEnd) -> Picture:
    """QCNR over photocurrent."""
    currents = _points(0.3e-6, 23e-6, 60)
    micro = [i * 1e6 for i in currents]
    curves = {
        "this board": (micro, [model.levels(v, i).qcnr_db for i in currents]),
        "bound: feedback resistor alone": (micro, [model.qcnr_thermal_db(v, i) for i in currents]),
    }
    return Picture("qrng-qcnr", "photocurrent, uA", "QCNR, dB", curves, marks=(("needed at 10 uA", 10.0),))


def entropy(v: FrontEnd) -> Picture:
    """Min-entropy per sample over the sampling rate."""
    rates = _points(5e3, 2e6, 60)
    kilo = [r / 1e3 for r in rates]
    curves = {}
    for current in (2.5e-6, 10e-6, 20e-6):
        sigmas = [model.innovation_sigma(v, current, r) for r in rates]
        curves[f"{current * 1e6:g} uA"] = (kilo, [model.min_entropy(s) for s in sigmas])
        if current == NOMINAL_CURRENT:
            curves["10 uA, codes 10 LSB wide"] = (kilo, [model.min_entropy(s, code_width=10) for s in sigmas])
    marks = ((f"claimed, at {SAMPLE_RATE / 1e3:g} kS/s", CLAIMED_MIN_ENTROPY),)
    return Picture("qrng-min-entropy", "sampling rate, kS/s", "min-entropy, bit per sample", curves, marks=marks)


def pictures(v: FrontEnd) -> list[Picture]:
    """All of them."""
    return [spectrum(v), ratio(v), entropy(v)]


def stale(wanted: list[Picture], folder: Path) -> list[str]:
    """Names of pictures that are missing in `folder` or show other numbers."""
    found = []
    for picture in wanted:
        path = folder / f"{picture.name}.svg"
        if not path.exists() or picture.digest not in path.read_text(encoding="utf-8"):
            found.append(picture.name)
    return found


def draw(picture: Picture, folder: Path) -> None:
    """Write one SVG; needs matplotlib (dependency group hw)."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": picture.name, "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for label, (x, y) in picture.curves.items():
        axes.plot(x, y, linewidth=1.0 if label.startswith("  ") else 1.8, label=label.strip())
    for label, height in picture.marks:
        axes.axhline(height, color="black", linestyle=":", label=label)
    axes.set_xscale("log")
    if picture.y_log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.3)
    axes.set(xlabel=picture.x_label, ylabel=picture.y_label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)
    path = folder / f"{picture.name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None, "Description": f"data {picture.digest}"})
    plt.close(figure)
    text = "\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    path.write_text(text + "\n", encoding="utf-8")

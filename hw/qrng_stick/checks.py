"""What `./dev hw` demands of the design: one named check each, with what was expected and what came."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.qrng_stick import noise_model as model
from hw.qrng_stick import parts, schematic, spice, spread
from hw.qrng_stick.values import (
    CLAIMED_MIN_ENTROPY,
    COUPLING,
    ELEMENTARY_CHARGE,
    LEVELS,
    NOMINAL_CURRENT,
    SAMPLE_RATE,
    FrontEnd,
    led_voltage,
    series,
)

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.05
"""Between ngspice and the closed form."""

RAILS = {"avdd", "vref", "gnd"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    expected: str
    came: str
    ok: bool


def show(results: list[Check]) -> None:
    """Print one line for each check."""
    widths = [
        max(len(text) for text in column) for column in zip(*((c.name, c.expected) for c in results), strict=True)
    ]
    for check in results:
        verdict = "ok  " if check.ok else "FAIL"
        print(f"{verdict}  {check.name:<{widths[0]}}  expected {check.expected:<{widths[1]}}  came {check.came}")


def _within(name: str, came: float, expected: float, unit: str) -> Check:
    share = came / expected - 1 if expected else float(came != expected)
    text = f"{came:.4g} {unit} ({share:+.2%})"
    return Check(name, f"{expected:.4g} {unit} within {TOLERANCE:.0%}", text, abs(share) <= TOLERANCE)


def _least(name: str, came: float, least: float, unit: str) -> Check:
    return Check(name, f"at least {least:g} {unit}", f"{came:.4g} {unit}", came >= least)


def _most(name: str, came: float, most: float, unit: str) -> Check:
    return Check(name, f"at most {most:g} {unit}", f"{came:.4g} {unit}", came <= most)


def simulation(v: FrontEnd) -> list[Check]:
    """Ngspice against the closed form; the calibration's own arithmetic on what ngspice measured."""
    dark, *lit = spice.simulate(v, LEVELS)
    checks = [_within("variance, LED off", dark.noise**2, model.levels(v).classical ** 2, "V^2")]
    for point in lit:
        slope = (point.noise**2 - dark.noise**2) / (2 * ELEMENTARY_CHARGE * point.current)
        checks.append(_within(f"slope at {point.current * 1e6:.3g} uA", slope, model.slope(v), "ohm^2 Hz"))
        if abs(point.current / NOMINAL_CURRENT - 1) < 1e-3:
            ratio = 10 * math.log10(max(point.noise**2 / dark.noise**2 - 1, 1e-12))
            checks.append(_least("QCNR at nominal current", ratio, 10.0, "dB"))
            checks.append(_within("DC across r_f", point.v_tia - dark.v_tia, NOMINAL_CURRENT * v.r_f, "V"))
    checks.append(_most("brightest level, DC", lit[-1].v_tia, v.supply - 0.3, "V"))
    checks.append(_within("ADC rests at half the reference", dark.v_adc, v.supply / 2, "V"))
    return checks


def stochastic(v: FrontEnd) -> list[Check]:
    """Claim and margins of the model."""
    sigma = model.innovation_sigma(v, NOMINAL_CURRENT, SAMPLE_RATE)
    worst = spread.limits(v, spread.lit_rms).high
    return [
        _most("rms at nominal current, worst parts", worst, 80.0, "LSB"),
        _least("min-entropy, ideal codes", model.min_entropy(sigma), CLAIMED_MIN_ENTROPY + 3, "bit/sample"),
        _least("min-entropy, codes 10 LSB wide", model.min_entropy(sigma, code_width=10), CLAIMED_MIN_ENTROPY, "bit"),
        _least("phase margin, transimpedance", model.phase_margin(v), 60.0, "degrees"),
        _most("PWM output for the brightest level", led_voltage(v, LEVELS[-1], coupling=COUPLING / 2), v.logic, "V"),
        _most("PWM ripple at the ADC", model.ripple(v, NOMINAL_CURRENT), 0.5, "LSB rms"),
    ]


def draw(folder: Path) -> dict[str, Any]:
    """Draw the schematic in a process of its own (SKiDL litters its directory) and return its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "hw.qrng_stick.schematic", str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the schematic was expected to be drawn, came {done.stderr.strip()[-600:]}")
    report: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return report


def connections(report: dict[str, Any]) -> Counter[tuple[str, str, frozenset[str]]]:
    """Resistors and capacitors of the schematic: kind, value, the two nets."""
    found: Counter[tuple[str, str, frozenset[str]]] = Counter()
    for ref, part in report["parts"].items():
        if ref.rstrip("0123456789") in {"R", "C"}:
            found[ref[0], part["value"], frozenset(part["pins"].values())] += 1
    return found


def _circuit(deck: str) -> str:
    """Cut a deck down to its elements, without subcircuits and control section."""
    return deck.partition(".ends")[2].partition(".control")[0]


def deck_connections(deck: str) -> Counter[tuple[str, str, frozenset[str]]]:
    """Read the same from the circuit part of an ngspice deck."""
    found: Counter[tuple[str, str, frozenset[str]]] = Counter()
    circuit = _circuit(deck)
    for line in circuit.splitlines():
        if line[:1] in {"R", "C"} and not line.startswith("Cin "):  # Cin is the diode, the op-amp and the tracks
            name, first, second, value = line.split()
            nets = frozenset("gnd" if node == "0" else node for node in (first, second))
            found[name[0], series(float(value), "R" if name[0] == "R" else "F"), nets] += 1
    return found


def deck_amplifiers(deck: str) -> set[tuple[str, str, str]]:
    """Return plus, minus and output net of every op-amp of a deck."""
    rows = [line.split() for line in _circuit(deck).splitlines() if line.startswith("X")]
    return {(row[1], row[2], row[3]) for row in rows}


def drawn_amplifiers(report: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Return the same of the drawn quad, by its package pins."""
    pins = next(part["pins"] for part in report["parts"].values() if part["key"] == "op_amp")
    return {
        (pins[a], pins[b], pins[c])
        for a, b, c in (("3", "2", "1"), ("5", "6", "7"), ("10", "9", "8"), ("12", "13", "14"))
    }


def same_circuit(report: dict[str, Any], deck: str) -> Check:
    """Compare schematic and ngspice deck: the same parts of the same value between the same nets, nothing more."""
    simulated, drawn = deck_connections(deck), connections(report)
    nets = frozenset().union(*(key[2] for key in simulated))
    drawn = Counter({key: n for key, n in drawn.items() if key[2] <= nets and not key[2] <= RAILS})
    differing = [*(simulated - drawn), *(drawn - simulated)]
    amplifiers = deck_amplifiers(deck) ^ drawn_amplifiers(report)
    text = "; ".join(f"{kind} {value} {'-'.join(sorted(pair))}" for kind, value, pair in differing)
    text = " ".join([text, *("op-amp " + "/".join(unit) for unit in sorted(amplifiers))]).strip()
    wanted = f"{simulated.total()} parts and {len(deck_amplifiers(deck))} op-amps alike"
    return Check("schematic and simulation are one circuit", wanted, text or wanted, not text)


def references(report: dict[str, Any]) -> dict[str, list[str]]:
    """Group the references of the schematic by key of the bill of materials."""
    refs: dict[str, list[str]] = defaultdict(list)
    for ref, part in report["parts"].items():
        refs[part["key"]].append(ref)
    return dict(refs)


def drawing(v: FrontEnd, report: dict[str, Any]) -> list[Check]:
    """Rule checker, agreement with the simulation, completeness of the bill of materials."""
    erc = report["erc"]
    table, used = parts.lines(v), references(report)
    incomplete = [
        key for key, line in table.items() if not (line.mpn and line.maker and line.second and line.price > 0)
    ]
    unused = sorted(set(table) - set(used))
    price = parts.cost(Counter({key: len(refs) for key, refs in used.items()}), v)
    return [
        Check(
            "electrical rules",
            "0 errors, 0 warnings",
            f"{erc['errors']} errors, {erc['warnings']} warnings",
            not any(erc.values()),
        ),
        same_circuit(report, spice.netlist(v)),
        Check(
            "bill of materials",
            "every line bought and used",
            ", ".join(incomplete + unused) or "every line bought and used",
            not (incomplete or unused),
        ),
        _most("parts of one stick (estimate)", price, 15.0, "USD"),
        Check(
            "test points",
            str(len(schematic.TEST_POINTS)),
            str(len(used.get("test_point", []))),
            len(used.get("test_point", [])) == len(schematic.TEST_POINTS),
        ),
    ]

"""Tables inside hand-written pages: each stands between two comments and is written from the design's numbers.

A page says `<!-- generated: NAME -->` and `<!-- end -->`; what is between them is ours, the rest is the author's.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from hw.qrng_stick import noise_model as model
from hw.qrng_stick import parts, spread
from hw.qrng_stick.checks import references
from hw.qrng_stick.values import CLAIMED_MIN_ENTROPY, LEVELS, NOMINAL_CURRENT, PINS, SAMPLE_RATE, FrontEnd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def levels_table(v: FrontEnd) -> str:
    """Rms by photocurrent."""
    rows = []
    for current in LEVELS:
        got = model.levels(v, current)
        lit = current > 0
        rows.append(
            [
                f"{current * 1e6:g} uA" if lit else "0 (LED off)",
                f"{current * v.r_f:.2f} V",
                f"{got.total * 1e3:.1f} mV = {got.total / v.lsb:.1f} LSB",
                f"{got.shot * 1e3:.1f} mV" if lit else "-",
                f"{got.classical * 1e3:.1f} mV",
                f"{got.qcnr_db:.1f} dB" if lit else "-",
                f"{model.qcnr_thermal_db(v, current):.1f} dB" if lit else "-",
            ]
        )
    return table(["photocurrent", "across r_f", "total rms", "shot", "classical", "QCNR", "bound"], rows)


def budget_table(v: FrontEnd) -> str:
    """Shares of the classical variance."""
    f = model.frequencies()
    whole = model.integrate(model.classical_density(v, f), f)
    shares = {name: model.integrate(d, f) / whole for name, d in model.classical_parts(v, f).items()}
    return table(["origin", "share of the dark variance"], [[n, f"{s:.1%}"] for n, s in shares.items()])


def entropy_table(v: FrontEnd) -> str:
    """Min-entropy by sampling rate at the nominal current."""
    rows = []
    for rate in (SAMPLE_RATE, 100e3, 500e3):
        sigma = model.innovation_sigma(v, NOMINAL_CURRENT, rate)
        wide = model.min_entropy(sigma, code_width=10)
        rows.append([f"{rate / 1e3:g} kS/s", f"{sigma:.1f} LSB", f"{model.min_entropy(sigma):.2f}", f"{wide:.2f}"])
    return table(["sampling rate", "innovation rms", "bits, ideal codes", "bits, codes 10 LSB wide"], rows)


def margin_table(v: FrontEnd) -> str:
    """How wrong the model would have to be before the claim is."""
    sigma = model.innovation_sigma(v, NOMINAL_CURRENT, SAMPLE_RATE)
    least = model.sigma_for(CLAIMED_MIN_ENTROPY)
    return table(
        ["quantity", "model", f"at which {CLAIMED_MIN_ENTROPY:g} bits are just true"],
        [
            ["min-entropy per sample", f"{model.min_entropy(sigma):.2f}", f"{CLAIMED_MIN_ENTROPY:.2f}"],
            ["innovation rms", f"{sigma:.1f} LSB", f"{least:.2f} LSB"],
            ["quantum variance, relative", "1", f"1/{(sigma / least) ** 2:.0f}"],
            ["widest ADC code", "1 LSB", f"{model.widest_code(sigma, CLAIMED_MIN_ENTROPY):.1f} LSB"],
        ],
    )


def acceptance_table(v: FrontEnd) -> str:
    """Limits of a good board, from the parts' tolerances."""
    rows: list[list[str]] = []
    quantities: tuple[tuple[str, Callable[[FrontEnd], float], str], ...] = (
        ("rms, LED off", spread.dark_rms, "LSB"),
        (f"rms with {spread.NOMINAL_VOLTAGE:.2f} V across r_f", spread.lit_rms, "LSB"),
        ("QCNR there", spread.ratio_db, "dB"),
        ("slope of the variance", spread.code_slope, "LSB^2 per uA"),
        ("the same, as the agent reports it", spread.monitor_slope, "LSB^2 per 1/16 code"),
    )
    for name, quantity, unit in quantities:
        got = spread.limits(v, quantity)
        rows.append([name, f"{got.nominal:.4g} {unit}", f"{got.low:.4g} to {got.high:.4g} {unit}"])
    return table(["quantity", "model", "accept"], rows)


def pins_table() -> str:
    """GPIO of the Pico 2."""
    return table(
        ["GPIO", "what"],
        [
            [f"GP{PINS.adc_signal} / ADC0", "noise signal, around half the reference"],
            [f"GP{PINS.adc_monitor} / ADC1", "transimpedance stage, DC: the photocurrent"],
            [f"GP{PINS.adc_mid} / ADC2", "half the reference"],
            [f"GP{PINS.led_pwm}", "LED, PWM"],
            [f"GP{PINS.strap}", "service strap: low while JP1 is closed"],
            [f"GP{PINS.status_led}", "status LED on the module"],
            [f"GP{PINS.smps_mode}", "regulator mode of the module: drive high, the ripple drops"],
        ],
    )


def bom_table(v: FrontEnd, report: dict[str, Any]) -> str:
    """Bill of materials with its sum."""
    header, *rows = parts.csv_rows(references(report), v)
    price = parts.cost(Counter({key: len(refs) for key, refs in references(report).items()}), v)
    sum_row = ["", "", "", "", "", "**sum, estimate**", f"**{price:.2f}**", ""]
    return table(header, [*rows, sum_row])


def blocks(v: FrontEnd) -> dict[str, str]:
    """Every table that needs no drawn schematic, by name."""
    return {
        "levels": levels_table(v),
        "budget": budget_table(v),
        "entropy": entropy_table(v),
        "margin": margin_table(v),
        "acceptance": acceptance_table(v),
        "pins": pins_table(),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """Return a page's text with every block it names, and that `tables` has, written anew."""

    def replace_block(found: re.Match[str]) -> str:
        written = tables.get(found["name"])
        return found[0] if written is None else f"{found[1]}{written}{found[3]}"

    return _BLOCK.sub(replace_block, text)


def stale(pages: list[Path], tables: dict[str, str]) -> list[str]:
    """Names of pages whose tables no longer say what the design says."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    return [page.name for page, text in texts.items() if filled(text, tables) != text]


def write(pages: list[Path], tables: dict[str, str]) -> None:
    """Write every table anew."""
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), tables), encoding="utf-8")

"""The stick's hardware: what `./dev hw` checks, run where the tools are, and the faults each check must find."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hw.qrng_stick import __main__ as command
from hw.qrng_stick import checks, documents, drawing, parts, pictures, schematic, spice
from hw.qrng_stick.values import LEVELS, NOMINAL, NOMINAL_CURRENT, FrontEnd
from tests.needed import missing

SYMBOLS = Path(os.environ.get("KICAD6_SYMBOL_DIR", schematic.SYMBOLS))


@pytest.fixture(scope="session")
def ngspice() -> None:
    """ngspice, which `./dev test` installs."""
    if not spice.available():
        missing("needs ngspice (apt-get install ngspice)")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The schematic, drawn once; SKiDL and KiCad's symbols are 400 MB, so that only `./dev hw` installs them."""
    if importlib.util.find_spec("skidl") is None:
        pytest.skip("needs SKiDL (./dev hw installs it, and checks the schematic itself)")
    if not SYMBOLS.is_dir():
        pytest.skip("needs KiCad's symbols (./dev hw installs them, and checks the schematic itself)")
    return checks.draw(tmp_path_factory.mktemp("schematic"))


def failed(results: list[checks.Check]) -> list[str]:
    return [check.name for check in results if not check.ok]


@pytest.mark.usefixtures("ngspice")
def test_simulation_agrees_with_the_model() -> None:
    results = checks.simulation(NOMINAL)
    assert len(results) >= 8
    assert not failed(results), results


@pytest.mark.usefixtures("ngspice")
@pytest.mark.parametrize(
    ("change", "finds"),
    [
        ({"r_fb": 25e3}, "slope at 10 uA"),
        ({"r_f": 50e3}, "QCNR at nominal current"),
        ({"op_amp": replace(NOMINAL.op_amp, voltage_noise=30e-9)}, "variance, LED off"),
        ({"r_bias_top": 1e3}, "brightest level, DC"),
    ],
)
def test_a_board_that_is_not_the_model_is_found(
    change: dict[str, Any], finds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: ngspice runs another board than the model describes."""
    run, other = spice.simulate, replace(NOMINAL, **change)
    monkeypatch.setattr(spice, "simulate", lambda _v, currents=LEVELS: run(other, currents))
    assert finds in failed(checks.simulation(NOMINAL))


@pytest.mark.usefixtures("ngspice")
def test_a_silent_photocurrent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a plain current source has no shot noise; slope and ratio must collapse."""
    run = spice.run_deck
    silent = f"Iphoto sum 0 {NOMINAL_CURRENT}\n"
    monkeypatch.setattr(spice, "run_deck", lambda deck: run(deck.replace("F1 sum 0 Vd -1\n", silent)))
    names = failed(checks.simulation(NOMINAL))
    assert {"slope at 10 uA", "QCNR at nominal current"} <= set(names)


@pytest.mark.usefixtures("ngspice")
def test_ngspice_that_fails_says_so() -> None:
    with pytest.raises(spice.SpiceError):
        spice.run_deck("broken\nR1 a b\n.control\nop\nfoo bar baz\nquit 1\n.endc\n.end\n")


def test_ngspice_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "available", lambda: False)
    with pytest.raises(spice.SpiceError, match="apt-get install ngspice"):
        spice.simulate(NOMINAL)


def test_garbage_from_ngspice_is_not_taken_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "run_deck", lambda _deck: "onoise_total = 1e-3\n")
    with pytest.raises(spice.SpiceError, match="20 values"):
        spice.simulate(NOMINAL)


def test_margins_of_the_model() -> None:
    assert not failed(checks.stochastic(NOMINAL))
    assert "rms at nominal current, worst parts" in failed(checks.stochastic(replace(NOMINAL, r_fb=36e3)))
    assert "PWM ripple at the ADC" in failed(checks.stochastic(replace(NOMINAL, c_pwm=0.5e-6)))
    assert "phase margin, transimpedance" in failed(checks.stochastic(replace(NOMINAL, c_f=0.3e-12)))


def test_schematic_is_clean_and_is_the_simulated_circuit(drawn: dict[str, Any]) -> None:
    results = checks.drawing(NOMINAL, drawn)
    assert not failed(results), results


@pytest.mark.parametrize(
    ("ref", "pin", "net"),
    [("R5", "2", "s1"), ("C11", "2", "avdd"), ("R12", "2", "gnd"), ("U3", "5", "s2")],
)
def test_a_wire_to_the_wrong_place_is_found(drawn: dict[str, Any], ref: str, pin: str, net: str) -> None:
    wrong = json.loads(json.dumps(drawn))
    wrong["parts"][ref]["pins"][pin] = net
    assert "schematic and simulation are one circuit" in failed(checks.drawing(NOMINAL, wrong))


def test_another_value_on_the_schematic_is_found(drawn: dict[str, Any]) -> None:
    other: FrontEnd = replace(NOMINAL, r_couple=22e3)
    assert not checks.same_circuit(drawn, spice.netlist(other)).ok


def test_pins_of_the_photodiode_and_the_led(drawn: dict[str, Any]) -> None:
    """Reversed, one gives no signal and the other no light: pin 1 is the cathode of both symbols."""
    by_key = {part["key"]: part["pins"] for part in drawn["parts"].values()}
    assert by_key["photodiode"] == {"1": "sum", "2": "gnd"}
    assert by_key["led"] == {"1": "gnd", "2": "led"}
    pico = by_key["pico"]
    assert (pico["31"], pico["32"], pico["34"]) == ("adc", "adc_monitor", "adc_mid"), "ADC0, ADC1, ADC2"
    assert (pico["35"], pico["33"], pico["40"]) == ("vref", "gnd", "vbus")
    assert (pico["20"], pico["29"]) == ("pwm", "strap"), "GP15, GP22"


FAULT = """
import sys
from pathlib import Path
from hw.qrng_stick import schematic
skidl = schematic._enter(Path(sys.argv[1]))
sheet = schematic.draw(skidl)
loose = sheet.part("r_adc", "R", "dangling")
loose[1] += sheet.net("adc")
sheet.net("s1").connect(sheet.net("s2"))
sheet.circuit.ERC()
print(skidl.erc_logger.error.count, skidl.erc_logger.warning.count)
"""


@pytest.mark.usefixtures("drawn")
def test_rule_checker_finds_a_short_and_a_loose_end(tmp_path: Path) -> None:
    """Negative control of the electrical rules: two outputs joined, one pin forgotten."""
    done = subprocess.run(
        [sys.executable, "-c", FAULT, str(tmp_path)],
        cwd=checks.ROOT, env={**os.environ, "PYTHONPATH": str(checks.ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    errors, warnings = map(int, done.stdout.split()[-2:])
    assert errors >= 1
    assert warnings >= 1


def test_bill_of_materials_is_complete() -> None:
    table = parts.lines(NOMINAL)
    assert all(line.maker and line.mpn and line.second and line.price > 0 for line in table.values())
    assert table["r_fb"].value == "28k"
    bought_as = {(line.mpn, line.value) for line in table.values()}
    assert len({mpn for mpn, _ in bought_as}) == len(bought_as), "one part number, one value"


def test_documentation_shows_the_design_as_it_is() -> None:
    """Tables and pictures; the bill of materials needs the drawn schematic and is checked by `./dev hw`."""
    assert not documents.stale(command.PAGES, documents.blocks(NOMINAL))
    assert not pictures.stale(pictures.pictures(NOMINAL), command.PICTURES)


def test_old_documentation_is_found() -> None:
    other = replace(NOMINAL, r_fb=27e3)
    assert set(documents.stale(command.PAGES, documents.blocks(other))) == {"qrng-model.md", "README.md"}
    assert len(pictures.stale(pictures.pictures(other), command.PICTURES)) == 3


def test_bill_of_materials_in_the_readme(drawn: dict[str, Any]) -> None:
    assert not documents.stale(command.PAGES, {"bom": documents.bom_table(NOMINAL, drawn)})


def test_picture_of_the_schematic(drawn: dict[str, Any]) -> None:
    assert not drawing.stale(drawn, command.PICTURES)
    other = json.loads(json.dumps(drawn))
    other["parts"]["R5"]["value"] = "120k"
    assert drawing.stale(other, command.PICTURES) == [drawing.NAME]


def test_picture_shows_no_part_that_is_not_there(drawn: dict[str, Any]) -> None:
    label = drawing.Labels(drawn)
    assert label("R", "sum", "tia") == "R5 100k"
    with pytest.raises(KeyError, match="between sum and tia"):
        label("R", "sum", "tia")


@pytest.mark.usefixtures("ngspice")
def test_one_failed_check_fails_the_command(
    drawn: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "BUILD", tmp_path)
    monkeypatch.setattr(checks, "draw", lambda _folder: drawn)
    monkeypatch.setattr(pictures, "draw", lambda _picture, _folder: None)
    monkeypatch.setattr(drawing, "draw", lambda _report, _folder: None)
    assert command.main([]) == 0
    assert "0 failed" in capsys.readouterr().out
    monkeypatch.setitem(drawn["erc"], "errors", 1)
    assert command.main([]) == 1
    out = capsys.readouterr().out
    assert "FAIL  electrical rules" in out
    assert "1 errors, 0 warnings" in out


def test_blocks_leave_the_authors_words_alone() -> None:
    page = (
        "before\n<!-- generated: levels -->\nold\n<!-- end -->\nbetween <!-- generated: unknown -->\nx\n<!-- end -->\n"
    )
    text = documents.filled(page, {"levels": "new\n"})
    assert text == page.replace("old\n", "new\n")
    assert documents.filled(text, {"levels": "new\n"}) == text

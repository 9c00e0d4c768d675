"""Bill of materials: what each part is, who makes it, what replaces it, and about what it costs.

Prices are estimates (US dollars, at 100 pieces of the stick), made from memory of distributors' price levels, not
quotes. Makers' part numbers were not checked against stock: look before buying. Values come from `values.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hw.qrng_stick.values import FrontEnd, series

if TYPE_CHECKING:
    from collections import Counter


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the bill of materials, and how the schematic draws it."""

    key: str
    """Name the schematic asks for."""

    library: str
    symbol: str
    """KiCad symbol; empty library: drawn by the schematic itself."""

    value: str
    footprint: str
    maker: str
    mpn: str
    second: str
    """Second source: maker and number, or why there is none."""

    price: float
    note: str = ""


_R = "Resistor_SMD:R_0603_1608Metric"
_C = "Capacitor_SMD:C_0603_1608Metric"
_C0805 = "Capacitor_SMD:C_0805_2012Metric"
_C1206 = "Capacitor_SMD:C_1206_3216Metric"


def _thin(key: str, ohms: float, code: str) -> Line:
    """0.1 % thin film: sets the calibration's slope, and is free of the 1/f noise of thick film."""
    name = series(ohms, "R")
    second = f"Susumu RG1608P-{code}-B-T5"
    return Line(key, "Device", "R", name, _R, "Panasonic", f"ERA-3AEB{code}V", second, 0.07, "thin film 0.1 %")


def _thick(key: str, ohms: float, code: str, vishay: str) -> Line:
    name = series(ohms, "R")
    return Line(
        key, "Device", "R", name, _R, "Yageo", f"RC0603FR-07{code}L", f"Vishay CRCW0603{vishay}FKEA", 0.01, "1 %"
    )


def _c0g(key: str, farads: float, code: str, tdk: str, price: float = 0.02) -> Line:
    """C0G in the signal path: X7R would turn a knock on the table into signal."""
    return Line(key, "Device", "C", series(farads, "F"), _C, "Murata", code, f"TDK {tdk}", price, "C0G")


def _bulk(key: str, farads: float, code: str, second: str, price: float, footprint: str = _C0805) -> Line:
    return Line(key, "Device", "C", series(farads, "F"), footprint, "Murata", code, second, price, "X5R or X7R")


def _passives(v: FrontEnd) -> list[Line]:
    return [
        _thin("r_f", v.r_f, "104"),
        _thin("r_g", v.r_g, "102"),
        _thin("r_fb", v.r_fb, "2802"),
        _thin("r_mid", v.r_mid, "103"),
        _thick("r_couple", v.r_couple, "10K", "10K0"),
        _thick("r_bias_top", v.r_bias_top, "27K", "27K0"),
        _thick("r_bias_bottom", v.r_bias_bottom, "3K", "3K00"),
        _thick("r_adc", v.r_adc, "100R", "100R"),
        _thick("r_monitor", v.r_monitor, "10K", "10K0"),
        _thick("r_pwm", v.r_pwm, "220R", "220R"),
        _thick("r_led", v.r_led, "470R", "470R"),
        _thick("r_strap", 10e3, "10K", "10K0"),
        _c0g("c_f", v.c_f, "GRM1885C1H4R7CA01D", "C1608C0G1H4R7C080AA"),
        _c0g("c_fb", v.c_fb, "GRM1885C1H220JA01D", "C1608C0G1H220J080AA"),
        _c0g("c_adc", v.c_adc, "GRM1885C1H221JA01D", "C1608C0G1H221J080AA"),
        Line(
            *("c_g", "Device", "C", series(v.c_g, "F"), _C1206, "Murata", "GRM31C5C1H104JA01L"),
            *("TDK C3216C0G1H104J160AA", 0.18, "C0G, same part in all three places"),
        ),
        _bulk("c_bias", v.c_bias, "GRM21BR61A106KE19L", "Samsung CL21A106KPFNNNE", 0.04),
        _bulk("c_pwm", v.c_pwm, "GRM21BR60J226ME39L", "Samsung CL21A226MQQNNNE", 0.06),
        _bulk("c_ldo", 1e-6, "GRM188R71A105KA61D", "Samsung CL10B105KA8NNNC", 0.02, _C),
        _bulk("c_monitor", v.c_monitor, "GRM188R71H104KA93D", "Samsung CL10B104KB8NNNC", 0.01, _C),
        Line(
            *("bead", "Device", "FerriteBead", "600R@100MHz", "Inductor_SMD:L_0603_1608Metric"),
            *("Murata", "BLM18AG601SN1D", "TDK MPZ1608S601ATA00", 0.03),
        ),
    ]


def lines(v: FrontEnd) -> dict[str, Line]:
    """Every line by key."""
    semiconductors = [
        Line(
            *("pico", "", "Pico2", "Raspberry Pi Pico 2", "Module:RaspberryPi_Pico_Common_THT"),
            *("Raspberry Pi", "SC1631", "none: rev B puts an RP2350A on the board", 5.00, "RP2350, not RP2040 (E11)"),
        ),
        Line(
            *("op_amp", "Amplifier_Operational", "MCP6004", "MCP6024", "Package_SO:SOIC-14_3.9x8.7mm_P1.27mm"),
            *("Microchip", "MCP6024-I/SL", "Analog Devices AD8618ARZ (re-run the model)", 1.90, "usual quad pinout"),
        ),
        Line(
            *("photodiode", "Device", "D_Photo", "SFH 213", "LED_THT:LED_D5.0mm_Horizontal_O1.27mm_Z3.0mm"),
            *("ams-OSRAM", "SFH 213", "Vishay BPV10", 0.55, "1 mm2, 11 pF, 5 mm; find the cathode by measuring"),
        ),
        Line(
            *("led", "Device", "LED", "830 nm", "LED_THT:LED_D5.0mm_Horizontal_O1.27mm_Z3.0mm"),
            *("Vishay", "TSHG8400", "Vishay TSHG6400 (850 nm)", 0.45, "5 mm; tip to tip 18 mm in the tube"),
        ),
        Line(
            *("ldo", "Regulator_Linear", "LP5907MFX-3.0", "3.0 V", "Package_TO_SOT_SMD:SOT-23-5"),
            *("Texas Instruments", "LP5907MFX-3.0/NOPB", "Analog Devices ADP150AUJZ-3.0-R7", 0.45, "6.5 uV rms"),
        ),
    ]
    mechanics = [
        Line(
            *(
                "strap",
                "Jumper",
                "Jumper_2_Open",
                "STRAP",
                "Connector_PinHeader_2.54mm:PinHeader_1x02_P2.54mm_Vertical",
            ),
            *("Harwin", "M20-9990246", "Samtec TSW-102-07-G-S", 0.08, "jumper cap only while servicing"),
        ),
        Line(
            *("test_point", "Connector", "TestPoint", "loop", "TestPoint:TestPoint_Keystone_5000-5004_Miniature"),
            *("Keystone", "5001", "Keystone 5000 (red)", 0.12),
        ),
        Line(
            *("shield", "Device", "RFShield_OnePiece", "can", "edgeseal:shield_44x18"),
            *("made to drawing", "tin plate 0.2 mm, 44 x 18 x 9 mm", "copper tape over card", 0.60, "over U3, D1, D2"),
        ),
    ]
    return {line.key: line for line in [*semiconductors, *_passives(v), *mechanics]}


NOT_DRAWN = (
    ("light tube", "black polyolefin heat-shrink 6.4 mm, two layers, 40 mm", "black POM tube, 5 mm bore", 0.10),
    ("circuit board", "4 layers, 80 x 25 mm, inner layer 1 unbroken ground", "any maker", 0.90),
)
"""Part of the stick, on no schematic: what, which, second source, price."""


def cost(used: Counter[str], v: FrontEnd) -> float:
    """Estimated cost of one stick, US dollars; `used` counts parts by key."""
    table = lines(v)
    return sum(table[key].price * count for key, count in used.items()) + sum(row[3] for row in NOT_DRAWN)


def csv_rows(refs: dict[str, list[str]], v: FrontEnd) -> list[list[str]]:
    """Rows of the bill of materials, header first; `refs` maps a key to the references that use it."""
    rows = [["references", "quantity", "value", "maker", "part number", "second source", "price each (est.)", "note"]]
    for key, line in lines(v).items():
        names = refs.get(key, [])
        if names:
            rows.append(
                [
                    *(" ".join(names), str(len(names)), line.value, line.maker, line.mpn),
                    *(line.second, f"{line.price:.2f}", line.note),
                ]
            )
    rows += [["-", "1", what, "-", which, second, f"{price:.2f}", ""] for what, which, second, price in NOT_DRAWN]
    return rows

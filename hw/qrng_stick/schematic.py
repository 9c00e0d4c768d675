"""The stick's schematic as code (SKiDL): `python -m hw.qrng_stick.schematic FOLDER` checks it and writes the netlist.

Net names of the signal path are the node names of `spice.py`, so that the two can be compared part by part. SKiDL
writes logs into the current directory as soon as it is imported: this module is run in a process of its own, inside
a build folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hw.qrng_stick.parts import lines
from hw.qrng_stick.values import NOMINAL, PINS, FrontEnd

Skidl = Any
"""The module or its objects: SKiDL has no types."""

SYMBOLS = "/usr/share/kicad/symbols"

PICO_GROUNDS = (3, 8, 13, 18, 23, 28, 38)
# Raspberry Pi Pico 2 data sheet, pinout: board pin of each GPIO
PICO_GPIO = dict(
    zip(
        [*range(23), 26, 27, 28],
        [1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 20, 21, 22, 24, 25, 26, 27, 29, 31, 32, 34],
        strict=True,
    )
)


class Sheet:
    """A circuit under construction: parts by key of the bill of materials, nets by name."""

    def __init__(self, skidl: Skidl, values: FrontEnd) -> None:
        """Start an empty sheet; `skidl` is the imported module."""
        self.skidl = skidl
        self.circuit = skidl.Circuit()
        self.values = values
        self.table = lines(values)
        self.keys: dict[str, str] = {}
        self.nets: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def net(self, name: str) -> Skidl:
        """Return the net of that name, made when first asked for."""
        if name not in self.nets:
            self.nets[name] = self.skidl.Net(name, circuit=self.circuit)
        return self.nets[name]

    def part(self, key: str, prefix: str, role: str) -> Skidl:
        """Place one part; `role` names it for ever (SKiDL's tag), the reference is the next free one."""
        line = self.table[key]
        self.counts[prefix] = self.counts.get(prefix, 0) + 1
        ref = f"{prefix}{self.counts[prefix]}"
        made = self.skidl.Part(
            line.library,
            line.symbol,
            ref=ref,
            value=line.value,
            footprint=line.footprint,
            tag=role,
            circuit=self.circuit,
        )
        made.fields["MPN"], made.fields["Maker"] = line.mpn, line.maker
        self.keys[ref] = key
        return made

    def two(self, key: str, prefix: str, role: str, first: str, second: str) -> None:
        """Place a two-pin part between two nets."""
        made = self.part(key, prefix, role)
        made[1] += self.net(first)
        made[2] += self.net(second)

    def pico(self) -> Skidl:
        """Place the Pico 2: KiCad 6 has no symbol of it, so its pins are drawn here."""
        skidl, kinds = self.skidl, self.skidl.Pin.types
        gpio = [skidl.Pin(num=str(pin), name=f"GP{io}", func=kinds.BIDIR) for io, pin in PICO_GPIO.items()]
        ground = [skidl.Pin(num=str(pin), name="GND", func=kinds.PWRIN) for pin in PICO_GROUNDS]
        named = [
            ("30", "RUN", kinds.INPUT),
            ("33", "AGND", kinds.PWRIN),
            ("35", "ADC_VREF", kinds.PWRIN),
            ("36", "3V3", kinds.PWROUT),
            ("37", "3V3_EN", kinds.INPUT),
            ("39", "VSYS", kinds.PWRIN),
            ("40", "VBUS", kinds.PWROUT),
        ]
        pins = [*gpio, *ground, *(skidl.Pin(num=n, name=name, func=func) for n, name, func in named)]
        line = self.table["pico"]
        made = skidl.Part(
            name=line.symbol, dest=skidl.NETLIST, tool=skidl.SKIDL, pins=pins, ref="U1", ref_prefix="U",
            value=line.value, footprint=line.footprint, tag="module", circuit=self.circuit,
        )  # fmt: skip
        self.counts["U"] = 1
        made.fields["MPN"], made.fields["Maker"] = line.mpn, line.maker
        self.keys["U1"] = "pico"
        return made


def controller(sheet: Sheet) -> None:
    """Pico 2 with its USB socket, strap and reference input; what is not used says so."""
    pico = sheet.pico()
    used = {
        "VBUS": "vbus",
        "3V3": "v3v3",
        "ADC_VREF": "vref",
        "AGND": "gnd",
        f"GP{PINS.led_pwm}": "pwm",
        f"GP{PINS.strap}": "strap",
        f"GP{PINS.adc_signal}": "adc",
        f"GP{PINS.adc_monitor}": "adc_monitor",
        f"GP{PINS.adc_mid}": "adc_mid",
    }
    for pin in pico.pins:
        name = used.get(pin.name, "gnd" if pin.name == "GND" else "")
        pin += sheet.net(name) if name else sheet.circuit.NC  # noqa: PLW2901 - SKiDL connects with +=
    sheet.two("r_strap", "R", "strap pull-up", "v3v3", "strap")
    sheet.two("strap", "JP", "service strap", "strap", "gnd")


def supplies(sheet: Sheet) -> None:
    """Analogue 3.0 V of its own; the ADC reference is that rail through a bead.

    The module ties ADC_VREF to its 3.3 V through 200 ohm (Pico data sheet, ADC): 1.5 mA flow in, less than the 4 mA the
    op-amps draw, so the regulator, which cannot sink, stays in command.
    """
    sheet.two("bead", "FB", "USB supply bead", "vbus", "ldo_in")
    sheet.two("c_ldo", "C", "regulator input", "ldo_in", "gnd")
    ldo = sheet.part("ldo", "U", "analogue regulator")
    for pin, name in (("IN", "ldo_in"), ("EN", "ldo_in"), ("GND", "gnd"), ("OUT", "avdd")):
        ldo[pin] += sheet.net(name)
    sheet.two("c_ldo", "C", "regulator output", "avdd", "gnd")
    sheet.two("bead", "FB", "reference bead", "avdd", "vref")
    sheet.two("c_bias", "C", "reference reservoir", "vref", "gnd")
    sheet.two("c_monitor", "C", "reference bypass", "vref", "gnd")
    for name in ("vref", "ldo_in"):  # fed through a bead, which is passive to the rule checker
        sheet.net(name).drive = sheet.skidl.pin.pin_drives.POWER
    sheet.net("gnd").drive = sheet.skidl.pin.pin_drives.POWER


def light(sheet: Sheet) -> None:
    """PWM, two poles of filter, LED; the photodiode is in the amplifier's sheet."""
    sheet.two("r_pwm", "R", "PWM filter 1", "pwm", "pwm1")
    sheet.two("c_pwm", "C", "PWM filter 1", "pwm1", "gnd")
    sheet.two("r_pwm", "R", "PWM filter 2", "pwm1", "pwm2")
    sheet.two("c_pwm", "C", "PWM filter 2", "pwm2", "gnd")
    sheet.two("r_led", "R", "LED current", "pwm2", "led")
    sheet.two("led", "D", "light source", "gnd", "led")  # pin 1 is the cathode


def amplifier(sheet: Sheet) -> None:
    """Photodiode, transimpedance stage, two gain stages and the reference buffer: one quad op-amp."""
    op = sheet.part("op_amp", "U", "quad op-amp")
    units = {  # output, minus, plus; package pins of every usual quad
        (1, 2, 3): ("tia", "sum", "bias"),
        (7, 6, 5): ("s1", "g1", "tia"),
        (8, 9, 10): ("s2", "g2", "in2"),
        (14, 13, 12): ("vmid", "vmid", "mid"),
    }
    for pins, names in units.items():
        for pin, name in zip(pins, names, strict=True):
            op[pin] += sheet.net(name)
    op[4] += sheet.net("avdd")
    op[11] += sheet.net("gnd")
    sheet.two("c_monitor", "C", "op-amp bypass", "avdd", "gnd")
    sheet.two("photodiode", "D", "detector", "sum", "gnd")  # cathode to the summing node: reverse biased by `bias`
    sheet.two("r_f", "R", "transimpedance", "sum", "tia")
    sheet.two("c_f", "C", "transimpedance", "sum", "tia")
    sheet.two("r_bias_top", "R", "bias top", "avdd", "bias")
    sheet.two("r_bias_bottom", "R", "bias bottom", "bias", "gnd")
    sheet.two("c_bias", "C", "bias", "bias", "gnd")
    for stage in ("1", "2"):
        sheet.two("r_fb", "R", f"gain {stage} feedback", f"s{stage}", f"g{stage}")
        sheet.two("c_fb", "C", f"gain {stage} feedback", f"s{stage}", f"g{stage}")
        sheet.two("r_g", "R", f"gain {stage} ground leg", f"g{stage}", f"g{stage}c")
        sheet.two("c_g", "C", f"gain {stage} ground leg", f"g{stage}c", "gnd")
    sheet.two("c_g", "C", "coupling", "s1", "in2")  # c_couple: same value and part as c_g
    sheet.two("r_couple", "R", "coupling", "in2", "vmid")
    sheet.two("r_mid", "R", "half reference top", "vref", "mid")
    sheet.two("r_mid", "R", "half reference bottom", "mid", "gnd")
    sheet.two("c_bias", "C", "half reference", "mid", "gnd")  # c_mid: same value and part as c_bias


def converter(sheet: Sheet) -> None:
    """Place the filters of the three ADC pins, test points and the shield."""
    sheet.two("r_adc", "R", "ADC signal", "s2", "adc")
    sheet.two("c_adc", "C", "ADC signal", "adc", "gnd")
    for source, pin in (("tia", "adc_monitor"), ("vmid", "adc_mid")):
        sheet.two("r_monitor", "R", f"ADC {source}", source, pin)
        sheet.two("c_monitor", "C", f"ADC {source}", pin, "gnd")
    for name in TEST_POINTS:
        made = sheet.part("test_point", "TP", f"test point {name}")
        made[1] += sheet.net(name)
    sheet.part("shield", "J", "shield")[1] += sheet.net("gnd")


TEST_POINTS = ("gnd", "avdd", "vref", "vmid", "bias", "tia", "s1", "s2", "pwm2")
"""In this order TP1 to TP9."""


def draw(skidl: Skidl, values: FrontEnd = NOMINAL) -> Sheet:
    """Draw the whole stick into SKiDL's default circuit."""
    sheet = Sheet(skidl, values)
    for section in (controller, supplies, light, amplifier, converter):
        section(sheet)
    return sheet


def summary(sheet: Sheet) -> dict[str, Any]:
    """Describe the drawn circuit as plain data: parts, what each pin is on, and the rule checker's findings."""
    parts = {}
    for part in sheet.circuit.parts:
        pins = {str(pin.num): pin.net.name for pin in part.pins if pin.net is not None and pin.net.name in sheet.nets}
        parts[part.ref] = {"key": sheet.keys[part.ref], "value": part.value, "pins": pins}
    return {"parts": parts}


def _enter(folder: Path) -> Skidl:
    """Import SKiDL inside `folder`, with KiCad's symbols."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ.setdefault("KICAD6_SYMBOL_DIR", SYMBOLS)
    import skidl

    skidl.set_default_tool(skidl.KICAD6)
    return skidl


def main(argv: list[str]) -> int:
    """Check and write everything into the folder argv[0]; print the summary as JSON."""
    skidl = _enter(Path(argv[0]))
    sheet = draw(skidl)
    sheet.circuit.ERC()
    report = summary(sheet)
    report["erc"] = {"errors": skidl.erc_logger.error.count, "warnings": skidl.erc_logger.warning.count}
    sheet.circuit.generate_netlist(file_="qrng_stick.net")
    Path("summary.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

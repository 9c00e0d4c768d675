"""The schematic for people: one picture, its references and values read from the drawn circuit.

`schematic.py` is the design; this only shows it. A part that the picture names and the circuit does not have between
those nets is an error, so that the picture cannot show another board.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

NAME = "qrng-schematic"
Schemdraw = Any
"""The module or its objects: only in dependency group hw, and without types here."""


class Labels:
    """Looks up what is written beside a part: by the nets it joins."""

    def __init__(self, report: dict[str, Any]) -> None:
        """Take the summary of `schematic.py`."""
        self._parts = report["parts"]
        self.used: dict[str, str] = {}

    def __call__(self, prefix: str, *nets: str) -> str:
        """Return reference and value of the part whose nets are exactly `nets`; KeyError if there is none."""
        for ref, part in self._parts.items():
            if ref.rstrip("0123456789") == prefix and set(part["pins"].values()) == set(nets) and ref not in self.used:
                self.used[ref] = f"{ref} {part['value']}"
                return self.used[ref]
        raise KeyError(f"the picture shows {prefix} between {' and '.join(nets)}, the schematic has none (left)")


def digest(report: dict[str, Any]) -> str:
    """Identify the circuit a picture was drawn from: parts, values, connections."""
    return hashlib.sha256(json.dumps(report["parts"], sort_keys=True).encode()).hexdigest()[:32]


def stale(report: dict[str, Any], folder: Path) -> list[str]:
    """Return the picture's name if it is missing or of another circuit."""
    path = folder / f"{NAME}.svg"
    return [] if path.exists() and digest(report) in path.read_text(encoding="utf-8") else [NAME]


class Sheet:
    """Schemdraw with this picture's habits: net names as tags, parts to ground hanging down."""

    def __init__(self, schemdraw: Schemdraw, drawing: Schemdraw, labels: Labels) -> None:
        """Draw into `drawing`."""
        self.e, self.d, self.label, self.box = schemdraw.elements, drawing, labels, schemdraw.flow.Box
        self.shapes = {"R": self.e.ResistorIEC, "C": self.e.Capacitor, "FB": self.e.Inductor2}

    def tag(self, name: str, where: str = "left") -> None:
        """Name a net here."""
        self.d += self.e.Dot(open=True).label(name, loc=where, color="#1f4e9c")

    def part(self, prefix: str, first: str, second: str, length: float = 2.2) -> None:
        """Draw a part to the right."""
        self.d += self.shapes[prefix]().right().length(length).label(self.label(prefix, first, second), fontsize=9)

    def down(self, prefix: str, net: str) -> None:
        """Hang a part to ground, and come back."""
        self.d.push()
        self.d += self.e.Dot()
        self.d += self.shapes[prefix]().down().length(2).label(self.label(prefix, net, "gnd"), loc="bottom", fontsize=9)
        self.d += self.e.Ground()
        self.d.pop()

    def wire(self, length: float) -> None:
        """Draw a wire to the right."""
        self.d += self.e.Line().right().length(length)

    def at(self, x: float, y: float) -> None:
        """Go to a place."""
        self.d.move_from(self.d.here, 0, 0)
        self.d.here = (x, y)

    def feedback(self, amplifier: Schemdraw, minus: str, out: str) -> None:
        """Draw resistor and capacitor in parallel over an amplifier, from its minus input to its output."""
        left, right = amplifier.in1, amplifier.out
        for prefix, height in (("R", 1.4), ("C", 2.6)):
            self.d += self.e.Line().at(left).up().toy(left[1] + height)
            text = self.label(prefix, minus, out)
            self.d += self.shapes[prefix]().right().tox(right[0]).label(text, fontsize=9)
            self.d += self.e.Line().down().toy(right[1])
        self.d += self.e.Dot().at(right)


def light(s: Sheet, x: float, y: float) -> None:
    """LED drive."""
    s.at(x, y)
    s.tag("GP15 pwm")
    for first, second in (("pwm", "pwm1"), ("pwm1", "pwm2")):
        s.part("R", first, second)
        s.down("C", second)
    s.part("R", "pwm2", "led")
    s.d += s.e.LED().down().length(2).label(s.label("D", "led", "gnd"), loc="bottom", fontsize=9)
    s.d += s.e.Ground()


def supply(s: Sheet, x: float, y: float) -> None:
    """Regulator and reference."""
    s.at(x, y)
    s.tag("USB 5 V")
    s.part("FB", "vbus", "ldo_in")
    s.down("C", "ldo_in")
    s.wire(1.2)
    s.d += (regulator := s.box(w=2.4, h=1.6).anchor("W").label("U2\nLP5907\n3.0 V", fontsize=8))
    s.d += s.e.Line().at(regulator.S).down().length(0.8)
    s.d += s.e.Ground()
    s.at(*regulator.E)
    s.wire(0.5)
    s.d.push()
    s.tag("avdd", "top")
    s.d.pop()
    s.down("C", "avdd")
    s.wire(1.7)
    s.down("C", "avdd")
    s.part("FB", "avdd", "vref")
    s.down("C", "vref")
    s.wire(1.6)
    s.down("C", "vref")
    s.wire(0.6)
    s.tag("vref: ADC_VREF", "right")


def strap(s: Sheet, x: float, y: float) -> None:
    """Service strap."""
    s.at(x, y)
    s.tag("3V3")
    s.part("R", "v3v3", "strap")
    s.d.push()
    s.d += s.e.Switch().down().length(2).label(s.label("JP", "strap", "gnd"), loc="bottom", fontsize=9)
    s.d += s.e.Ground()
    s.d.pop()
    s.wire(0.6)
    s.tag("GP22 strap", "right")


def amplifier(s: Sheet, name: str, plus_x: float, y: float) -> Schemdraw:
    """Place an op-amp, its plus input at the place."""
    s.at(plus_x, y)
    s.d += (made := s.e.Opamp(leads=True).anchor("in2").right().label(name, loc="center", fontsize=9))
    return made


def transimpedance(s: Sheet, x: float, y: float) -> None:
    """Photodiode, its amplifier and its bias."""
    made = amplifier(s, "U3A", x, y)
    s.feedback(made, "sum", "tia")
    s.d += s.e.Line().at(made.in1).left().length(2.4)
    s.d += s.e.Photodiode().down().length(2.4).reverse().flip().label(s.label("D", "sum", "gnd"), loc="top", fontsize=9)
    s.d += s.e.Ground()
    s.at(*made.in2)
    s.d += s.e.Line().down().length(3.2)
    s.down("R", "bias")
    s.d += s.e.Line().left().length(1.7)
    s.down("C", "bias")
    s.d += s.e.ResistorIEC().left().length(2.2).label(s.label("R", "avdd", "bias"), fontsize=9)
    s.tag("avdd")
    s.at(*made.out)
    s.wire(0.6)
    s.tag("tia", "right")


def gain(s: Sheet, stage: str, plus: str, x: float, y: float) -> Schemdraw:
    """Draw one gain stage; `plus` names its input."""
    made = amplifier(s, {"1": "U3B", "2": "U3C"}[stage], x, y)
    s.feedback(made, f"g{stage}", f"s{stage}")
    s.d += s.e.Line().at(made.in1).left().length(1.2)
    s.d += s.e.ResistorIEC().down().length(2).label(s.label("R", f"g{stage}", f"g{stage}c"), loc="top", fontsize=9)
    s.d += s.e.Capacitor().down().length(2).label(s.label("C", f"g{stage}c", "gnd"), loc="top", fontsize=9)
    s.d += s.e.Ground()
    if plus:
        s.at(*made.in2)
        s.tag(plus, "bottom")
    s.at(*made.out)
    return made


def second_stage(s: Sheet, x: float, y: float) -> None:
    """Coupling, stage 2 and the ADC pin."""
    made = gain(s, "2", "", x, y)
    s.wire(0.4)
    s.part("R", "s2", "adc")
    s.down("C", "adc")
    s.wire(0.6)
    s.tag("GP26 ADC0", "right")
    s.d += s.e.Line().at(made.in2).down().length(4.6)
    s.d.push()
    s.d += s.e.Dot()
    s.d += s.e.ResistorIEC().down().length(2).label(s.label("R", "in2", "vmid"), loc="bottom", fontsize=9)
    s.tag("vmid", "bottom")
    s.d.pop()
    s.d += s.e.Capacitor().left().length(2.2).label(s.label("C", "s1", "in2"), fontsize=9)
    s.tag("s1")


def reference(s: Sheet, x: float, y: float) -> None:
    """Half the reference, buffered, and the two slow ADC pins."""
    s.at(x - 5.2, y)
    s.tag("vref")
    s.part("R", "vref", "mid")
    s.down("R", "mid")
    s.wire(2.2)
    s.down("C", "mid")
    s.wire(0.8)
    s.d += (made := s.e.Opamp(leads=True).anchor("in2").right().label("U3D", loc="center", fontsize=9))
    s.d += s.e.Line().at(made.in1).up().length(1)
    s.d += s.e.Line().right().tox(made.out[0])
    s.d += s.e.Line().down().toy(made.out[1])
    s.d += s.e.Dot()
    s.d.push()
    s.wire(0.5)
    s.tag("vmid", "top")
    s.part("R", "vmid", "adc_mid")
    s.down("C", "adc_mid")
    s.wire(0.5)
    s.tag("GP28 ADC2", "right")
    s.d.pop()
    s.at(made.out[0] + 7.5, made.out[1])
    s.tag("tia")
    s.part("R", "tia", "adc_monitor")
    s.down("C", "adc_monitor")
    s.wire(0.5)
    s.tag("GP27 ADC1", "right")


def draw(report: dict[str, Any], folder: Path) -> None:
    """Write the picture; needs schemdraw (dependency group hw)."""
    import schemdraw
    import schemdraw.elements
    import schemdraw.flow

    schemdraw.use("svg")
    drawing = schemdraw.Drawing(show=False)
    drawing.config(unit=2.2, fontsize=10, lw=1.2, bgcolor="white")
    s = Sheet(schemdraw, drawing, Labels(report))
    light(s, 0, 0)
    supply(s, 12, 0)
    strap(s, 28.3, 0)
    transimpedance(s, 3, -7.5)
    gain(s, "1", "tia", 11, -7.5)
    s.wire(0.4)
    s.tag("s1", "right")
    second_stage(s, 19, -7.5)
    reference(s, 4.6, -16.5)
    left_out = [ref for ref in report["parts"] if ref[0] in "RCDFJ" and ref not in s.label.used and ref != "J1"]
    if left_out:
        raise KeyError(f"every part of the schematic was expected on the picture, missing: {', '.join(left_out)}")
    text = drawing.get_imagedata("svg").decode()
    mark = f"<!-- circuit {digest(report)} -->\n"
    (folder / f"{NAME}.svg").write_text(text.rstrip() + "\n" + mark, encoding="utf-8")

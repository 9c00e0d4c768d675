"""The same front end in ngspice: netlist from `values.py`, headless run, results in SI units.

It carries every resistor of the signal path, bias networks and the reference buffer included, so that what the
closed form leaves out is checked too. Shot noise: an ideal diode across a voltage source carries 2 q I of noise; an F
element copies the current of that source, noise and all, into the summing node (a plain current source is silent).
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hw.qrng_stick.values import BOLTZMANN, LEVELS, FrontEnd

SATURATION_CURRENT = 1e-14
TIMEOUT = 60.0
_NOISELESS = 1e-12  # siemens: holds a node at DC without adding noise (a G element is silent)


class SpiceError(Exception):
    """Ngspice is missing, failed, or printed something else than the numbers asked for."""


@dataclass(frozen=True, slots=True)
class SpicePoint:
    """One photocurrent: operating point and output noise."""

    current: float
    """A, as the simulated diode carries it."""

    v_tia: float
    """DC level of the transimpedance stage, volt."""

    v_adc: float
    """DC level of the ADC pin, volt."""

    noise: float
    """Rms at the ADC pin over the band, volt."""


def diode_voltage(v: FrontEnd, current: float) -> float:
    """Bias at which the ideal diode carries `current`."""
    return v.thermal_voltage * math.log1p(current / SATURATION_CURRENT)


def _op_amp(v: FrontEnd) -> str:
    """One-pole macro; its input noise is the thermal noise of a resistor no current flows through."""
    op = v.op_amp
    noise_resistor = op.voltage_noise**2 / (4 * BOLTZMANN * v.temperature)
    pole = op.gain_bandwidth / op.open_loop_gain
    return f"""\
.subckt opamp plus minus out
Rn plus n {noise_resistor:.6g}
Gn n 0 n 0 {_NOISELESS}
G1 0 p n minus 1
Gp p 0 p 0 {1 / op.open_loop_gain:.9g}
Cp p 0 {1 / (op.open_loop_gain * 2 * math.pi * pole):.9g}
E1 out 0 p 0 1
.ends
"""


def netlist(v: FrontEnd, currents: tuple[float, ...] = LEVELS) -> str:
    """Write the complete deck: circuit and a control section that prints four values per photocurrent."""
    steps = "\n".join(
        f"alter Vd = {diode_voltage(v, current):.12g}\n"
        "op\n"
        "print @d1[id] v(tia) v(adc)\n"
        "noise v(adc) Vd dec 100 1 10meg\n"
        "print onoise_total\n"
        for current in currents
    )
    return f"""\
edgeseal QRNG stick, front end
.options temp={v.temperature - 273.15:.6g} tnom={v.temperature - 273.15:.6g} gmin=1e-18 reltol=1e-6
.model ideal d(is={SATURATION_CURRENT} n=1 rs=0 cjo=0)
{_op_amp(v)}
Vdd avdd 0 {v.supply:.6g}
Vref vref 0 {v.supply:.6g}
* photocurrent with its shot noise
Vd k 0 0 ac 1
D1 k 0 ideal
F1 sum 0 Vd -1
* transimpedance stage
Rbt avdd bias {v.r_bias_top:.6g}
Rbb bias 0 {v.r_bias_bottom:.6g}
Cb bias 0 {v.c_bias:.6g}
Cin sum 0 {v.input_capacitance:.6g}
Rf sum tia {v.r_f:.6g}
Cf sum tia {v.c_f:.6g}
X1 bias sum tia opamp
* half the reference
Rm1 vref mid {v.r_mid:.6g}
Rm2 mid 0 {v.r_mid:.6g}
Cm mid 0 {v.c_mid:.6g}
X4 mid vmid vmid opamp
* gain stage 1
X2 tia g1 s1 opamp
Rfb1 s1 g1 {v.r_fb:.6g}
Cfb1 s1 g1 {v.c_fb:.6g}
Rg1 g1 g1c {v.r_g:.6g}
Cg1 g1c 0 {v.c_g:.6g}
* gain stage 2
Cc s1 in2 {v.c_couple:.6g}
Rc in2 vmid {v.r_couple:.6g}
X3 in2 g2 s2 opamp
Rfb2 s2 g2 {v.r_fb:.6g}
Cfb2 s2 g2 {v.c_fb:.6g}
Rg2 g2 g2c {v.r_g:.6g}
Cg2 g2c 0 {v.c_g:.6g}
Ra s2 adc {v.r_adc:.6g}
Ca adc 0 {v.c_adc:.6g}
.control
set numdgt=10
{steps}
quit
.endc
.end
"""


def available() -> bool:
    """Whether ngspice can be run."""
    return shutil.which("ngspice") is not None


def run_deck(deck: str) -> str:
    """Run `ngspice -b` on a deck and return its standard output; SpiceError if it does not end well."""
    if not available():
        raise SpiceError("ngspice was expected on PATH, came nothing; on Debian: apt-get install ngspice")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "front_end.cir")
        path.write_text(deck, encoding="ascii")
        done = subprocess.run(
            ["ngspice", "-b", str(path)], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    if done.returncode or "error" in done.stderr.lower():
        raise SpiceError(f"ngspice ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def _printed(text: str) -> list[tuple[str, float]]:
    pairs = []
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if equals and name.strip() in {"@d1[id]", "v(tia)", "v(adc)", "onoise_total"}:
            pairs.append((name.strip(), float(value)))
    return pairs


def simulate(v: FrontEnd, currents: tuple[float, ...] = LEVELS) -> list[SpicePoint]:
    """One point for every photocurrent (A) in `currents`."""
    printed = _printed(run_deck(netlist(v, currents)))
    names = ["@d1[id]", "v(tia)", "v(adc)", "onoise_total"]
    if [name for name, _ in printed] != names * len(currents):
        raise SpiceError(f"{4 * len(currents)} values were expected of ngspice, came {printed}")
    numbers = [value for _, value in printed]
    return [SpicePoint(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]

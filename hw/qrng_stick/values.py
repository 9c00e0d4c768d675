"""Every number of the stick's front end, once: schematic, ngspice netlist and noise model all read it here.

What a part costs and where it is bought is in `parts.py`; nothing here knows about either.
Frequencies in Hz, resistances in ohm, capacitances in farad, currents in ampere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ELEMENTARY_CHARGE = 1.602176634e-19  # C, exact since the SI of 2019
BOLTZMANN = 1.380649e-23  # J/K, exact


@dataclass(frozen=True, slots=True)
class OpAmp:
    """One-pole macro model of an operational amplifier."""

    gain_bandwidth: float
    open_loop_gain: float
    voltage_noise: float
    """V/rtHz; the 1/f part is left out: the stages pass nothing under 1.6 kHz."""

    current_noise: float
    """A/rtHz."""

    input_capacitance: float
    """Common mode and differential together, as the summing node sees it."""


MCP6024 = OpAmp(  # data sheet DS20001685: typical values at 2.5 V to 5.5 V, 10 kHz
    gain_bandwidth=10e6,
    open_loop_gain=10 ** (110 / 20),
    voltage_noise=8.7e-9,
    current_noise=3e-15,
    input_capacitance=9e-12,
)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Component values from photodiode to ADC, and the conditions the model is evaluated under."""

    op_amp: OpAmp = MCP6024
    temperature: float = 300.15  # K; ngspice's default of 27 degrees C
    logic: float = 3.3  # V, the module's own rail: the high level of its PWM
    supply: float = 3.0  # V, analogue rail and ADC reference: never above the RP2350's own 3.3 V
    adc_codes: float = 4096.0

    # transimpedance stage: its output sits at bias + I * r_f
    diode_capacitance: float = 11e-12  # SFH 213 at 0 V; a 7.5 mm2 BPW34 has 62 pF here and costs 3 dB of QCNR
    stray_capacitance: float = 4e-12  # tracks and pads of the summing node
    r_f: float = 100e3
    c_f: float = 4.7e-12
    r_bias_top: float = 27e3
    r_bias_bottom: float = 3e3
    c_bias: float = 10e-6

    # two equal gain stages: 1 + r_fb / r_g above the corner of r_g and c_g, unity at DC
    r_g: float = 1e3
    c_g: float = 100e-9
    r_fb: float = 28e3  # 30k would leave the worst board over 80 LSB rms, which the agent refuses
    c_fb: float = 22e-12
    # between them: the second one rests on half the reference
    c_couple: float = 100e-9
    r_couple: float = 10e3
    r_mid: float = 10e3  # each half of the divider
    c_mid: float = 10e-6

    # ADC pins: isolates the op-amp from the sampling capacitor
    r_adc: float = 100.0
    c_adc: float = 220e-12
    # photocurrent monitor: averages over what the ADC must not see
    r_monitor: float = 10e3
    c_monitor: float = 100e-9

    # LED drive: PWM, two poles, then the resistor that sets the current
    r_pwm: float = 220.0
    c_pwm: float = 22e-6
    r_led: float = 470.0
    pwm_frequency: float = 150e6 / 512

    @property
    def input_capacitance(self) -> float:
        """What hangs on the summing node."""
        return self.diode_capacitance + self.stray_capacitance + self.op_amp.input_capacitance

    @property
    def stage_gain(self) -> float:
        """Mid-band gain of one stage."""
        return 1 + self.r_fb / self.r_g

    @property
    def bias(self) -> float:
        """DC level of the transimpedance stage in the dark, volt."""
        return self.supply * self.r_bias_bottom / (self.r_bias_top + self.r_bias_bottom)

    @property
    def lsb(self) -> float:
        """One ADC code, volt."""
        return self.supply / self.adc_codes

    @property
    def thermal_voltage(self) -> float:
        """KT/q, volt."""
        return BOLTZMANN * self.temperature / ELEMENTARY_CHARGE


NOMINAL = FrontEnd()

SPREAD = {  # relative, worst case over parts; op_amp.* are fields of the op-amp
    "supply": 0.02,  # LP5907
    "diode_capacitance": 0.3,
    "stray_capacitance": 0.5,
    "r_f": 0.001,
    "c_f": 0.10,  # +-0.25 pF and as much again from the tracks
    "r_g": 0.001,
    "c_g": 0.05,
    "r_fb": 0.001,
    "c_fb": 0.05,
    "c_adc": 0.05,
    "op_amp.gain_bandwidth": 0.3,
    "op_amp.voltage_noise": 0.3,
}
"""What parts may differ by; the acceptance limits of a board follow from it."""
NOMINAL_CURRENT = 10e-6
"""Photocurrent the stick runs at: 1.0 V across r_f."""

LEVELS = (0.0, 2.5e-6, 5e-6, 10e-6, 20e-6)
"""Photocurrents of the calibration sweep: off, L1 to L4."""

SAMPLE_RATE = 20e3
CLAIMED_MIN_ENTROPY = 4.0
"""Bits per 12-bit sample; what everything downstream counts with."""

COUPLING = 0.02
"""Photoelectrons per LED electron the mechanics are made for: dim on purpose (docs/qrng-model.md, section 3)."""

COUPLING_LIMIT = 0.05
"""Above this the LED drive's own noise is no longer a footnote: rework the tube."""

LED_FORWARD = 1.25
"""Volt at 1 mA; 1.5 at 100 mA in the data sheet of TSHG8400, 120 mV less for each decade of an ideality of 2."""


def led_voltage(v: FrontEnd, current: float, *, coupling: float = COUPLING) -> float:
    """Mean voltage (V) of the PWM output that makes a photocurrent (A)."""
    led = current / coupling
    forward = LED_FORWARD + 2 * v.thermal_voltage * math.log(led / 1e-3)
    return forward + led * (2 * v.r_pwm + v.r_led)


def duties(v: FrontEnd) -> tuple[int, ...]:
    """PWM duties of L1 to L4 in 1/65535: where a new stick begins; its calibration replaces them."""
    return tuple(round(led_voltage(v, current) / v.logic * 65535) for current in LEVELS[1:])


@dataclass(frozen=True, slots=True)
class Pins:
    """GPIO numbers of the RP2350; the firmware's constants must equal them."""

    led_pwm: int = 15
    strap: int = 22
    status_led: int = 25
    smps_mode: int = 23
    adc_signal: int = 26
    adc_monitor: int = 27
    adc_mid: int = 28


PINS = Pins()


def series(value: float, unit: str) -> str:
    """Write a component value as people do: 30k, 4.7p; `unit` is 'R' or 'F', shown only without a prefix."""
    prefixes = ((1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))
    for scale, prefix in prefixes:
        if value >= scale * (1 - 1e-9):
            return f"{round(value / scale, 3):g}{prefix or unit}"
    raise ValueError(f"a component value of at least 1e-12 was expected, came {value!r}")


def corner(resistance: float, capacitance: float) -> float:
    """Corner frequency of an RC, Hz."""
    return 1 / (2 * math.pi * resistance * capacitance)

"""Pins, registers and numbers of the two chips. Pins equal hw/qrng_stick/values.py; a test compares them.

Registers: RP2040 data sheet §4.9.6 and §2.4.3.1, RP2350 data sheet §12.4.6 and §12.6.4.1 (the ADC block is the same).
"""

import os

from edgeseal.stick import messages

LED_PWM = 15
STRAP = 22  # to ground: REPL instead of ESQ1 at power-up, and permission for BOOTLOADER
SMPS_MODE = 23  # high: the module's regulator in PWM mode, its ripple above the band
STATUS_LED = 25
ADC_SIGNAL, ADC_MONITOR = 26, 27
SIGNAL_CHANNEL = 0

PWM_HZ = 292969  # 150 MHz / 512
LEVELS = (24947, 27918, 33148, 42896)  # duties of L1 to L4 for 2.5, 5, 10, 20 uA; the file `levels` overrides them
REFERENCE_MV = 3000
ADC_HZ = 48000000

CS, FCS, FIFO, DIV = 0x00, 0x08, 0x0C, 0x10
CS_EN, CS_START_MANY, CS_READY = 1 << 0, 1 << 3, 1 << 8
FCS_EN, FCS_DREQ_EN, FCS_EMPTY, FCS_THRESH_1 = 1 << 0, 1 << 3, 1 << 8, 1 << 24
SET, CLEAR = 0x2000, 0x3000  # atomic aliases of every register


class Chip:
    """What differs between the chips: base address of the ADC, its DMA request line, the number in GET_INFO."""

    def __init__(self, board: int, adc: int, dreq: int) -> None:
        """Take the three numbers."""
        self.board, self.adc, self.dreq = board, adc, dreq


def chip() -> Chip:
    """Return the chip this runs on."""
    if "RP2350" in os.uname()[4]:
        return Chip(messages.RP2350, 0x400A0000, 48)
    return Chip(messages.RP2040, 0x4004C000, 36)

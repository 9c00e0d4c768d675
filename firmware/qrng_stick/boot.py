"""Runs before the USB stack starts. Strap open: ESQ1 and nothing else. Strap to ground: MicroPython's REPL."""

from machine import Pin

from qrng import board

if Pin(board.STRAP, Pin.IN, Pin.PULL_UP).value():
    from qrng import startup

    startup.power_up()

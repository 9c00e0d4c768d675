"""The two LEDs: the one whose photons are counted, and the one a person sees."""

from machine import PWM, Pin

from . import board

_BLINK_US = 100000  # alarm: 5 Hz


class Source:
    """The light source: off and four levels."""

    def __init__(self, levels: tuple[int, int, int, int]) -> None:
        """`levels` are PWM duties in 1/65535."""
        self._duties = (0, levels[0], levels[1], levels[2], levels[3])
        self._pwm = PWM(Pin(board.LED_PWM), freq=board.PWM_HZ, duty_u16=0)

    def set(self, level: int) -> None:
        """Go to a level, 0 (off) to 4."""
        self._pwm.duty_u16(self._duties[level])


class Indicator:
    """The status LED: steady when all is well, fast blinking during an alarm."""

    def __init__(self) -> None:
        """Light it."""
        self._pin = Pin(board.STATUS_LED, Pin.OUT, value=1)
        self.alarmed = False

    def tick(self, now_us: int) -> None:
        """Show the pattern; called from the main loop."""
        self._pin.value(now_us // _BLINK_US % 2 if self.alarmed else 1)

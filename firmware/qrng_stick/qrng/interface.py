"""What core wants of the hardware: implemented by front.py on the chip and by the noise model in tests."""


class Front:
    """A front end that samples without pause into blocks of 480 samples (u16, little endian, 960 bytes)."""

    simulated = True  # front.py, which has a photodiode, says False
    overruns = 0  # blocks lost since power-up

    def take(self) -> tuple[bytearray, int, int] | None:
        """Return (block, number of its first sample, time of its last one in us), or None if none is complete.

        The block is valid until the next call.
        """
        raise NotImplementedError

    def restart(self) -> None:
        """Begin a new contiguous run; sample numbers go on."""
        raise NotImplementedError

    def led(self, level: int) -> None:
        """Set the LED to a level, 0 (off) to 4."""
        raise NotImplementedError

    def alarm(self, on: bool) -> None:
        """Show or end the alarm pattern on the status LED."""
        raise NotImplementedError

    def monitor(self) -> int:
        """Return the photocurrent monitor in 1/16 ADC code; interrupts the run."""
        raise NotImplementedError

    def temperature(self) -> int:
        """Return the die's temperature in 1/100 degree C; interrupts the run."""
        raise NotImplementedError

    def now_us(self) -> int:
        """Return microseconds since power-up."""
        raise NotImplementedError

    def strapped(self) -> bool:
        """Whether the strap is closed now."""
        raise NotImplementedError

    def bootloader(self) -> None:
        """Reset into the boot ROM; does not return on the chip."""
        raise NotImplementedError

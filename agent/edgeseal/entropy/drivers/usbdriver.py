"""The part that drivers over one claimed USB interface have in common: identify, claim, describe, close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeseal.entropy.drivers.base import Description
from edgeseal.entropy.drivers.usb import Port

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Profile
    from edgeseal.entropy.drivers.pins import Pin
    from edgeseal.entropy.drivers.usb import Attached


class UsbDriver:
    """Holds the claimed port and the description; families add `read` and their symbols."""

    def __init__(self, found: Attached, pin: Pin, profile: Profile, *, detach: bool = False) -> None:
        """Check the pinned descriptors, then claim interface 0. Raises DriverError."""
        self._profile = profile
        try:
            pin.check(found)
            self._texts = found.texts()
            self._port = Port(found, detach=detach)
        except BaseException:
            found.release()
            raise
        self._found = found

    @property
    def profile(self) -> Profile:
        """Name, class and evidence as declared."""
        return self._profile

    def describe(self) -> Description:
        """Return what the device said at opening."""
        return self._describe()

    def close(self) -> None:
        """Give the device back. Idempotent; never raises."""
        self._port.close()

    def _describe(self, *, firmware: str | None = None, rate_bits_s: int | None = None) -> Description:
        manufacturer, product, serial = self._texts
        return Description(
            self._profile.name,
            self._found.path,
            self._found.vid,
            self._found.pid,
            manufacturer,
            product,
            serial,
            firmware,
            rate_bits_s,
        )

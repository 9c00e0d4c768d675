"""What a driver of a noise device is: four small records, one Protocol, and its errors by what the caller does next.

    SourceError
    └── DriverError      the device did not deliver; the message says which device and what was seen
        ├── Gone         unplugged: close, scan again                               (errno 19, 5, 71)
        ├── Hung         nothing came in time: try again, after three reset         (errno 110)
        ├── Stalled      the endpoint is halted: close and open again               (errno 32)
        ├── Busy         another process or kernel driver holds it: wait            (errno 16, 13)
        └── Refused      it is not what it claims, or unhealthy by its own word: do not use
            └── Replayed     what came was recorded earlier or forged: a security event, latch

No state machine, no statistics and no threads here; `read` is called by one thread, `close` may be called by another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgeseal.entropy.source import Profile, SourceError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping

__all__ = [
    "Busy",
    "Calibrated",
    "Calibration",
    "Description",
    "Driver",
    "DriverError",
    "Found",
    "Gone",
    "Hung",
    "Options",
    "Profile",
    "Reading",
    "Refused",
    "Replayed",
    "Stalled",
    "Symbols",
]


class DriverError(SourceError):
    """The device did not deliver samples."""


class Gone(DriverError):  # noqa: N818 -- what befell the device is its name
    """The device was unplugged, or its bus failed in a way that looks the same."""


class Hung(DriverError):  # noqa: N818 -- what befell the device is its name
    """The device sent nothing, or not enough, within the time given."""


class Stalled(DriverError):  # noqa: N818 -- what befell the device is its name
    """The endpoint is halted and clearing the halt once did not help."""


class Busy(DriverError):  # noqa: N818 -- what befell the device is its name
    """Another process, a kernel driver or the permissions of the node keep us out."""


class Refused(DriverError):  # noqa: N818 -- what befell the device is its name
    """Wrong or hostile descriptor, simulated, or unhealthy by its own word: nothing of it may be used."""


class Replayed(Refused):
    """Samples that were recorded earlier, repeated or forged. Latched by the caller: it is no accident."""


@dataclass(frozen=True, slots=True)
class Symbols:
    """What one sample of a driver is, and what is claimed about it."""

    bits: int  # width of one sample: 1, 8, 10, 12 or 16
    claim: float  # min-entropy claimed per sample, bits; what blocks are counted with, never more than was argued for
    raw: bool  # raw noise (health tests mean something) or already conditioned by the device (they mean little)

    def __post_init__(self) -> None:
        """Refuse a claim that no sample of that width can hold."""
        if self.bits not in (1, 8, 10, 12, 16) or not 0 <= self.claim <= self.bits:
            raise ValueError(f"a sample of {self.bits} bits cannot carry {self.claim} bits of entropy")


@dataclass(frozen=True, slots=True)
class Reading:
    """One frame of samples, in the order the device took them."""

    samples: array[int] | bytes = field(repr=False)  # index = sample; 1-bit samples are bytes 0 and 1; secret
    first: int | None = None  # number of samples[0] when the device counts its samples
    device_us: int | None = None  # the device's clock when the frame was finished, µs
    flags: int = 0  # the constants of edgeseal.stick.frame, translated from whatever the device reports


@dataclass(frozen=True, slots=True)
class Description:
    """What a device says it is. Strings come from the device: bounded and printable, but not to be trusted."""

    kind: str  # name of the profile, for example "edgeseal-qrng"
    path: str  # where it is attached: "usb:1-4.2", "/dev/ttyUSB0"
    vid: int | None = None
    pid: int | None = None
    manufacturer: str | None = None
    product: str | None = None
    serial: str | None = None
    firmware: str | None = None
    rate_bits_s: int | None = None  # as the device reports or its maker states, raw bits per second


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fit variance(I) = off + slope*I + quadratic*I^2 of a shot-noise source (entropy.md, 4.2), in LSB units."""

    mean: float  # LSB, at the operating level
    sigma: float  # LSB, at the operating level
    off_variance: float  # LSB^2 with the light off: the classical part
    slope: float  # LSB^2 per LSB of photocurrent monitor: the shot noise, linear in the current
    quadratic: float  # LSB^2 per LSB^2: classical intensity noise
    excess: float  # quadratic*I / slope at the operating level; below 0.1 is healthy
    qcnr_db: float  # quantum-to-classical noise ratio at the operating level


@runtime_checkable
class Driver(Protocol):
    """An open device. Opening claimed it, checked what it says it is and started its stream."""

    @property
    def profile(self) -> Profile:
        """Name, class and evidence as declared by the driver (never inferred from the samples)."""

    @property
    def symbols(self) -> Symbols:
        """What the samples of `read` are."""

    def describe(self) -> Description:
        """Return what the device says it is; does no I/O."""

    def read(self, *, timeout: float) -> Reading:
        """Return one frame, complete, or raise within `timeout` seconds. Raises DriverError and its subclasses."""

    def close(self) -> None:
        """Give the device back. May be called twice and after a loss; never raises."""


@runtime_checkable
class Calibrated(Driver, Protocol):
    """A driver whose device can measure its own quantum-to-classical noise ratio."""

    def calibrate(self, *, timeout: float) -> Calibration | None:
        """Run the sweep; None when the device's firmware has none. Samples read meanwhile are discarded."""


@dataclass(frozen=True, slots=True)
class Options:
    """What opening may need to know."""

    lab: bool = False  # accept simulated sticks and recorded files; never on a device that makes keys
    stick_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # serial -> K_stick, from manufacturing
    conditioned: bool = False  # ask for the device's own conditioned output where it offers both


@dataclass(frozen=True, slots=True)
class Found:
    """A device a scan saw and what it would be opened as. Nothing was claimed yet."""

    description: Description
    profile: Profile
    opener: Callable[[Options], Driver] = field(repr=False)

    def open(self, options: Options | None = None) -> Driver:
        """Claim, identify and start the device. Raises DriverError and its subclasses."""
        return self.opener(options or Options())

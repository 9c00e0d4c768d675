"""The edgeseal QRNG stick (docs/spec/qrng-stick.md): shot noise of an LED on a photodiode, read raw over ESQ1.

Opening pins every descriptor, asks GET_INFO, sets a fresh nonce and starts the stream. With the stick's key every frame
is then authenticated, so nothing recorded earlier and nothing from another device passes; without it (an unpaired
stick) only numbers and clocks can be checked, and the profile's evidence says "none".

The frame codec, the MAC and the calibration fit are edgeseal.stick's, the same files that run on the stick.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, Literal

from edgeseal.entropy.drivers.base import (
    Calibration,
    Hung,
    Options,
    Profile,
    Reading,
    Refused,
    Stalled,
    Symbols,
)
from edgeseal.entropy.drivers.freshness import Freshness
from edgeseal.entropy.drivers.pins import Pin
from edgeseal.entropy.drivers.usbdriver import UsbDriver
from edgeseal.stick import calibration, frame, mac, messages

if TYPE_CHECKING:
    from edgeseal.entropy.drivers.base import Description
    from edgeseal.entropy.drivers.usb import Attached

NAME: Final = "edgeseal-qrng"
CLAIM: Final = 4.0  # bits of 12 per sample: the model gives 7.4, entropy.md decision 6
PIN: Final = Pin(
    frozenset({(messages.VENDOR_ID, messages.PRODUCT_ID)}),
    manufacturer=messages.MANUFACTURER,
    product=messages.PRODUCT,
    serial=r"[0-9a-fA-F]{16}",
    interface=(0xFF, 0x51, 0x01),
    interface_text=messages.INTERFACE,
    endpoints=frozenset({messages.ENDPOINT_IN}),
    only=True,
    packets=frozenset({messages.PACKET_LENGTH}),
    release=messages.DEVICE_RELEASE,
    power=(0x80, 50),  # bus powered, 100 mA in units of 2
)
PROFILE: Final = Profile(NAME, "quantum", "model+calibration")  # of a paired stick
_CLASSES: Final[dict[int, Literal["unknown", "quantum", "classical"]]] = {
    messages.UNKNOWN: "unknown",
    messages.QUANTUM: "quantum",
    messages.CLASSICAL: "classical",
}
_GARBAGE: Final = 8 * frame.FRAME_LENGTH  # bytes without one valid frame in them before the opening is given up


class Stick(UsbDriver):
    """An open stick."""

    def __init__(self, found: Attached, options: Options) -> None:
        """Pin, claim, identify, set the nonce, start the stream. Raises DriverError."""
        super().__init__(found, PIN, PROFILE)
        self._lab = options.lab
        self._loose = bytearray()  # what was read and belongs to no frame yet
        self.damaged = 0  # times the stream had to be found again
        try:
            self._info = self._identify()
            self._key = self._paired_key(options)
            evidence: Literal["model+calibration", "none"] = "model+calibration" if self._key else "none"
            self._profile = Profile(NAME, _CLASSES[self._info.source_class], evidence)
            self.symbols = Symbols(bits=self._info.bits, claim=min(CLAIM, self._info.h_claim / 256), raw=True)
            self._freshness = self._start()
        except BaseException:
            self.close()
            raise

    def describe(self) -> Description:
        """Return strings, firmware version and raw bits per second."""
        version = "{}.{}.{}".format(*self._info.firmware)
        return self._describe(firmware=version, rate_bits_s=self._info.rate * self._info.bits)

    def read(self, *, timeout: float) -> Reading:
        """Return the 480 samples of the next RAW frame. Raises DriverError, Replayed for what is not fresh."""
        deadline = time.monotonic() + timeout
        while (got := self._frame(deadline)).kind != frame.RAW:
            pass  # HEALTH and INFO frames say nothing that RAW flags do not; an unasked sweep is judged when asked for
        try:
            samples = got.samples()
        except frame.FrameError as e:
            raise Refused(f"{self._found.path}: {e}") from e
        gap = frame.OVERRUN if self._freshness.take_gap() else 0
        return Reading(samples, got.first_sample, got.t_us, got.flags | gap)

    def calibrate(self, *, timeout: float) -> Calibration | None:
        """Run the LED sweep and fit it. Raises DriverError; Refused if nothing can be fitted (no light)."""
        deadline = time.monotonic() + timeout
        self._request(messages.RUN_CAL)
        while (got := self._frame(deadline)).kind != frame.CAL:
            pass
        if got.flags & frame.CAL_INVALID:
            raise Refused(f"{self._found.path}: the stick calls its own calibration invalid")
        try:
            fit = calibration.fit(messages.decode_sweep(got.payload), self._info.nominal)
        except (messages.MessageError, calibration.CalibrationError) as e:
            raise Refused(f"{self._found.path}: {e}", hint="the stick's light path is broken: replace it") from e
        return Calibration(
            mean=fit.mean,
            sigma=fit.sigma,
            off_variance=fit.off,
            slope=fit.b,
            quadratic=fit.c,
            excess=fit.excess,
            qcnr_db=fit.qcnr_db,
        )

    def _identify(self) -> messages.Info:
        """Return GET_INFO if it fits the descriptors and, outside the lab, real hardware."""
        try:
            info = messages.Info.decode(self._port.control_in(messages.TYPE_IN, messages.GET_INFO, frame.INFO_LENGTH))
        except messages.MessageError as e:
            raise Refused(f"{self._found.path}: {e}") from e
        if info.serial != (self._texts[2] or "").lower():
            raise Refused(f"{self._found.path}: its USB serial number and its GET_INFO name two different sticks")
        if info.features & messages.INFO_SIMULATED and not self._lab:
            raise _simulated(self._found.path)
        return info

    def _paired_key(self, options: Options) -> bytes | None:
        """Return K_stick. A stick we hold a key for must use it, or unpaired ones could take its place."""
        key = options.stick_keys.get(self._info.serial)
        if key is not None and not self._info.features & messages.PAIRED:
            raise Refused(
                f"{self._found.path}: stick {self._info.serial} was paired with this device and says it has no key",
                hint="pair it again at the manufacturing station if it was reflashed there",
            )
        return key

    def _start(self) -> Freshness:
        """Stop whatever streamed before, set a fresh nonce, stream."""
        self._request(messages.SET_STREAM, value=messages.STOP)
        self._port.drain(messages.ENDPOINT_IN, frame.FRAME_LENGTH)
        nonce = os.urandom(mac.NONCE_LENGTH)
        self._request(messages.SET_NONCE, nonce)
        key = None
        if self._key is not None:
            key = mac.Hmac(mac.session_key(self._key, nonce, self._info.boot_id, self._info.serial))
        self._request(messages.SET_STREAM, value=messages.STREAM_RAW)
        return Freshness(self._found.path, self._info, key)

    def _request(self, number: int, data: bytes = b"", *, value: int = 0) -> None:
        self._port.control_out(messages.TYPE_OUT, number, data, value=value)

    def _frame(self, deadline: float) -> frame.Frame:
        """Return the next valid, fresh frame. Raises Hung at the deadline, Stalled if nothing valid comes."""
        seen = 0
        while seen <= _GARBAGE:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Hung(f"{self._found.path}: no valid frame in time")
            data = self._port.read(messages.ENDPOINT_IN, frame.FRAME_LENGTH, timeout=left)
            seen += len(data)
            got = self._decoded(data)
            if got is None:
                continue
            if got.flags & frame.SIMULATED and not self._lab:
                raise _simulated(self._found.path)
            if self._freshness.accepts(got):
                return got
        raise Stalled(f"{self._found.path}: {seen} bytes without a valid frame", hint="bad cable, or no ESQ1 stick")

    def _decoded(self, data: bytearray) -> frame.Frame | None:
        """Return the frame that `data` is, or the first one found in what is loose; None if there is none yet."""
        if not self._loose:
            try:
                return frame.decode(data)
            except frame.FrameError:
                self.damaged += 1
        self._loose += data
        at = frame.find_frame(self._loose)
        if at < 0:
            del self._loose[: -(frame.FRAME_LENGTH - 1)]
            return None
        end = at + frame.FRAME_LENGTH
        got = frame.decode(self._loose[at:end])
        del self._loose[:end]
        return got


def _simulated(path: str) -> Refused:
    return Refused(
        f"{path}: a simulated stick: its samples come from a program, not from light",
        hint="it is accepted only in the lab (`lab = true`), never where keys are made",
    )

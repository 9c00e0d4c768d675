"""The stick on the bus: descriptors, control requests, the bulk IN endpoint. Everything else is core's.

No built-in driver beside it: an open REPL would let any process of the host rewrite the stick.
"""

import machine

from edgeseal.stick import messages

from .core import Stick

_SETUP, _ACK = 1, 3  # stages of a control transfer, as MicroPython numbers them


class Link:
    """machine.USBDevice carrying one Stick."""

    def __init__(self, stick: Stick, serial: str) -> None:
        """Describe the device; `activate` shows it to the host."""
        self._stick = stick
        self._usb = machine.USBDevice()
        self._open = self._sending = False
        self._usb.builtin_driver = self._usb.BUILTIN_NONE  # pyright: ignore[reportAttributeAccessIssue]  not in the stubs
        self._usb.config(
            messages.DEVICE_DESCRIPTOR,
            messages.CONFIGURATION_DESCRIPTOR,
            messages.STRINGS[:3] + (serial, messages.INTERFACE),  # noqa: RUF005  MicroPython has no (*a, b)
            open_itf_cb=self._opened,
            reset_cb=self._reset,
            control_xfer_cb=self._control,
            xfer_cb=self._sent,
        )

    def activate(self) -> None:
        """Appear on the bus."""
        self._usb.active(True)

    @property
    def idle(self) -> bool:
        """Whether a frame may be submitted."""
        return not self._sending

    def send(self, frame: bytearray) -> None:
        """Submit one frame; dropped when no host has configured the device. `frame` must not change until `idle`."""
        self._sending = self._open and self._usb.submit_xfer(messages.ENDPOINT_IN, frame)

    def _control(self, stage: int, packet: memoryview) -> bool | bytes | bytearray:
        """Answer a control transfer: decide at SETUP, act at ACK."""
        if stage == _SETUP:
            answer = self._stick.request(packet)
            return False if answer is None else answer or True
        if stage == _ACK:
            self._stick.commit(packet)
        return True

    def _opened(self, _interface: memoryview) -> None:
        """Note that the host has configured the device."""
        self._open = True

    def _reset(self) -> None:
        """Forget what was under way: it will never complete."""
        self._open = self._sending = False
        self._stick.bus_reset()

    def _sent(self, _endpoint: int, _result: int, _length: int) -> None:
        """Note that the host has taken a frame; a failed one is a gap that its sequence numbers show."""
        self._sending = False

"""What finished sticks on the bus say about themselves: GET_INFO and GET_STATUS, without disturbing a stream.

Control requests to interface 0 need the interface, so a stick that an agent is reading answers "busy".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeseal.entropy.drivers import usb
from edgeseal.entropy.drivers.base import DriverError
from edgeseal.entropy.drivers.stick import PIN
from edgeseal.stick import frame, messages

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Found:
    """One stick: its records, or why it could not be asked."""

    path: str
    info: messages.Info | None = None
    status: messages.Status | None = None
    problem: str | None = None


def sticks(backend: Any = None) -> Iterator[Found]:  # noqa: ANN401 -- pyusb has no types
    """Yield every stick on the bus. Raises DriverError if the bus cannot be read at all."""
    backend = usb.fresh_backend() if backend is None else backend
    for found in usb.attached(backend, lambda vid, pid: (vid, pid) in PIN.ids):
        try:
            if PIN.names(found.texts()):
                yield _asked(found)
        except (DriverError, messages.MessageError) as e:
            yield Found(found.path, problem=str(e))
        finally:
            found.release()


def _asked(found: usb.Attached) -> Found:
    PIN.check(found)
    port = usb.Port(found)
    try:
        info = messages.Info.decode(port.control_in(messages.TYPE_IN, messages.GET_INFO, frame.INFO_LENGTH))
        status = messages.Status.decode(port.control_in(messages.TYPE_IN, messages.GET_STATUS, frame.STATUS_LENGTH))
    finally:
        port.close()
    return Found(found.path, info, status)

"""The manufacturing line's dialogue: a device gets its identity over a serial line (docs/spec/provisioning.md).

    Station, FactoryReset    the station's roles: feed(bytes), outgoing(), wait(), state, result, verdict
    Device, Dialogue         the device's role: one Dialogue for the device, one Device for each of its lines
    Order, Place, Offer      what a batch wants; a new device's name; what a station must remember
    Book                     a station's memory: admit, granted, provisioned, locked, finished
    Home                     a device's durable side
    Verdict, RefusalError    pass or fail, why, and what to do

Sans-IO: clock and randomness are passed in; bytes go in and out, and may be lost, doubled, damaged or mixed.
Both ends may be killed at any point; the next dialogue ends with the same identity.
"""

from edgeseal.provisioning.conversation import BYTES_PER_SECOND, Conversation
from edgeseal.provisioning.device import Device, Dialogue
from edgeseal.provisioning.home import Home, Origin, Stage
from edgeseal.provisioning.machine import Machine, Step
from edgeseal.provisioning.messages import Board, Destroyed, EntropyReport, Identity, Package
from edgeseal.provisioning.offer import Book, Offer, Order, Place, Provisioned
from edgeseal.provisioning.reset import CONTEXT, FactoryReset
from edgeseal.provisioning.station import Station
from edgeseal.provisioning.transcript import commitment, pin
from edgeseal.provisioning.verdict import REMEDIES, Code, RefusalError, Verdict

__all__ = [
    "BYTES_PER_SECOND",
    "CONTEXT",
    "REMEDIES",
    "Board",
    "Book",
    "Code",
    "Conversation",
    "Destroyed",
    "Device",
    "Dialogue",
    "EntropyReport",
    "FactoryReset",
    "Home",
    "Identity",
    "Machine",
    "Offer",
    "Order",
    "Origin",
    "Package",
    "Place",
    "Provisioned",
    "RefusalError",
    "Stage",
    "Station",
    "Step",
    "Verdict",
    "commitment",
    "pin",
]

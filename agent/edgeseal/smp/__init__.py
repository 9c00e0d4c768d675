"""SMP, the Simple Management Protocol of Zephyr and MCUmgr, over a console (docs/spec/provisioning.md §2).

    lines      packets as base64 lines with a CRC that share a console with anything else
    packet     the 8-byte header and the CBOR map behind it
    os_group   group 0: echo, parameters, application info, so that existing tools can talk to a device

Pure: bytes in, bytes out. Not here: group 64, which is edgeseal.provisioning, and the ports.
"""

from edgeseal.smp.lines import MAX_PACKET, LineDecoder, crc16, encode_lines
from edgeseal.smp.os_group import OsGroup
from edgeseal.smp.packet import HEADER_LENGTH, Op, Packet, Rc

__all__ = [
    "HEADER_LENGTH",
    "MAX_PACKET",
    "LineDecoder",
    "Op",
    "OsGroup",
    "Packet",
    "Rc",
    "crc16",
    "encode_lines",
]

"""The ESQ1 frame: 1024 bytes, little endian, one format for everything the stick sends (docs/spec/qrng-stick.md §4).

    0 magic "ESQ1" | 4 version u8 | 5 kind u8 | 6 flags u16 | 8 boot_id u32 | 12 seq u64 | 20 t_us u64 |
    28 first_sample u64 | 36 count u16 | 38 payload_length u16 | 40 bits u8 | 41 channel u8 | 42 led u8 | 43 zero u8 |
    44 payload, zero padded to 960 | 1004 MAC 16 | 1020 CRC-32

1024 bytes are 16 full-speed packets: no short packet, no zero-length packet, and every bulk read is a multiple of the
packet size. The CRC tells damage from forgery; the MAC (zeros from an unpaired stick) is checked by whoever holds the
session key. Not here: what the payload of CAL, HEALTH and INFO means (messages.py).
"""

import binascii
import struct
from array import array

from . import mac

MAGIC = b"ESQ1"
VERSION = 1
FRAME_LENGTH = 1024
HEADER_LENGTH = 44
PAYLOAD_LENGTH = 960
SIGNED_LENGTH = HEADER_LENGTH + PAYLOAD_LENGTH  # what MAC covers
SAMPLES = 480  # of a RAW frame
_CRC_AT = FRAME_LENGTH - 4

RAW, CAL, HEALTH, INFO = 1, 2, 3, 4
KINDS = (RAW, CAL, HEALTH, INFO)
CAL_RECORD_LENGTH, STATUS_LENGTH, INFO_LENGTH = 37, 32, 64
LEVELS = 5  # LED off, L1 to L4
_ITEM_LENGTH = {RAW: 2, CAL: CAL_RECORD_LENGTH, HEALTH: STATUS_LENGTH, INFO: INFO_LENGTH}
_ITEMS = {RAW: SAMPLES, CAL: LEVELS, HEALTH: 1, INFO: 1}

LED_ON = 1 << 0
STARTUP_OK = 1 << 1
RCT_ALARM = 1 << 2
APT_ALARM = 1 << 3
OVERRUN = 1 << 4
SATURATED = 1 << 5
CAL_INVALID = 1 << 6
SIMULATED = 1 << 15  # set by every build that has no photodiode; refused outside test mode
_KNOWN_FLAGS = LED_ON | STARTUP_OK | RCT_ALARM | APT_ALARM | OVERRUN | SATURATED | CAL_INVALID | SIMULATED

_HEADER = "<4sBBHIQQQHHBBBB"
_NO_MAC = bytes(mac.TAG_LENGTH)


class FrameError(ValueError):
    """The bytes are no ESQ1 frame: says what was expected and what came."""


class Frame:
    """One decoded frame. `payload` has its padding removed; `signed` is what the MAC covers."""

    __slots__ = (
        "bits",
        "boot_id",
        "channel",
        "count",
        "first_sample",
        "flags",
        "kind",
        "led",
        "payload",
        "seq",
        "signed",
        "t_us",
        "tag",
    )

    def __init__(self, buf: bytes) -> None:
        """Take the fields of 1024 bytes that `decode` has checked."""
        (_, _, self.kind, self.flags, self.boot_id, self.seq, self.t_us, self.first_sample, self.count, length) = (
            struct.unpack_from("<4sBBHIQQQHH", buf, 0)
        )
        self.bits, self.channel, self.led = buf[40], buf[41], buf[42]
        self.signed = buf[:SIGNED_LENGTH]
        self.payload = buf[HEADER_LENGTH : HEADER_LENGTH + length]
        self.tag = buf[SIGNED_LENGTH:_CRC_AT]

    def samples(self) -> "array[int]":
        """Return the samples of a RAW frame, array('H'). Raises FrameError for another kind or a code too wide."""
        if self.kind != RAW:
            raise FrameError(f"samples are in RAW frames (kind {RAW}), this is kind {self.kind}")
        codes = array("H", struct.unpack(f"<{self.count}H", self.payload))
        if max(codes) >> self.bits:
            raise FrameError(f"samples of {self.bits} bits expected, one is {max(codes)}")
        return codes

    def authentic(self, key: mac.Hmac) -> bool:
        """Whether the frame carries the tag of this session's key."""
        return mac.equal(self.tag, key.tag(self.signed))


def put_header(
    buf: bytearray,
    *,
    kind: int,
    flags: int,
    boot_id: int,
    seq: int,
    t_us: int,
    first_sample: int,
    count: int,
    bits: int,
    channel: int,
    led: int,
) -> None:
    """Write the 44 header bytes of a frame into `buf` (1024 bytes); the payload length follows from kind and count."""
    length = count * _ITEM_LENGTH[kind]
    header = (MAGIC, VERSION, kind, flags, boot_id, seq, t_us, first_sample, count, length, bits, channel, led, 0)
    struct.pack_into(_HEADER, buf, 0, *header)


def seal(buf: bytearray, key: mac.Hmac | None) -> None:
    """Write MAC (zeros without a key) and CRC-32 into a frame whose header and payload are complete."""
    view = memoryview(buf)
    buf[SIGNED_LENGTH:_CRC_AT] = key.tag(view[:SIGNED_LENGTH]) if key else _NO_MAC
    struct.pack_into("<I", buf, _CRC_AT, binascii.crc32(view[:_CRC_AT]))


def encode(
    *,
    kind: int,
    flags: int,
    boot_id: int,
    seq: int,
    t_us: int,
    first_sample: int,
    payload: bytes | bytearray | memoryview,
    bits: int = 12,
    channel: int = 0,
    led: int = 0,
    key: mac.Hmac | None = None,
) -> bytes:
    """Return one frame. `payload` is the samples as u16 little endian, or the records of CAL, HEALTH, INFO.

    Raises FrameError if `payload` has not the length its kind wants.
    """
    _check_kind(kind)
    count, rest = divmod(len(payload), _ITEM_LENGTH[kind])
    if rest:
        raise FrameError(f"kind {kind} has items of {_ITEM_LENGTH[kind]} bytes, not {len(payload)} in all")
    _check_count(kind, count)
    buf = bytearray(FRAME_LENGTH)
    put_header(
        buf,
        kind=kind,
        flags=flags,
        boot_id=boot_id,
        seq=seq,
        t_us=t_us,
        first_sample=first_sample,
        count=count,
        bits=bits,
        channel=channel,
        led=led,
    )
    buf[HEADER_LENGTH : HEADER_LENGTH + len(payload)] = payload
    seal(buf, key)
    return bytes(buf)


def decode(buf: bytes | bytearray | memoryview) -> Frame:
    """Return the frame in exactly 1024 bytes. Raises FrameError for anything but a whole, undamaged ESQ1 frame."""
    frame = bytes(buf)
    if len(frame) != FRAME_LENGTH:
        raise FrameError(f"a frame has {FRAME_LENGTH} bytes, these are {len(frame)}")
    if frame[:4] != MAGIC:
        raise FrameError("a frame starts with 'ESQ1'")
    crc = struct.unpack_from("<I", frame, _CRC_AT)[0]
    if crc != binascii.crc32(frame[:_CRC_AT]):
        raise FrameError("CRC-32 of the frame does not match: bytes were lost or changed")
    _check_fields(frame)
    return Frame(frame)


def find_frame(buf: bytes | bytearray, start: int = 0) -> int:
    """Return where the first whole, valid frame at or after `start` begins, or -1: resynchronisation after a loss.

    On -1 keep the last 1023 bytes: a frame may begin in them.
    """
    at = buf.find(MAGIC, start)
    while at >= 0 and at + FRAME_LENGTH <= len(buf):
        try:
            decode(buf[at : at + FRAME_LENGTH])
        except FrameError:
            at = buf.find(MAGIC, at + 1)
        else:
            return at
    return -1


def _check_fields(frame: bytes) -> None:
    """Refuse what a correct CRC cannot excuse: another version, unknown kinds and flags, lengths that disagree."""
    fields = struct.unpack_from(_HEADER, frame, 0)
    version, kind, flags = fields[1], fields[2], fields[3]
    count, length, bits, _channel, led, zero = fields[8:]
    if version != VERSION:
        raise FrameError(f"ESQ1 version {VERSION} expected, version {version} came: update edgeseal")
    _check_kind(kind)
    _check_count(kind, count)
    if flags & ~_KNOWN_FLAGS:
        raise FrameError(f"flags 0x{flags & ~_KNOWN_FLAGS:04x} are not known to version {VERSION}")
    if length != count * _ITEM_LENGTH[kind]:
        raise FrameError(f"payload of {count * _ITEM_LENGTH[kind]} bytes expected, {length} declared")
    if not 1 <= bits <= 16 or led >= LEVELS or zero:  # noqa: PLR2004  a sample is a u16
        raise FrameError(f"bits {bits}, LED level {led}, reserved {zero}: 1 to 16, 0 to 4, 0 expected")
    if any(frame[HEADER_LENGTH + length : SIGNED_LENGTH]):
        raise FrameError("bytes after the payload must be zero")


def _check_kind(kind: int) -> None:
    if kind not in KINDS:
        raise FrameError(f"frame kinds are 1 RAW, 2 CAL, 3 HEALTH, 4 INFO; kind {kind} came")


def _check_count(kind: int, count: int) -> None:
    if count != _ITEMS[kind]:
        raise FrameError(f"kind {kind} carries {_ITEMS[kind]} items, not {count}")

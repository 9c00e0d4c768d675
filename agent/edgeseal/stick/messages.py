"""Control requests of the stick and the three records they and its frames carry (docs/spec/qrng-stick.md §3, §5).

Requests are *class* requests to interface 0 (bmRequestType 0xA1 in, 0x21 out): MicroPython's USB layer stalls vendor
requests. Each record is one class with `encode`, `decode` and exact lengths; reserved bytes are zero and checked.
"""

import struct

from . import frame

# USB identity (docs/spec/qrng-stick.md §2): the host pins all of it, VID:PID alone proves nothing.
VENDOR_ID = 0x1209  # pid.codes
PRODUCT_ID = 0x0001  # its test PID until one is allocated
DEVICE_RELEASE = 0x0100  # bcdDevice: the version of this protocol
MANUFACTURER = "edgeseal"
PRODUCT = "edgeseal QRNG"
INTERFACE = "edgeseal-qrng/1"
ENDPOINT_IN = 0x81
PACKET_LENGTH = 64
DEVICE_DESCRIPTOR = struct.pack(
    "<BBHBBBBHHHBBBB", 18, 1, 0x0200, 0, 0, 0, 64, VENDOR_ID, PRODUCT_ID, DEVICE_RELEASE, 1, 2, 3, 1
)
# configuration: bus powered, 100 mA; interface 0: class FF/51/01, string 4; bulk IN 0x81 of 64 bytes
CONFIGURATION_DESCRIPTOR = bytes.fromhex("0902190001010080320904000001ff51010407058102400000")
STRINGS = (None, MANUFACTURER, PRODUCT, None, INTERFACE)  # 3 is the serial: the chip's unique id in hex

GET_INFO = 0x01
GET_STATUS = 0x02
SET_STREAM = 0x10
SET_NONCE = 0x11
RUN_CAL = 0x12
SELF_TEST = 0x13
BOOTLOADER = 0x7F
TYPE_IN = 0xA1
TYPE_OUT = 0x21
# request -> (bmRequestType, length of the data stage)
REQUESTS = {
    GET_INFO: (TYPE_IN, frame.INFO_LENGTH),
    GET_STATUS: (TYPE_IN, frame.STATUS_LENGTH),
    SET_STREAM: (TYPE_OUT, 0),
    SET_NONCE: (TYPE_OUT, 32),
    RUN_CAL: (TYPE_OUT, 0),
    SELF_TEST: (TYPE_OUT, 0),
    BOOTLOADER: (TYPE_OUT, 0),
}
STOP, STREAM_RAW, STREAM_CALIBRATED = 0, 1, 2  # wValue of SET_STREAM; 2: a sweep every wIndex >> 8 seconds

UNKNOWN, QUANTUM, CLASSICAL = 0, 1, 2  # source class
IDLE, STARTUP, STREAMING, CALIBRATING, ALARMED = 0, 1, 2, 3, 4  # state in GET_STATUS
RP2040, RP2350 = 1, 2  # board
PAIRED, STRAPPED, INFO_SIMULATED = 1 << 0, 1 << 1, 1 << 15  # features in GET_INFO
_KNOWN_FEATURES = PAIRED | STRAPPED | INFO_SIMULATED

_INFO = "<4sBBBB8sBBHI4HBBHI8s16s"
_STATUS = "<BBHQIHHhHII"
_RECORD = "<BIQQQHHHH"
_SETUP = "<BBHHH"


class MessageError(ValueError):
    """The bytes are not the record they should be: says what was expected and what came."""


class Setup:
    """One accepted control request: `request` number, `value` and the high byte of wIndex as `option`."""

    __slots__ = ("length", "option", "request", "value")

    def __init__(self, request: int, value: int, option: int, length: int) -> None:
        """Take fields that `accept` has checked."""
        self.request, self.value, self.option, self.length = request, value, option, length

    @classmethod
    def accept(cls, setup: bytes | bytearray | memoryview) -> "Setup | None":
        """Return the request in an 8-byte setup packet, or None if the stick must answer STALL.

        An IN request may ask for less than the whole record (USB 2.0 §9.3.5); an OUT data stage has exactly its length.
        """
        kind, number, value, index, length = struct.unpack(_SETUP, setup)
        want = REQUESTS.get(number)
        if want is None or want[0] != kind or index & 0xFF:
            return None
        if length != want[1] and (kind == TYPE_OUT or length > want[1]):
            return None
        if number == SET_STREAM:
            return cls(number, value, index >> 8, length) if value <= STREAM_CALIBRATED else None
        return cls(number, value, 0, length) if value == 0 and index == 0 else None

    def encode(self) -> bytes:
        """Return the setup packet."""
        kind = REQUESTS[self.request][0]
        return struct.pack(_SETUP, kind, self.request, self.value, self.option << 8, self.length)


class Info:
    """GET_INFO, 64 bytes: who the stick is and what it claims. Nothing here is evidence.

    unique_id 8 bytes; h_claim min-entropy per sample in 1/256 bit; rate samples per second; levels: PWM duty of L1 to
    L4 in 1/65535; nominal: the level RAW frames are taken at; firmware_hash: SHA-256[:16] of the build manifest.
    """

    __slots__ = (
        "bits",
        "board",
        "boot_id",
        "features",
        "firmware",
        "firmware_hash",
        "h_claim",
        "levels",
        "nominal",
        "rate",
        "source_class",
        "unique_id",
    )

    def __init__(
        self,
        *,
        firmware: tuple[int, int, int],
        unique_id: bytes,
        bits: int,
        source_class: int,
        h_claim: int,
        rate: int,
        levels: tuple[int, ...],
        nominal: int,
        board: int,
        features: int,
        boot_id: int,
        firmware_hash: bytes,
    ) -> None:
        """Take the fields as the class describes them."""
        self.firmware, self.unique_id, self.bits, self.source_class = firmware, unique_id, bits, source_class
        self.h_claim, self.rate, self.levels, self.nominal = h_claim, rate, levels, nominal
        self.board, self.features, self.boot_id, self.firmware_hash = board, features, boot_id, firmware_hash

    @property
    def serial(self) -> str:
        """The USB serial string: `unique_id` in hex."""
        return self.unique_id.hex()

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        head = (frame.MAGIC, frame.VERSION) + self.firmware  # noqa: RUF005  MicroPython has no (*a, *b)
        claim = (self.unique_id, self.bits, self.source_class, self.h_claim, self.rate) + self.levels  # noqa: RUF005
        tail = (self.nominal, self.board, self.features, self.boot_id, bytes(8), self.firmware_hash)
        return struct.pack(_INFO, *(head + claim + tail))

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "Info":
        """Return the record in 64 bytes. Raises MessageError."""
        f = _unpack(_INFO, data, "GET_INFO")
        if f[0] != frame.MAGIC or f[1] != frame.VERSION:
            raise MessageError(f"GET_INFO of ESQ1 version {frame.VERSION} expected, version {f[1]} came")
        if any(f[18]) or f[16] & ~_KNOWN_FEATURES:
            raise MessageError("reserved bytes of GET_INFO are not zero")
        if f[7] > CLASSICAL or not 1 <= f[6] <= 16 or not 1 <= f[14] < frame.LEVELS:  # noqa: PLR2004  u16 samples
            raise MessageError(f"GET_INFO declares source class {f[7]}, {f[6]} bits, nominal level {f[14]}")
        if not 0 < f[8] <= f[6] * 256 or not f[9]:
            raise MessageError(f"GET_INFO claims {f[8]}/256 bit of {f[6]}-bit samples at {f[9]} per second")
        return cls(
            firmware=(f[2], f[3], f[4]),
            unique_id=f[5],
            bits=f[6],
            source_class=f[7],
            h_claim=f[8],
            rate=f[9],
            levels=f[10:14],
            nominal=f[14],
            board=f[15],
            features=f[16],
            boot_id=f[17],
            firmware_hash=f[19],
        )


class Status:
    """GET_STATUS and the payload of a HEALTH frame, 32 bytes.

    flags: as in frame headers, since the last GET_STATUS; rct, apt: longest run and highest window count since then;
    temperature of the die in 1/100 degree C; v_dc: photocurrent monitor in 1/16 ADC code; uptime in seconds.
    """

    __slots__ = (
        "apt",
        "boot_id",
        "flags",
        "frames",
        "led",
        "overruns",
        "rct",
        "state",
        "temperature",
        "uptime",
        "v_dc",
    )

    def __init__(
        self,
        *,
        state: int,
        led: int,
        flags: int,
        frames: int,
        overruns: int,
        rct: int,
        apt: int,
        temperature: int,
        v_dc: int,
        boot_id: int,
        uptime: int,
    ) -> None:
        """Take the fields as the class describes them."""
        self.state, self.led, self.flags, self.frames, self.overruns = state, led, flags, frames, overruns
        self.rct, self.apt, self.temperature, self.v_dc = rct, apt, temperature, v_dc
        self.boot_id, self.uptime = boot_id, uptime

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        counts = (self.frames, self.overruns, self.rct, self.apt, self.temperature, self.v_dc)
        return struct.pack(_STATUS, self.state, self.led, self.flags, *(counts + (self.boot_id, self.uptime)))  # noqa: RUF005

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "Status":
        """Return the record in 32 bytes. Raises MessageError."""
        f = _unpack(_STATUS, data, "GET_STATUS")
        if f[0] > ALARMED or f[1] >= frame.LEVELS:
            raise MessageError(f"states 0 to 4 and LED levels 0 to 4 exist, {f[0]} and {f[1]} came")
        return cls(
            state=f[0],
            led=f[1],
            flags=f[2],
            frames=f[3],
            overruns=f[4],
            rct=f[5],
            apt=f[6],
            temperature=f[7],
            v_dc=f[8],
            boot_id=f[9],
            uptime=f[10],
        )


class Record:
    """Sums over one LED level of a calibration sweep, 37 bytes; five of them (off, L1 to L4) make a CAL payload.

    count samples x; total = sum x; squares = sum x^2; products = sum x[i] x[i+1] over the count - 1 neighbours;
    v_dc: mean of the photocurrent monitor in 1/16 ADC code; saturated: samples at either end of the range.
    """

    __slots__ = ("count", "high", "led", "low", "products", "saturated", "squares", "total", "v_dc")

    def __init__(
        self,
        *,
        led: int,
        count: int,
        total: int,
        squares: int,
        products: int,
        v_dc: int,
        saturated: int,
        low: int,
        high: int,
    ) -> None:
        """Take the fields as the class describes them."""
        self.led, self.count, self.total, self.squares, self.products = led, count, total, squares, products
        self.v_dc, self.saturated, self.low, self.high = v_dc, saturated, low, high

    @property
    def mean(self) -> float:
        """Mean in ADC codes."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Unbiased variance in ADC codes squared."""
        return (self.count * self.squares - self.total * self.total) / (self.count * (self.count - 1))

    def encode(self) -> bytes:
        """Return the 37 bytes."""
        sums = (self.total, self.squares, self.products, self.v_dc, self.saturated, self.low, self.high)
        return struct.pack(_RECORD, self.led, self.count, *sums)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "Record":
        """Return the record in 37 bytes. Raises MessageError, also for sums that no samples can have."""
        f = _unpack(_RECORD, data, "a calibration record")
        led, count, total, squares, _products, _v_dc, saturated, low, high = f
        if led >= frame.LEVELS or count < 2 or saturated > count:  # noqa: PLR2004  a variance needs two
            raise MessageError(f"calibration record of LED level {led} with {count} samples")
        if not low * count <= total <= high * count or not total * total <= count * squares:
            raise MessageError(f"calibration record of LED level {led} has sums that no samples can have")
        if squares > high * high * count or f[4] > squares:  # Cauchy-Schwarz for the neighbours
            raise MessageError(f"calibration record of LED level {led} has sums that no samples can have")
        return cls(
            led=led,
            count=count,
            total=total,
            squares=squares,
            products=f[4],
            v_dc=f[5],
            saturated=saturated,
            low=low,
            high=high,
        )


def encode_sweep(records: "list[Record]") -> bytes:
    """Return the payload of a CAL frame: the five records in the order off, L1 to L4."""
    return b"".join(r.encode() for r in records)


def decode_sweep(payload: bytes) -> "list[Record]":
    """Return the five records of a CAL frame's payload. Raises MessageError if one is missing or out of order."""
    length = frame.CAL_RECORD_LENGTH
    if len(payload) != frame.LEVELS * length:
        raise MessageError(f"a sweep has {frame.LEVELS * length} bytes, not {len(payload)}")
    records = [Record.decode(payload[i * length : (i + 1) * length]) for i in range(frame.LEVELS)]
    if [r.led for r in records] != list(range(frame.LEVELS)):
        raise MessageError("the records of a sweep go off, L1, L2, L3, L4; these do not")
    return records


def _unpack(layout: str, data: bytes | bytearray | memoryview, name: str) -> tuple:  # type: ignore[type-arg]
    """Return the fields of exactly one record."""
    if len(data) != struct.calcsize(layout):
        raise MessageError(f"{name} has {struct.calcsize(layout)} bytes, not {len(data)}")
    return struct.unpack(layout, data)

"""Write the stick's vectors: `python tests/vectors/make_stick.py`. Case by case in tests/vectors/stick/.

Written from docs/spec/qrng-stick.md with nothing but the standard library; edgeseal.stick is what the vectors test.
Samples come from SHA-256 of a counter: repeatable, and of no use as randomness.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "stick"
K_STICK, NONCE = bytes(range(32)), bytes(range(100, 132))
SERIAL, BOOT_ID = "e661640843218c2f", 0x5EED0001
KEY = hmac.digest(K_STICK, b"ESQ1" + NONCE + struct.pack("<I", BOOT_ID) + SERIAL.encode(), "sha256")
MASTER: dict[str, Any] = {
    "version": 1,
    "kind": 1,
    "flags": 0b11,
    "boot_id": BOOT_ID,
    "seq": 7,
    "t_us": 24_000 * 8,
    "first_sample": 7 * 480,
    "count": 480,
    "length": 960,
    "bits": 12,
    "channel": 0,
    "led": 3,
    "zero": 0,
}
LAYOUT = "<BBHIQQQHHBBBB"


def samples() -> list[int]:
    """480 codes around 2048."""
    stream = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(60))
    return [2048 + stream[4 * i] - stream[4 * i + 1] for i in range(480)]


def payload(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def frame(body: bytes, *, paired: bool, **changed: int) -> bytes:
    head = b"ESQ1" + struct.pack(LAYOUT, *(MASTER | changed).values())
    signed = head + body.ljust(960, b"\0")
    tag = hmac.digest(KEY, signed, "sha256")[:16] if paired else bytes(16)
    return signed + tag + struct.pack("<I", zlib.crc32(signed + tag))


def info() -> bytes:
    levels = (9000, 13000, 21000, 37000)
    head = struct.pack("<4sBBBB8sBBHI", b"ESQ1", 1, 0, 1, 0, bytes.fromhex(SERIAL), 12, 1, 1024, 20000)
    return head + struct.pack("<4HBBHI8x", *levels, 3, 2, 1, BOOT_ID) + bytes(range(16))


def status() -> bytes:
    return struct.pack("<BBHQIHHhHII", 2, 3, 0b11, 1000, 2, 4, 9, -512, 28400, BOOT_ID, 3600)


def record(led: int, values: list[int], v_dc: int) -> bytes:
    neighbours = sum(a * b for a, b in itertools.pairwise(values))
    sums = (sum(values), sum(v * v for v in values), neighbours)
    ends = sum(1 for v in values if v in (0, 4095))
    return struct.pack("<BIQQQHHHH", led, len(values), *sums, v_dc, ends, min(values), max(values))


def sweep() -> bytes:
    """Five levels whose variance is about 4 + 64 I."""
    levels = []
    for led, scale in enumerate((1, 4, 6, 9, 12)):
        values = [2048 + (v - 2048) * scale // 16 for v in samples()]
        levels.append(record(led, values, 6554 + 100 * (scale * scale - 1)))
    return b"".join(levels)


def good() -> dict[str, dict[str, Any]]:
    raw = payload(samples())
    return {
        "raw-unpaired": {"frame": frame(raw, paired=False).hex(), "samples": samples()},
        "raw-paired": {"frame": frame(raw, paired=True).hex(), "samples": samples()},
        "raw-alarms": {"frame": frame(raw, paired=True, flags=0b0111101).hex(), "samples": samples()},
        "raw-simulated": {"frame": frame(raw, paired=False, flags=0x8003).hex(), "samples": samples()},
        "raw-last": {
            "frame": frame(raw, paired=True, seq=2**64 - 1, t_us=2**64 - 1, first_sample=2**64 - 1).hex(),
            "samples": samples(),
        },
        "cal": {"frame": frame(sweep(), paired=True, kind=2, count=5, length=185).hex(), "payload": sweep().hex()},
        "health": {"frame": frame(status(), paired=True, kind=3, count=1, length=32).hex(), "payload": status().hex()},
        "info": {"frame": frame(info(), paired=True, kind=4, count=1, length=64).hex(), "payload": info().hex()},
    }


def broken() -> dict[str, dict[str, Any]]:
    raw = payload(samples())
    sound = frame(raw, paired=True)
    cases = {
        "empty": b"",
        "truncated": sound[:-1],
        "longer": sound + b"\0",
        "magic": b"ESQ2" + sound[4:],
        "crc": sound[:-1] + bytes([sound[-1] ^ 1]),
        "sample-bit": sound[:500] + bytes([sound[500] ^ 0x10]) + sound[501:],
        "version-2": frame(raw, paired=True, version=2),
        "kind-0": frame(raw, paired=True, kind=0),
        "kind-5": frame(raw, paired=True, kind=5),
        "flag-unknown": frame(raw, paired=True, flags=1 << 7),
        "raw-short": frame(raw[:958], paired=True, count=479, length=958),
        "raw-count": frame(raw, paired=True, count=479),
        "raw-length": frame(raw, paired=True, length=958),
        "cal-four-levels": frame(sweep()[:148], paired=True, kind=2, count=4, length=148),
        "padding": frame(status() + b"\x01", paired=True, kind=3, count=1, length=32),
        "bits-0": frame(raw, paired=True, bits=0),
        "bits-17": frame(raw, paired=True, bits=17),
        "led-5": frame(raw, paired=True, led=5),
        "reserved": frame(raw, paired=True, zero=1),
    }
    wide = frame(payload([4096, *samples()[1:]]), paired=True)
    return {name: {"frame": f.hex(), "refused_by": "decode"} for name, f in cases.items()} | {
        "sample-13-bits": {"frame": wide.hex(), "refused_by": "samples"}
    }


def requests() -> dict[str, Any]:
    """Setup packets: what the stick answers to each."""

    def packet(kind: int, number: int, value: int, index: int, length: int) -> str:
        return struct.pack("<BBHHH", kind, number, value, index, length).hex()

    accepted = {
        "get-info": packet(0xA1, 0x01, 0, 0, 64),
        "get-info-18-bytes": packet(0xA1, 0x01, 0, 0, 18),
        "get-status": packet(0xA1, 0x02, 0, 0, 32),
        "stop": packet(0x21, 0x10, 0, 0, 0),
        "stream": packet(0x21, 0x10, 1, 0, 0),
        "stream-calibrated-every-60-s": packet(0x21, 0x10, 2, 60 << 8, 0),
        "nonce": packet(0x21, 0x11, 0, 0, 32),
        "calibrate": packet(0x21, 0x12, 0, 0, 0),
        "self-test": packet(0x21, 0x13, 0, 0, 0),
        "bootloader": packet(0x21, 0x7F, 0, 0, 0),
    }
    stalled = {
        "vendor-request": packet(0xC1, 0x01, 0, 0, 64),
        "to-the-device": packet(0xA0, 0x01, 0, 0, 64),
        "interface-1": packet(0xA1, 0x01, 0, 1, 64),
        "get-info-too-long": packet(0xA1, 0x01, 0, 0, 65),
        "get-info-as-out": packet(0x21, 0x01, 0, 0, 64),
        "get-info-value": packet(0xA1, 0x01, 1, 0, 64),
        "unknown": packet(0x21, 0x14, 0, 0, 0),
        "stream-3": packet(0x21, 0x10, 3, 0, 0),
        "stream-with-data": packet(0x21, 0x10, 1, 0, 1),
        "nonce-31-bytes": packet(0x21, 0x11, 0, 0, 31),
        "nonce-33-bytes": packet(0x21, 0x11, 0, 0, 33),
        "calibrate-index": packet(0x21, 0x12, 0, 1 << 8, 0),
    }
    return {"accepted": accepted, "stalled": stalled}


def write(name: str, case: dict[str, Any]) -> None:
    (DIRECTORY / f"{name}.json").write_text(json.dumps(case, indent=1) + "\n", "utf-8")


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    session = {"k_stick": K_STICK.hex(), "nonce": NONCE.hex(), "boot_id": BOOT_ID, "serial": SERIAL, "key": KEY.hex()}
    write("session", session)
    write("requests", requests())
    fields = {k: v for k, v in MASTER.items() if k not in ("version", "length", "zero")}
    for name, case in good().items():
        write(f"frame-{name}", {"outcome": "decodes", "fields": fields if name == "raw-paired" else {}} | case)
    for name, case in broken().items():
        write(f"broken-{name}", {"outcome": "refused"} | case)


if __name__ == "__main__":
    main()

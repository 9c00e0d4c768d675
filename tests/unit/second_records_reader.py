"""A second fleet server's reader of carried enrolment records, from docs/spec/provisioning.md §10 and session.md alone.

It shares no code with edgeseal: where the two disagree, one of them or the page is wrong. In memory, for small files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM1024PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.unit.second_reader import Cbor, Incompatible, Refused, require

FORMAT = "edgeseal/enrolments/1"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
PUBLIC_LENGTH = {1: 1184 + 32, 2: 1568}
ENCAPSULATED = 1088 + 32


def t(version: bytes, *parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(len(p).to_bytes(4, "big") + p for p in (version, *parts))).digest()


@dataclass
class Record:
    """session.md §13, with PSK still sealed."""

    device: str
    serial: str
    hardware: str
    group: str
    suite: int
    public: bytes
    enrol: tuple[int, bytes]
    sealed: bytes

    @classmethod
    def read(cls, data: bytes) -> Record:
        require(len(data) <= 16_384, "too long")
        found = Cbor(data).whole()
        require(type(found) is dict and list(found) == list(range(10)), "other keys")
        format_, device, *texts, suite, public, enrol_suite, kid, sealed = found.values()
        require(format_ == 1, "another format")
        require(type(device) is str and NAME.fullmatch(device), "no name of a device")
        require(all(type(text) is str and len(text) <= 256 for text in texts), "no text")
        require(suite in PUBLIC_LENGTH and type(public) is bytes, "another suite")
        require(len(public) == PUBLIC_LENGTH[suite], "no public key")
        if suite == 2:
            _loads(public)
        require(type(enrol_suite) is int and type(kid) is bytes and len(kid) == 16, "no enrolment key")
        require(type(sealed) is bytes, "no PSK")
        serial, hardware, group = texts
        return cls(device, serial, hardware, group, suite, public, (enrol_suite, kid), sealed)


def _loads(public: bytes) -> None:
    try:
        MLKEM1024PublicKey.from_public_bytes(public)
    except ValueError:
        raise Refused("no public key") from None


@dataclass
class Fleet:
    """A fleet server with a suite 1 enrolment key, and what it has registered."""

    seed: bytes
    trusted: list[bytes]
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    taken: set[bytes] = field(default_factory=set)
    lines: list[tuple[int, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        expanded = hashlib.shake_256(self.seed).digest(96)
        ml = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x = X25519PrivateKey.from_private_bytes(expanded[64:])
        self.private = hpke.MLKEM768X25519PrivateKey(ml, x)
        public = ml.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()
        self.kid = t(b"edgeseal/x1", b"kid", b"\x01", public)[:16]
        self.stations = {t(b"edgeseal/provisioning/1", b"station", key): key for key in self.trusted}

    def take(self, file: bytes) -> list[tuple[int, str, str]]:
        """Read a whole file."""
        pin, expected, count, number = None, 0, 0, 0
        seen: set[bytes] = set()
        for number, line in enumerate(file.split(b"\n"), 1):
            if not line.strip():
                continue
            header = self._header(line, first=pin is None)
            if header is None:
                require(pin is not None, "no header")
                count += 1
                self._record(number, line, pin or b"", seen)
                continue
            if pin is not None and count != expected:
                self.lines.append((number, "", "refused"))
            pin, expected, count = header[0], header[1], 0
            if pin not in self.stations:
                self.lines.append((number, "", "refused"))
        require(pin is not None, "empty")
        if count != expected:
            last = max(n for n, line in enumerate(file.split(b"\n"), 1) if line.strip())
            self.lines.append((last, "", "refused"))
        return self.lines

    def _header(self, line: bytes, *, first: bool) -> tuple[bytes, int] | None:
        """Pin and number of records; None for a line that is no header."""
        try:
            found = json.loads(line)
        except ValueError:
            return None
        if type(found) is not dict or "format" not in found:
            return None
        if found["format"] != FORMAT:
            if first:
                raise Incompatible(str(found["format"]))
            return None
        station, count = found.get("station"), found.get("count")
        if set(found) != {"format", "station", "name", "count"} or type(found["name"]) is not str:
            return None
        if type(station) is not str or not re.fullmatch("[0-9a-f]{96}", station):
            return None
        return (bytes.fromhex(station), count) if type(count) is int and count >= 0 else None

    def _record(self, number: int, line: bytes, pin: bytes, seen: set[bytes]) -> None:
        device = ""
        try:
            require(len(line) <= 65_536, "too long")
            data, signature = _pair(line)
            record = Record.read(data)
            device = record.device
            require(data not in seen, "once more")
            seen.add(data)
            self._check(data, signature, pin)
            self._register(data, record)
        except (Refused, InvalidTag, InvalidSignature):
            self.lines.append((number, device, "refused"))
        else:
            self.lines.append((number, device, "registered"))

    def _check(self, data: bytes, signature: bytes, pin: bytes) -> None:
        require(pin in self.stations, "not trusted")
        public = MLDSA65PublicKey.from_public_bytes(self.stations[pin])
        public.verify(signature, data, b"edgeseal enrolment record")

    def _register(self, data: bytes, record: Record) -> None:
        if data in self.taken:
            return
        require(record.enrol == (1, self.kid), "another fleet's")
        suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA384, hpke.AEAD.CHACHA20_POLY1305)
        label = t(b"edgeseal/x1", b"enrol", record.device.encode(), record.public)
        psk = suite.decrypt(record.sealed, self.private, label)
        require(len(psk) == 32, "no PSK")
        public = hashlib.sha256(record.public).hexdigest()
        require(record.device not in self.devices, "name")
        require(public not in {d["public"] for d in self.devices.values()}, "key")
        require(record.serial not in {d["serial"] for d in self.devices.values()}, "serial number")
        self.taken.add(data)
        self.devices[record.device] = {
            "serial": record.serial,
            "hardware": record.hardware,
            "group": record.group,
            "suite": record.suite,
            "public": public,
            "psk": psk.hex(),
        }


def _pair(line: bytes) -> tuple[bytes, bytes]:
    try:
        found = json.loads(line)
    except ValueError as e:
        raise Refused("no JSON") from e
    require(type(found) is dict and set(found) == {"record", "signature"}, "other members")
    try:
        record, signature = (base64.b64decode(found[name], validate=True) for name in ("record", "signature"))
    except (ValueError, TypeError) as e:
        raise Refused("no base64") from e
    require(len(signature) == 3309, "no signature")
    return record, signature

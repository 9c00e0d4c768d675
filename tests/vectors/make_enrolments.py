"""Write the vectors of carried enrolment records, `tests/vectors/enrolments/*.json`.

    python -m tests.vectors.make_enrolments

An independent station: of docs/spec/provisioning.md §10 and session.md §13 it knows the pages, of edgeseal nothing.
HPKE and ML-DSA take their coins from the library, so a new run gives new bytes; everything else comes from labels.

One file is one case:

    what            one line for a person
    enrol           the fleet's enrolment key: [suite, seed in hex]
    trusted         ML-DSA-65 public keys of stations that it trusts, hex
    file            the carried file as text
    error           "refused" or "incompatible" if it is no such file at all, else null
    lines           [[line, device or "", "registered" or "refused"], …]: what is to be said of it, the first time
    registry        {name: {serial, hardware, group, suite, public: SHA-256, psk}}: who is there afterwards, hex
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from tests.vectors.make_provisioning import X1, Key, V, drawn, numbered, t

HERE = Path(__file__).parent / "enrolments"
FORMAT = "edgeseal/enrolments/1"
CONTEXT = b"edgeseal enrolment record"
HARDWARE = "raspberrypi,4-model-b"


class Station:
    """Signs records."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = MLDSA65PrivateKey.from_seed_bytes(drawn(f"station {name}"))
        self.public = self.key.public_key().public_bytes_raw()
        self.pin = t(V, b"station", self.public)

    def header(self, count: int, **changes: Any) -> str:
        return json.dumps({"format": FORMAT, "station": self.pin.hex(), "name": self.name, "count": count} | changes)

    def line(self, record: bytes, *, context: bytes = CONTEXT, signed: bytes | None = None, **more: Any) -> str:
        signature = self.key.sign(record if signed is None else signed, context)
        return json.dumps({"record": b64(record), "signature": b64(signature)} | more)


@dataclass
class Device:
    """Who is to be registered."""

    name: str
    serial: str
    group: str = "presses"
    suite: int = 1
    label: str = ""
    psk: bytes = b""
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        self.label = self.label or self.name
        self.key = Key(self.suite, drawn(f"{self.label} device seed", {1: 32, 2: 64}[self.suite]))
        self.psk = drawn(f"{self.name} psk")

    def record(self, enrol: Key, **changes: Any) -> bytes:
        sealed = enrol.seal(t(X1, b"enrol", self.name.encode(), self.key.public), self.psk)
        values = {
            "format": 1,
            "device": self.name,
            "serial": self.serial,
            "hardware": HARDWARE,
            "group": self.group,
            "suite": self.suite,
            "public": self.key.public,
            "enrol_suite": enrol.suite,
            "enrol_kid": enrol.kid,
            "sealed": sealed,
        }
        return numbered(*(values | changes).values())

    def row(self) -> dict[str, Any]:
        return {
            "serial": self.serial,
            "hardware": HARDWARE,
            "group": self.group,
            "suite": self.suite,
            "public": hashlib.sha256(self.key.public).hexdigest(),
            "psk": self.psk.hex(),
        }


ENROL = Key(1, drawn("enrol", 32))
ONE, TWO = Station("line 1"), Station("line 2")
A, B, C = Device("press-0001", "s1"), Device("press-0002", "s2", suite=2), Device("press-0003", "s3", group="")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def save(
    name: str,
    what: str,
    lines: list[str],
    said: list[tuple[int, str, str]],
    there: list[Device],
    *,
    error: str | None = None,
    end: str = "\n",
    trusted: tuple[Station, ...] = (ONE,),
) -> None:
    case = {
        "what": what,
        "enrol": [ENROL.suite, drawn("enrol", 32).hex()],
        "trusted": [s.public.hex() for s in trusted],
        "file": "\n".join(lines) + end,
        "error": error,
        "lines": said,
        "registry": {d.name: d.row() for d in there},
    }
    (HERE / f"{name}.json").write_text(json.dumps(case, indent=1) + "\n")


def good_cases() -> None:
    a, b, c = (d.record(ENROL) for d in (A, B, C))
    head = ONE.header(3)
    yes = [(2, A.name, "registered"), (3, B.name, "registered"), (4, C.name, "registered")]
    save("three-devices", "both suites, a device without a group", [head, *map(ONE.line, (a, b, c))], yes, [A, B, C])
    save("no-devices", "a header alone", [ONE.header(0)], [], [])
    joined = [ONE.header(1), ONE.line(a), "", " \t", TWO.header(2), TWO.line(b), TWO.line(c)]
    said = [(2, A.name, "registered"), (6, B.name, "registered"), (7, C.name, "registered")]
    save("joined-stations", "two stations' files joined, blank lines", joined, said, [A, B, C], trusted=(ONE, TWO))
    lines = [ONE.header(1), ONE.line(a)]
    save("no-line-feed-at-the-end", "the last line has no end", lines, yes[:1], [A], end="")


def broken_records() -> None:
    a, b = A.record(ENROL), B.record(ENROL)
    head = ONE.header(2)

    def second(name: str, what: str, line: str, device: str = "") -> None:
        said = [(2, A.name, "registered"), (3, device, "refused")]
        save(f"broken-{name}", what, [head, ONE.line(a), line], said, [A])

    other_group = B.record(ENROL, group="vip")
    second("altered", "a record that was changed after it was signed", ONE.line(other_group, signed=b), B.name)
    second("other-context", "signed for the journal", ONE.line(b, context=b"edgeseal station journal"), B.name)
    second("other-station", "signed by a station whose header is not there", TWO.line(b), B.name)
    second("other-fleet", "sealed for another fleet server", ONE.line(B.record(Key(1, drawn("other", 32)))), B.name)
    second("renamed", "a PSK sealed for another name", ONE.line(B.record(ENROL, device="press-9")), "press-9")
    second("same-name", "a name that is taken", ONE.line(Device(A.name, "s9", label="x").record(ENROL)), A.name)
    second("same-key", "a key that is there", ONE.line(Device("press-9", "s9", label=A.name).record(ENROL)), "press-9")
    second("same-serial", "a serial number that is there", ONE.line(Device("press-9", "s1").record(ENROL)), "press-9")
    second("doubled", "one line twice", ONE.line(a), A.name)
    second("more-members", "a member too many", ONE.line(b, more=1))
    second("no-cbor", "a record that is no CBOR", ONE.line(b"\xff" * 40))
    second("trailing", "a byte after the record, signed", ONE.line(b + b"\0"))
    second("bad-name", "a name no device can have", ONE.line(B.record(ENROL, device="Press 2")))
    second("short-signature", "a signature cut short", json.dumps({"record": b64(b), "signature": b64(bytes(3308))}))
    second(
        "no-base64", "a record that is no base64", json.dumps({"record": "=" + b64(b), "signature": b64(bytes(3309))})
    )
    second("cut-in-a-line", "the file ends within a line", ONE.line(b)[:500])


def broken_files() -> None:
    a, b = A.record(ENROL), B.record(ENROL)
    yes = [(2, A.name, "registered")]
    cut = [*yes, (2, "", "refused")]
    save("broken-cut-between-lines", "one of two lines is missing", [ONE.header(2), ONE.line(a)], cut, [A])
    lines = [ONE.header(1), ONE.line(a), TWO.header(1), TWO.line(b)]
    said = [*yes, (3, "", "refused"), (4, B.name, "refused")]
    save("broken-unknown-station", "the second station is not trusted", lines, said, [A])
    again = [ONE.header(1), ONE.line(a), ONE.header(1, format="edgeseal/enrolments/2"), TWO.line(b)]
    said = [*yes, (3, "", "refused"), (4, B.name, "refused"), (4, "", "refused")]
    save("broken-later-header", "a later header is of another format", again, said, [A], trusted=(ONE, TWO))
    save("broken-no-header", "no header", [ONE.line(a)], [], [], error="refused")
    save("broken-empty", "an empty file", [], [], [], error="refused", end="")
    upper = ONE.header(1, station=ONE.pin.hex().upper())
    save("broken-upper-case", "a pin in upper case", [upper, ONE.line(a)], [], [], error="refused")
    two = [ONE.header(1, format="edgeseal/enrolments/2"), ONE.line(a)]
    save("broken-format", "another format", two, [], [], error="incompatible")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    good_cases()
    broken_records()
    broken_files()

"""The udev rules: udev's own grammar, and for every device a driver knows exactly the right nodes and no other.

`tests/sim/test_system_files.py` reads the same file with udev itself, where it is installed.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from edgeseal.entropy.drivers import detect

pytestmark = pytest.mark.unit
RULES = Path(__file__).parents[2] / "agent" / "system" / "70-edgeseal-qrng.rules"
_TOKEN = re.compile(r'([A-Z_]+)(?:\{([A-Za-z_]+)\})?(==|!=|\+=|=)"([^"]*)"')
_MATCHES = {"ACTION", "SUBSYSTEM", "SUBSYSTEMS", "ATTRS", "KERNEL"}
_SETS = {"GROUP", "MODE", "TAG", "ENV", "GOTO", "LABEL"}


@dataclass(frozen=True)
class Token:
    key: str
    argument: str
    operator: str
    value: str


def parse(text: str) -> list[list[Token]]:
    """Read rules as udev(7) has them. Raises ValueError, naming the line."""
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        tokens = []
        for part in re.split(r",\s*", line):
            found = _TOKEN.fullmatch(part)
            if not found:
                raise ValueError(f"line {number}: {part!r} is no token")
            token = Token(found[1], found[2] or "", found[3], found[4])
            if token.key in _MATCHES and token.operator not in {"==", "!="}:
                raise ValueError(f"line {number}: {token.key} is assigned")
            if token.key in _SETS and token.operator in {"==", "!="}:
                raise ValueError(f"line {number}: {token.key} is compared")
            if token.key not in _MATCHES | _SETS:
                raise ValueError(f"line {number}: there is no key {token.key}")
            tokens.append(token)
        rules.append(tokens)
    return rules


def applied(node: dict[str, str], *, action: str = "add") -> dict[str, str]:
    """What the rules set for a device node: its attributes and `SUBSYSTEM`, `SUBSYSTEMS`, `KERNEL`."""
    out: dict[str, str] = {}
    skip_to = ""
    for rule in parse(RULES.read_text()):
        labels = [t.value for t in rule if t.key == "LABEL"]
        if skip_to:
            skip_to = "" if skip_to in labels else skip_to
            continue
        seen = {**node, "ACTION": action}
        if all(_matches(t, seen.get(t.argument or t.key, "")) for t in rule if t.key in _MATCHES):
            for t in rule:
                if t.key == "GOTO":
                    skip_to = t.value
                elif t.key in {"GROUP", "MODE", "TAG", "ENV"}:
                    out[t.argument or t.key] = t.value
    return out


def _matches(token: Token, value: str) -> bool:
    hit = any(fnmatch.fnmatchcase(value, pattern) for pattern in token.value.split("|"))
    return hit == (token.operator == "==")


def usb(vid: int, pid: int, *, subsystem: str = "usb", **texts: str) -> dict[str, str]:
    ids = {"idVendor": f"{vid:04x}", "idProduct": f"{pid:04x}"}
    return {"SUBSYSTEM": subsystem, "SUBSYSTEMS": "usb", **ids, **texts}


STRINGS = {
    "edgeseal-qrng": {"product": "edgeseal QRNG"},
    "infinite-noise": {"product": "Infinite Noise TRNG", "manufacturer": "13-37.org"},
    "comscire": {"serial": "QWR7A001"},
    "truerng": {"product": "TrueRNGpro V2"},
}
KINDS = [
    *((u.profile.name, ids, "usb") for u in detect.USB for ids in sorted(u.pin.ids)),
    *((s.profile.name, ids, "tty") for s in detect.SERIAL for ids in sorted(s.ids)),
]


@pytest.mark.parametrize(("name", "ids", "subsystem"), KINDS, ids=str)
def test_every_device_that_a_driver_knows_is_given_to_the_agent(
    name: str, ids: tuple[int, int], subsystem: str
) -> None:
    texts = next((t for key, t in STRINGS.items() if name.startswith(key)), {})
    found = applied(usb(ids[0], ids[1], subsystem=subsystem) | texts)
    assert (found["GROUP"], found["MODE"], found["TAG"]) == ("edgeseal", "0660", "uaccess")
    if subsystem == "tty" or ids[0] == 0x0403:
        assert found["ID_MM_DEVICE_IGNORE"] == "1"  # rusefi/rusefi#4359: ModemManager grabs CDC sticks


@pytest.mark.parametrize(
    "node",
    [
        usb(0x0403, 0x6001, serial="A50285BI", product="FT232R USB UART"),
        usb(0x0403, 0x6014, serial="FT1234", product="Single RS232-HS"),
        usb(0x0403, 0x6015, product="FT230X Basic UART"),
        usb(0x1209, 0x0001, product="somebody's test"),
        usb(0x04D8, 0xF5FE, subsystem="tty", product="Chipkit"),
        usb(0x1D50, 0x60C6, subsystem="input"),
        {"SUBSYSTEM": "misc", "KERNEL": "tun"},
        {"SUBSYSTEM": "block", "KERNEL": "hwrng"},
    ],
    ids=str,
)
def test_other_products_with_the_same_number_are_left_alone(node: dict[str, str]) -> None:
    assert applied(node) == {}


def test_the_kernel_generator_may_be_read_by_the_agent_and_written_by_root_only() -> None:
    assert applied({"SUBSYSTEM": "misc", "KERNEL": "hwrng"}) == {"GROUP": "edgeseal", "MODE": "0640"}


def test_nothing_happens_when_a_device_goes() -> None:
    assert applied(usb(0x1D50, 0x60C6), action="remove") == {}


def test_every_device_has_one_line_with_its_reason_above() -> None:
    lines = RULES.read_text().splitlines()
    for above, line in pairwise(lines):
        if line.startswith('SUBSYSTEMS=="usb"'):
            assert above.startswith("# ")
            assert above.endswith(".")


def test_its_number_is_below_that_of_uaccess() -> None:
    """73-seat-late.rules acts on the tag: a file after it has no effect."""
    assert int(RULES.name.split("-")[0]) < 73


@pytest.mark.parametrize(
    "bad", ['GRUOP="edgeseal"', 'SUBSYSTEM="usb"', 'MODE=="0660"', "MODE=0660", 'ATTRS{idVendor}=="04d8" MODE="0660"']
)
def test_a_broken_rule_would_be_found(bad: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        parse(bad)

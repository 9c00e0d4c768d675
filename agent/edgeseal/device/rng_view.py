"""How a source's snapshot looks to a person: one line for logs, a few for a terminal. No I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_GREEN, _YELLOW, _RED, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
_COLOURS: Final = {"healthy": _GREEN, "failed": _RED, "suspect": _RED}


def line(source: Mapping[str, Any]) -> str:
    """Return one line with everything that moves."""
    parts = [f"{source['name']}: {source['state']}", *_measured(source), *_counted(source)]
    if source["reason"]:
        parts.append(f"({_printable(source['reason'])})")
    return "  ".join(parts)


def lines(source: Mapping[str, Any], *, colour: bool = False) -> list[str]:
    """Return several lines: what it is, what was measured, what happened."""
    state = str(source["state"])
    since = f" since {_clock(source['changed_at'])}" if source["changed_at"] else ""
    shown = f"{_COLOURS.get(state, _YELLOW)}{state}{_PLAIN}" if colour else state
    out = [f"{source['name']}: {shown}{since}"]
    if source["reason"]:
        out.append(f"  reason    {_printable(source['reason'])}")
    if source["kind"]:
        serial = f", serial {_printable(source['serial'])}" if source["serial"] else ""
        out.append(f"  device    {source['kind']} at {_printable(source['path'])}{serial}")
        raw = "raw noise" if source["raw"] else "conditioned by the device"
        out.append(f"  class     {source['source_class']}, evidence {source['evidence']}; {raw}")
        out.append(f"  claimed   {source['claim']:g} of {source['bits']} bits a sample")
    if measured := _measured(source):
        at = f", calibrated {_clock(source['calibrated_at'])}" if source["calibrated_at"] else ""
        out.append(f"  measured  {', '.join(measured)}{at}")
    out.append(f"  so far    {', '.join(_counted(source))}")
    if source.get("simulated"):
        out.append("  warning   it is simulated: no noise, for the lab only")
    if source["slow"]:
        out.append(f"  warning   {_printable(source['slow'])}")
    out += [f"  alarm     {_printable(alarm)}" for alarm in source["alarms"]]
    return out


def _measured(source: Mapping[str, Any]) -> list[str]:
    found = (
        ("rate", "rate {:,.0f} samples/s"),
        ("reading", "read at {:,.0f}/s"),
        ("mean", "mean {:.1f}"),
        ("sigma", "sigma {:.2f}"),
        ("qcnr_db", "QCNR {:.1f} dB"),
    )
    return [text.format(source[key]) for key, text in found if source.get(key) is not None]


def _counted(source: Mapping[str, Any]) -> list[str]:
    out = [f"{source['frames']:,} frames", f"{source['bytes_mixed']:,} bytes mixed", f"{source['alarm_count']} alarms"]
    out += [f"{source[key]} {text}" for key, text in (("gaps", "gaps"), ("broken", "broken frames")) if source[key]]
    return out


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _printable(text: object) -> str:
    """Return text that a device had a hand in, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))

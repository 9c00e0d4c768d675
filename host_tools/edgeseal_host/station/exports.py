"""Devices of a journal as CSV or JSON, for whoever keeps the books of a factory."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeseal_host.station.devices import Made

COLUMNS: Final = (
    *("device", "group", "batch", "serial", "eth_mac", "mmc_cid", "rpi_duid", "board_revision", "provision_ts"),
    *("operator", "fixture", "timings", "kid", "suite", "hardware", "agent", "entropy", "locked", "uploaded"),
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def as_csv(devices: Iterable[Made]) -> str:
    """Return RFC 4180 text with a header. What a device said of itself is no formula for a spreadsheet."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for device in devices:
        row = device.row()
        writer.writerow([_cell(row[column]) for column in COLUMNS])
    return out.getvalue()


def as_json(devices: Iterable[Made]) -> str:
    """Return a JSON array."""
    return json.dumps([device.row() for device in devices], indent=2, ensure_ascii=False) + "\n"


def _cell(value: Any) -> object:  # noqa: ANN401 - a row's values
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
